package merge

import (
	"context"
	"io"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/resolve"
)

// loadRescaled reads the factors and magnitudes of a target.
func (t *running) loadRescaled(allowNonFinite bool) (*kernel.Rescaled, error) {
	terms, _, err := loadTerms[float64](t, t.Terms, allowNonFinite)
	if err != nil {
		return nil, err
	}
	m := t.DoRA
	nRows, nCols := t.Matrix()
	values := make([]float64, m.Tensor().Elements())
	bad, err := loadFactor(values, resolve.WholeA(m.Blob, 1), 1, len(values), len(values), 1, t.shelf)
	if err != nil {
		return nil, err
	}
	if bad > 0 && !allowNonFinite {
		return nil, fault.New(fault.Check, "the magnitudes of %q hold %d values that are NaN or infinite", m.Module, bad).
			WithHint("the training of this adapter went wrong; use an earlier checkpoint of it, or --allow-nonfinite")
	}
	return kernel.PrepareRescaled(t.ref.Tensor.DType, int(nRows), int(nCols), terms, values, t.norms), nil
}

// measure computes the norms of columns that magnitudes belong to, in a pass of its own over those
// tensors: every row counts, and memory holds a few. Norms of rows need none.
func (r *run) measure(ctx context.Context, workers []worker) error {
	for i, f := range r.plan.files {
		for _, t := range f.targets {
			if t.DoRA == nil || !t.DoRA.OfColumns {
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
	nRows, nCols := t.Matrix()
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
	nRows, nCols := t.Matrix()
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
	_, nCols := t.Matrix()
	rowBytes := nCols * int64(tensor.DType.Size())
	w.block = slices.Grow(w.block[:0], int((row1-row0)*rowBytes))[:(row1-row0)*rowBytes]
	if t.Replace != nil {
		return w.block, r.readAs(w, t.Replace, row0*nCols, (row1-row0)*nCols, tensor.DType, w.block)
	}
	_, err := io.ReadFull(io.NewSectionReader(in.data, tensor.Off+row0*rowBytes, int64(len(w.block))), w.block)
	return w.block, fault.InFile(err, in.in.Path)
}
