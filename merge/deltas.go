package merge

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/delta"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/resolve"
)

// addDeltas adds updates that are no thin products, and the ordinary terms of the same tensor:
// out = RN(w + Σ S·L·R + Σ ΔW). With magnitudes it rescales the sum, as DoRA does. Norms over the
// outputs of an input take a pass over the whole tensor before its first block.
type addDeltas struct {
	t      *target
	k      *tools
	before []operation // operations that run before this one
	norms  []float64   // per input, from measure; nil for magnitudes of rows
	loaded *kernel.Deltas
}

func (a *addDeltas) load(ctx context.Context, _ int) (err error) {
	a.loaded, err = a.prepare(ctx)
	return err
}

func (a *addDeltas) drop(int) { a.loaded = nil }

func (a *addDeltas) apply(ctx context.Context, b *block, w *worker) error {
	return a.loaded.Merge(ctx, b.data, int(b.row0), b.stats, &w.deltas)
}

// bytes counts the factors as float64, although some stay as they are stored.
func (a *addDeltas) bytes(int) (n int64) {
	nRows, nCols := a.t.Matrix()
	for i := range a.t.Terms {
		n += int64(a.t.Terms[i].Rank) * (nRows + nCols) * int64(dtype.F64.Size())
	}
	for i := range a.t.Deltas {
		n += deltaBytes(&a.t.Deltas[i])
	}
	return n
}

func deltaBytes(d *resolve.Delta) (n int64) {
	tensors := d.Source.Manifest().Tensors
	if d.Layer == nil {
		return d.Whole.Tensor().NBytes()
	}
	for _, i := range d.Layer.Roles {
		n += tensors[i].Elements() * int64(dtype.F64.Size())
	}
	_, cols := delta.Size(d.Layer, tensors)
	return n + 2*int64(d.Layer.Rank)*int64(cols)*int64(dtype.F64.Size()) // cores times their factors
}

// prepare reads the factors and magnitudes.
func (a *addDeltas) prepare(ctx context.Context) (*kernel.Deltas, error) {
	nRows, nCols := a.t.Matrix()
	tolerant := a.k.plan.options.AllowNonFinite
	terms, _, err := loadTerms[float64](ctx, a.t, a.t.Terms, a.k, tolerant)
	if err != nil {
		return nil, err
	}
	var parts []kernel.DeltaRows
	for _, x := range terms {
		product := delta.Product(int(nRows), x.Rank, int(nCols), x.L, x.R)
		parts = append(parts, kernel.DeltaRows{Delta: delta.Sum(product, x.S), Count: int(nRows)})
	}
	for i := range a.t.Deltas {
		d := &a.t.Deltas[i]
		read, err := readDelta(ctx, d, int(nCols))
		if err != nil {
			return nil, err
		}
		if n := read.NonFinite(); n > 0 && !tolerant {
			return nil, nonFiniteFactors(d.Module, n)
		}
		parts = append(parts, kernel.DeltaRows{Delta: read, At: d.At, From: d.From, Count: d.Count})
	}
	u := kernel.NewDeltas(a.t.DType, int(nRows), int(nCols), parts)
	if a.t.DoRA != nil {
		magnitude, err := a.k.magnitudes(ctx, a.t)
		if err != nil {
			return nil, err
		}
		u.Rescale(magnitude, a.inputKernel(), a.norms)
	}
	return u, nil
}

func readDelta(ctx context.Context, d *resolve.Delta, nCols int) (*delta.Delta, error) {
	if d.Layer == nil {
		return delta.ReadWhole(ctx, d.Source, d.Whole.Index, d.Scale, nCols)
	}
	return delta.Read(ctx, d.Source, d.Layer, d.Scale, d.Height, nCols, d.Kernel)
}

// inputKernel returns the number of columns that share a magnitude, 0 for magnitudes of rows.
func (a *addDeltas) inputKernel() int {
	if !a.t.DoRA.OfColumns {
		return 0
	}
	return a.t.DoRA.Kernel
}

// nonFiniteFactors is the error for factors with NaN or infinity.
func nonFiniteFactors(module string, n int) error {
	return fault.New(fault.Check, "the factors of %q hold %s that %s NaN or infinite", module, fault.Count(n, "value"), fault.Choose(n, "is", "are")).
		WithHint("training diverged; use an earlier checkpoint of the adapter, or set Options.AllowNonFinite")
}

// measuredRuns is the number of runs of rows that measure adds up apart. It does not depend on the
// workers, so that the order of the additions, and with it every bit of a norm, does not either.
const measuredRuns = 16

// measure computes the norms of inputs from all rows, holding a few rows at a time. The merge loads
// the factors again, so that only one tensor's factors are in memory.
func (a *addDeltas) measure(ctx context.Context, workers []worker) error {
	nRows, nCols := a.t.Matrix()
	if nRows == 0 || nCols == 0 {
		return nil
	}
	if err := loadAll(ctx, a.before, 0); err != nil {
		return err
	}
	update, err := a.prepare(ctx)
	if err != nil {
		return err
	}
	step, n := a.k.plan.blockRows(a.t), a.inputKernel()
	share := (nRows + measuredRuns - 1) / measuredRuns
	sums := make([]kernel.InputSquares, (nRows+share-1)/share)
	err = parallel.For(ctx, len(workers), len(sums), func(w, i int) error {
		sums[i] = make(kernel.InputSquares, int(nCols)/n)
		first, end := int64(i)*share, min(int64(i+1)*share, nRows)
		for row := first; row < end; row += step {
			rows, err := a.k.rowsBefore(ctx, a.t, a.before, &workers[w], row, min(row+step, end))
			if err != nil {
				return err
			}
			if err := update.AddSquares(ctx, sums[i], n, rows, int(row), &workers[w].deltas); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.norms = kernel.InputNorms(sums)
	for _, op := range a.before {
		op.drop(0)
	}
	return nil
}
