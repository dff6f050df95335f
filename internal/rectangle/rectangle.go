// Package rectangle reads the parts of a checkpoint that the layers of an adapter change, and the
// ΔW of each as a thin product.
package rectangle

import (
	"context"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/thin"
)

// Rectangle is the part of a tensor of the base that one layer of the adapters changes: some rows
// and columns of one band, which need not lie side by side.
type Rectangle struct {
	*resolve.Change
	Band       int
	Module     string
	Terms      []resolve.Term
	Rows, Cols []int // ascending, within the band
}

// Of cuts a change into those of its layers. Terms of one layer on the same rows and columns belong
// together.
func Of(c *resolve.Change) (all []*Rectangle) {
	type key struct {
		band       int
		module     string
		rows, cols [2]int
	}
	found := make(map[key]*Rectangle)
	for _, x := range c.Terms {
		k := key{x.Band, x.Module, x.Left.Covers(), x.Right.Covers()}
		if found[k] == nil {
			found[k] = &Rectangle{
				Change: c, Band: x.Band, Module: x.Module, Rows: places(&x.Left), Cols: places(&x.Right),
			}
			all = append(all, found[k])
		}
		found[k].Terms = append(found[k].Terms, x)
	}
	return all
}

// Expert is the number of the expert whose matrix this is, nil if the tensor is no stack.
func (r *Rectangle) Expert() *int {
	if r.NBands > 1 {
		return &r.Band
	}
	return nil
}

// Bytes is the size of the rectangle in the base.
func (r *Rectangle) Bytes() int64 {
	return int64(len(r.Rows)) * int64(len(r.Cols)) * int64(r.DType.Size())
}

// Bytes is the size of the rectangles of several tensors.
func Bytes(tensors [][]*Rectangle) (n int64) {
	for _, all := range tensors {
		for _, r := range all {
			n += r.Bytes()
		}
	}
	return n
}

// places lists the rows, or columns, of the weight that a factor stands for.
func places(f *resolve.Factor) (all []int) {
	if f.Source == nil {
		return []int{0}
	}
	for j := range f.Length / f.Repeat {
		if p := f.Place(j); p >= 0 {
			for i := range f.Repeat {
				all = append(all, f.First+p*f.Repeat+i)
			}
		}
	}
	slices.Sort(all)
	return all
}

// Factors reads ΔW, the sum of all terms. The tensors of the adapter stay in read, since bands and
// projections share them.
func (r *Rectangle) Factors(ctx context.Context, read map[resolve.Blob][]byte) (*thin.Matrix, error) {
	var terms []thin.Term
	for i := range r.Terms {
		m, err := r.Term(ctx, i, read)
		if err != nil {
			return nil, err
		}
		terms = append(terms, thin.Term{Weight: r.Terms[i].Scale, Matrix: m})
	}
	return thin.Sum(terms...), nil
}

// Term reads Left·Right of one term, without its scale, as B·Aᵀ.
func (r *Rectangle) Term(
	ctx context.Context, i int, read map[resolve.Blob][]byte,
) (m *thin.Matrix, err error) {
	x := &r.Terms[i]
	m = &thin.Matrix{M: len(r.Rows), N: len(r.Cols), R: x.Rank}
	if m.B, err = readFactor(ctx, &x.Left, x.Rank, r.Rows, read); err != nil {
		return nil, err
	}
	m.A, err = readFactor(ctx, &x.Right, x.Rank, r.Cols, read)
	return m, err
}

// readFactor reads a factor as a matrix with a row for each of its places, and rank columns.
func readFactor(
	ctx context.Context, f *resolve.Factor, rank int, at []int, read map[resolve.Blob][]byte,
) ([]float64, error) {
	values := make([]float64, len(at)*rank)
	if f.Source == nil {
		values[0] = 1
		return values, nil
	}
	t := f.Tensor()
	if read[f.Blob] == nil {
		raw := make([]byte, t.NBytes())
		if err := f.Source.ReadBlobAt(raw, f.Index, 0); err != nil {
			return nil, err
		}
		read[f.Blob] = raw
	}
	for j := range f.Length / f.Repeat {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p := f.Place(j)
		if p < 0 {
			continue
		}
		row, _ := slices.BinarySearch(at, f.First+p*f.Repeat)
		for k := range rank {
			x := dtype.Load(t.DType, read[f.Blob], f.At+k*f.Across+j*f.Along)
			for i := range f.Repeat {
				values[(row+i)*rank+k] = x
			}
		}
	}
	return values, nil
}

// RowsAtOnce is the number of elements of a checkpoint that EachRows reads together.
const RowsAtOnce = 1 << 20

// EachRows reads W, the rectangle of the base, and calls f for pieces of it: n rows from row first
// of the rectangle on, in float64. f may keep no slice.
func (r *Rectangle) EachRows(
	ctx context.Context, base *checkpoint.Checkpoint, f func(first, n int, w []float64) error,
) error {
	ref, _ := base.Lookup(r.Name)
	_, nCols := r.Matrix()
	most := max(1, RowsAtOnce/int(nCols))
	var buf Buffer
	for first := 0; first < len(r.Rows); {
		n := 1
		for n < most && first+n < len(r.Rows) && r.Rows[first+n] == r.Rows[first]+n {
			n++
		}
		w, err := r.Read(ctx, ref.Tensor, first, n, &buf)
		if err != nil {
			return err
		}
		if err := f(first, n, w); err != nil {
			return err
		}
		first += n
	}
	return nil
}

// Buffer holds rows between reads.
type Buffer struct {
	raw  []byte
	wide []float64
}

// Read reads n rows of the rectangle that lie side by side, from row first on, of a tensor with the
// shape of the base's.
func (r *Rectangle) Read(
	ctx context.Context, t *checkpoint.Tensor, first, n int, buf *Buffer,
) ([]float64, error) {
	nRows, nCols := r.Matrix()
	size, height := int64(t.DType.Size()), nRows/int64(r.NBands)
	elements := int(int64(n) * nCols)
	buf.raw = slices.Grow(buf.raw[:0], elements*int(size))[:elements*int(size)]
	buf.wide = slices.Grow(buf.wide[:0], elements)[:elements]
	at := (int64(r.Band)*height + int64(r.Rows[first])) * nCols * size
	if err := t.ReadAt(ctx, buf.raw, at); err != nil {
		return nil, err
	}
	dtype.Widen64(buf.wide, t.DType, buf.raw)
	if len(r.Cols) < int(nCols) {
		return gather(buf.wide, int(nCols), r.Cols), nil
	}
	return buf.wide, nil
}

// gather moves the chosen columns of a matrix to its front, in place.
func gather(w []float64, nCols int, cols []int) []float64 {
	n := 0
	for row := 0; row < len(w); row += nCols {
		for _, j := range cols {
			w[n] = w[row+j]
			n++
		}
	}
	return w[:n]
}
