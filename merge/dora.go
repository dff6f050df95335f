package merge

import (
	"context"
	"io"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/parallel"
)

// magnitude is what DoRA rescales an updated weight V = W + s·B·A with: m/‖V‖, one factor per output feature of the layer. PEFT
// takes the norm of an embedding over the vocabulary, so that there is one factor per embedding dimension.
type magnitude struct {
	blob
	module    string
	ofColumns bool // of the base's tensor: Conv1D stores an output feature as a column, and so does an embedding
}

// addMagnitude gives a target the magnitudes of its layer, if it has any.
func (r *resolver) addMagnitude(l *format.Layer, t *target, transposed bool) error {
	i, ok := l.Roles[format.RoleMagnitude]
	if !ok {
		if r.saysDoRA() {
			return fault.New(fault.Corrupt, "the configuration says use_dora, and %q has no lora_magnitude_vector", l.Module).
				WithHint("the file was not saved whole; save the adapter again")
		}
		return nil
	}
	if w := r.plan.adapters[r.index].Weight; w != 1 {
		return fault.New(fault.Unsupported, "%q is DoRA, which replaces the magnitudes of the weight, and they cannot be weighted by %v", l.Module, w).
			WithHint("use the weight 1")
	}
	nRows, nCols := t.shape()
	want := nRows
	if transposed {
		want = nCols
	}
	m := r.blob(i)
	if have := m.tensor(); have.Elements() != want || !have.DType.IsFloat() {
		return fault.New(fault.Mismatch, "%q has the magnitudes %v of shape %d, and the base's weight has %d output features", l.Module, have.DType, have.Shape, want).
			WithHint("%s", r.wrongBase())
	}
	if t.dora != nil {
		return fault.New(fault.Unsupported, "two adapters rescale %q by magnitudes of DoRA, and which comes first changes the result", t.ref.Tensor.Name).
			WithHint("merge one adapter, then the other into what comes out")
	}
	t.dora = &magnitude{blob: m, module: l.Module, ofColumns: transposed}
	return nil
}

// saysDoRA reports whether the configuration of PEFT says that every layer has magnitudes.
func (r *resolver) saysDoRA() bool {
	return slices.Contains(r.adapter.Requires, format.Requirement{Feature: format.FeatureDoRA, Where: "use_dora"})
}

// noteMagnitudes warns of magnitudes that the configuration does not announce: PEFT would leave them out.
func (r *resolver) noteMagnitudes() {
	if r.adapter.Dialect != "peft" || r.saysDoRA() {
		return
	}
	var modules []string
	for _, l := range r.adapter.Layers {
		if _, ok := l.Roles[format.RoleMagnitude]; ok {
			modules = append(modules, l.Module)
		}
	}
	if len(modules) > 0 {
		r.plan.warn("the magnitudes of DoRA are applied though the configuration does not say use_dora: %s", fault.List(modules, 3))
	}
}

// loadRescaled reads the factors and magnitudes of a target.
func (t *running) loadRescaled(allowNonFinite bool) (*kernel.Rescaled, error) {
	terms, _, err := loadTerms[float64](t, t.terms, allowNonFinite)
	if err != nil {
		return nil, err
	}
	m := t.dora
	nRows, nCols := t.shape()
	values := make([]float64, m.tensor().Elements())
	bad, err := loadFactor(values, wholeA(m.blob, 1), 1, len(values), len(values), 1, t.shelf)
	if err != nil {
		return nil, err
	}
	if bad > 0 && !allowNonFinite {
		return nil, fault.New(fault.Check, "the magnitudes of %q hold %d values that are NaN or infinite", m.module, bad).
			WithHint("the training of this adapter went wrong; use an earlier checkpoint of it, or --allow-nonfinite")
	}
	return kernel.PrepareRescaled(t.ref.Tensor.DType, int(nRows), int(nCols), terms, values, t.norms), nil
}

// measure computes the norms of columns that magnitudes belong to, in a pass of its own over those
// tensors: every row counts, and memory holds a few. Norms of rows need none.
func (r *run) measure(ctx context.Context, workers []worker) error {
	for i, f := range r.plan.files {
		for _, t := range f.targets {
			if t.dora == nil || !t.dora.ofColumns {
				continue
			}
			if err := r.measureColumns(ctx, workers, r.state[t], r.plan.files[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) measureColumns(ctx context.Context, workers []worker, t *running, in *outFile) error {
	nRows, nCols := t.shape()
	if nRows == 0 || nCols == 0 {
		return nil
	}
	update, err := t.loadRescaled(r.plan.options.AllowNonFinite) // read again for the merge, so that one tensor's are held at a time
	if err != nil {
		return err
	}
	step := r.plan.blockRows(t.target)
	sums := make([]kernel.ColumnSquares, len(workers))
	for i := range sums {
		sums[i] = make(kernel.ColumnSquares, nCols)
	}
	err = parallel.For(ctx, len(workers), int((nRows+step-1)/step), func(w, i int) error {
		row := int64(i) * step
		block, err := r.readBefore(&workers[w], t.target, in, row, min(row+step, nRows))
		if err != nil {
			return err
		}
		update.AddSquares(sums[w], block, int(row), &workers[w].rescale)
		return nil
	})
	if err == nil {
		t.norms = kernel.NewColumnNorms(sums, r.columnReader(ctx, t.target, in))
	}
	return err
}

// columnReader reads single columns of a target, as they are before the update, with a block of memory
// of its own.
func (r *run) columnReader(ctx context.Context, t *target, in *outFile) kernel.ColumnReader {
	var w worker
	nRows, nCols := t.shape()
	step := r.plan.blockRows(t)
	return func(j int, yield func(row int, w float64)) error {
		for row := int64(0); row < nRows; row += step {
			if err := ctx.Err(); err != nil {
				return err
			}
			end := min(row+step, nRows)
			block, err := r.readBefore(&w, t, in, row, end)
			if err != nil {
				return err
			}
			for i := row; i < end; i++ {
				yield(int(i), dtype.Load(t.ref.Tensor.DType, block, int((i-row)*nCols)+j))
			}
		}
		return nil
	}
}

// readBefore reads rows of a target into the worker's block, as they are before the update.
func (r *run) readBefore(w *worker, t *target, in *outFile, row0, row1 int64) ([]byte, error) {
	tensor := t.ref.Tensor
	_, nCols := t.shape()
	rowBytes := nCols * int64(tensor.DType.Size())
	w.block = slices.Grow(w.block[:0], int((row1-row0)*rowBytes))[:(row1-row0)*rowBytes]
	if t.replace != nil {
		return w.block, r.readAs(w, t.replace, row0*nCols, (row1-row0)*nCols, tensor.DType, w.block)
	}
	_, err := io.ReadFull(io.NewSectionReader(in.in.Data, tensor.Off+row0*rowBytes, int64(len(w.block))), w.block)
	return w.block, fault.InFile(err, in.in.Path)
}
