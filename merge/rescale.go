package merge

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/resolve"
)

// rescale applies DoRA: out = RN(m·V/‖V‖) with V = w + ΔW, where ‖V‖ is the norm of a row, of a
// column, or of the columns of one input. Norms of columns take a pass over the whole tensor before
// its first block. Without magnitudes it adds a ΔW that is no thin product: out = RN(V).
type rescale struct {
	t      *target
	k      *tools
	before []operation         // operations that run before this one
	norms  *kernel.ColumnNorms // from measure; nil for norms of rows
	loaded *kernel.Rescaled    // a tensor with magnitudes has one band
}

func (r *rescale) load(ctx context.Context, _ int) (err error) {
	r.loaded, err = r.prepare(ctx)
	return err
}

func (r *rescale) drop(int) { r.loaded = nil }

func (r *rescale) apply(ctx context.Context, b *block, w *worker) error {
	if r.t.exact == nil {
		return r.loaded.Merge(ctx, b.data, int(b.row0), b.stats, &w.rescale)
	}
	exact, err := r.t.readExact(ctx, w, b.row0, b.row1)
	if err != nil {
		return err
	}
	return r.loaded.MergeFrom(ctx, b.data, exact, int(b.row0), b.stats, &w.rescale)
}

func (r *rescale) bytes(int) int64 {
	return bytesOfTerms(r.t, r.t.Terms, true) + bytesOfDeltas(r.t.Deltas)
}

// prepare reads the factors and magnitudes.
func (r *rescale) prepare(ctx context.Context) (*kernel.Rescaled, error) {
	tolerant := r.k.plan.options.AllowNonFinite
	var sum kernel.Sum
	var magnitudes []float64
	var err error
	if sum.Terms, _, err = loadTerms[float64](ctx, r.t, r.t.Terms, r.k, tolerant); err != nil {
		return nil, err
	}
	if sum.Dense, err = loadDeltas(ctx, r.t, r.t.Deltas, tolerant); err != nil {
		return nil, err
	}
	if r.t.DoRA != nil {
		if magnitudes, err = r.k.magnitudes(ctx, r.t); err != nil {
			return nil, err
		}
	}
	nRows, nCols := r.t.Matrix()
	u, err := kernel.PrepareRescaled(ctx, r.t.DType, int(nRows), int(nCols), sum, magnitudes, r.norms)
	if err == nil && r.t.exact != nil {
		u = u.Widened()
	}
	return u, err
}

// magnitudes reads the magnitudes of a tensor.
func (k *tools) magnitudes(ctx context.Context, t *target) ([]float64, error) {
	m := t.DoRA
	values := make([]float64, m.Tensor().Elements())
	bad, err := loadFactor(ctx, values, resolve.WholeA(m.Blob, 1), 1, len(values), len(values), 1, k.shelf)
	if err != nil {
		return nil, err
	}
	if bad > 0 && !k.plan.options.AllowNonFinite {
		return nil, fault.New(fault.Check, "the magnitudes of %q hold %s that %s NaN or infinite", m.Module, fault.Count(bad, "value"), fault.Choose(bad, "is", "are")).
			WithHint("training diverged; use an earlier checkpoint of the adapter, or set Options.AllowNonFinite")
	}
	return values, nil
}

// measure computes the norms of columns from all rows, holding a few rows at a time. The merge
// loads the factors again, so that only one tensor's factors are in memory.
func (r *rescale) measure(ctx context.Context, workers []worker) error {
	nRows, nCols := r.t.Matrix()
	if nRows == 0 || nCols == 0 {
		return nil
	}
	if err := loadAll(ctx, r.before, 0); err != nil {
		return err
	}
	update, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	step := r.k.plan.blockRows(r.t)
	sums := make([]*kernel.ColumnSquares, len(workers))
	for i := range sums {
		sums[i] = kernel.NewColumnSquares(int(r.t.DoRA.Tensor().Elements()))
	}
	err = parallel.For(ctx, len(workers), int((nRows+step-1)/step), func(w, i int) error {
		row := int64(i) * step
		rows, err := r.k.rowsBefore(ctx, r.t, r.before, &workers[w], row, min(row+step, nRows))
		if err != nil {
			return err
		}
		return update.AddSquares(ctx, sums[w], rows, int(row), &workers[w].rescale)
	})
	if err != nil {
		return err
	}
	r.norms = kernel.NewColumnNorms(sums, r.columnReader(ctx))
	for _, op := range r.before {
		op.drop(0)
	}
	return nil
}

// columnReader reads single columns of the values before the update, in a buffer of its own.
// NewColumnNorms calls it only while the earlier operations are loaded, in measure or in a block.
func (r *rescale) columnReader(ctx context.Context) kernel.ColumnReader {
	var w worker
	nRows, nCols := r.t.Matrix()
	step, d := r.k.plan.blockRows(r.t), r.t.DType
	if r.t.exact != nil {
		d = dtype.F64
	}
	return func(j, n int, yield func(row, j int, w float64)) error {
		for row := int64(0); row < nRows; row += step {
			if err := ctx.Err(); err != nil {
				return err
			}
			end := min(row+step, nRows)
			rows, err := r.k.rowsBefore(ctx, r.t, r.before, &w, row, end)
			if err != nil {
				return err
			}
			for i := row; i < end; i++ {
				for at := j; at < j+n; at++ {
					yield(int(i), at, dtype.Load(d, rows, int((i-row)*nCols)+at))
				}
			}
		}
		return nil
	}
}

// rowsBefore reads rows of a tensor into the worker's block and applies the earlier operations.
// Those of a decoded weight are in F64, and have no earlier operations.
func (k *tools) rowsBefore(
	ctx context.Context, t *target, before []operation, w *worker, row0, row1 int64,
) ([]byte, error) {
	_, nCols := t.Matrix()
	if t.exact != nil {
		size := nCols * int64(dtype.F64.Size())
		rows := w.grow((row1 - row0) * size)[:(row1-row0)*size]
		return rows, t.exact.ReadAt(ctx, rows, row0*size)
	}
	rowBytes := nCols * int64(t.DType.Size())
	b := block{t: t, row0: row0, row1: row1, stats: &w.ignored, taken: new(taken)}
	var err error
	b.data, err = k.read(w, t.ref.File, t.ref.Tensor.Off+row0*rowBytes, (row1-row0)*rowBytes)
	if err == nil {
		err = applyAll(ctx, before, &b, w)
	}
	return b.data, err
}
