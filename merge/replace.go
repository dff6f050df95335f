package merge

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
)

// replace substitutes the adapter's values for the base's, rounded to the base's dtype.
type replace struct {
	loadless
	t *target
	k *tools
}

func (r *replace) apply(ctx context.Context, b *block, w *worker) error {
	_, nCols := r.t.Matrix()
	return r.k.put(r.t, b, w, r.t.Replace, b.row0*nCols, b.data)
}

// setRows writes an adapter's trained rows over the base's rows.
type setRows struct {
	loadless
	t *target
	k *tools
}

func (r *setRows) apply(ctx context.Context, b *block, w *worker) error {
	_, nCols := r.t.Matrix()
	rowBytes := nCols * int64(r.t.DType.Size())
	for i, row := range r.t.Rows.Order {
		if row < b.row0 || row >= b.row1 {
			continue
		}
		dst := b.data[(row-b.row0)*rowBytes : (row-b.row0+1)*rowBytes]
		if err := r.k.put(r.t, b, w, &r.t.Rows.Blob, int64(i)*nCols, dst); err != nil {
			return err
		}
	}
	return nil
}

// put reads elements of a blob, starting at first, and stores them in dst with the tensor's dtype.
func (k *tools) put(t *target, b *block, w *worker, from *resolve.Blob, first int64, dst []byte) error {
	if err := readAs(w, from, first, int64(len(dst)/t.DType.Size()), t.DType, dst); err != nil || !t.DType.IsFloat() {
		return err
	}
	n := dtype.CountNonFinite(t.DType, dst)
	if n > 0 && !k.plan.options.AllowNonFinite {
		return fault.New(fault.Check, "%d of the adapter's values %s NaN or infinite as %v, in %q", n, fault.Choose(n, "is", "are"), t.DType, t.Name).
			WithHint("either training diverged or the base's dtype cannot hold the values; use an earlier checkpoint of the adapter, or set Options.AllowNonFinite")
	}
	b.stats.NaNAfter += int64(n)
	return nil
}

// readAs reads n elements of a blob, starting at first, and stores them in dst with dtype d.
func readAs(w *worker, b *resolve.Blob, first, n int64, d dtype.Type, dst []byte) error {
	from := b.Tensor().DType
	size := int64(from.Size())
	if from == d {
		return b.Source.ReadBlobAt(dst, b.Index, first*size)
	}
	if int64(cap(w.other)) < n*size {
		w.other = make([]byte, n*size)
	}
	src := w.other[:n*size]
	if err := b.Source.ReadBlobAt(src, b.Index, first*size); err != nil {
		return err
	}
	for i := range int(n) {
		dtype.Store(d, dst, i, dtype.Load(from, src, i))
	}
	return nil
}
