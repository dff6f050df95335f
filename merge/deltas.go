package merge

import (
	"context"
	"math/big"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/delta"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
)

// loadDeltas reads the factors of updates that are no thin products.
func loadDeltas(
	ctx context.Context, t *target, deltas []resolve.Delta, tolerant bool,
) (loaded []kernel.Dense, err error) {
	_, nCols := t.Matrix()
	for i := range deltas {
		d := &deltas[i]
		read, err := readDelta(ctx, d, int(nCols))
		if err != nil {
			return nil, err
		}
		if n := read.NonFinite(); n > 0 && !tolerant {
			return nil, nonFiniteFactors(d.Module, n)
		}
		loaded = append(loaded, &rowsOf{read, d})
	}
	return loaded, nil
}

func readDelta(ctx context.Context, d *resolve.Delta, nCols int) (*delta.Delta, error) {
	if d.Layer == nil {
		return delta.ReadWhole(ctx, d.Source, d.Whole.Index, d.Scale, nCols)
	}
	return delta.Read(ctx, d.Source, d.Layer, d.Scale, d.Height, nCols, d.Kernel)
}

// bytesOfDeltas returns the memory of their factors.
func bytesOfDeltas(deltas []resolve.Delta) (n int64) {
	for i := range deltas {
		n += deltaBytes(&deltas[i])
	}
	return n
}

// deltaBytes counts the factors as float64, although some stay as they are stored.
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

// nonFiniteFactors is the error for factors with NaN or infinity.
func nonFiniteFactors(module string, n int) error {
	return fault.New(fault.Check, "the factors of %q hold %s that %s NaN or infinite", module, fault.Count(n, "value"), fault.Choose(n, "is", "are")).
		WithHint("training diverged; use an earlier checkpoint of the adapter, or set Options.AllowNonFinite")
}

// rowsOf are the rows of a ΔW that change rows of a tensor: a kernel.Dense of the tensor's size.
type rowsOf struct {
	of *delta.Delta
	*resolve.Delta
}

// row returns the row of ΔW for row i of the tensor, if there is one.
func (r *rowsOf) row(i int) (row int, ok bool) {
	return i - r.At + r.From, i >= r.At && i < r.At+r.Count
}

// AddRow implements kernel.Dense.
func (r *rowsOf) AddRow(dst, w []float64, i int, buf *[]float64) (most, err float64) {
	row, ok := r.row(i)
	if !ok {
		return 0, 0
	}
	return r.of.AddRow(dst, w, row, buf)
}

// AddExact implements kernel.Dense.
func (r *rowsOf) AddExact(sum *big.Float, w float64, i, j int) (special float64) {
	row, ok := r.row(i)
	if !ok {
		return 0
	}
	return r.of.AddExact(sum, w, row, j)
}
