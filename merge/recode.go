package merge

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/kernel"
)

// recode gives the elements of a weight new codes: those nearest to w + Σ S·L·R.
type recode struct {
	*coded
	*add // to the weight
}

func newRecode(t *target, k *tools) *recode {
	return &recode{t.coded, newAdd(t.coded.weight, t.coded.weight.Terms, k, false)}
}

// recodedElements is the number of elements that get new codes together.
const recodedElements = 1 << 15

func (r *recode) apply(ctx context.Context, b *block, w *worker) error {
	rowBytes := r.codes.RowBytes()
	step := max(decodedRows, recodedElements/r.codes.Cols) * rowBytes
	return b.eachBand(func(band int, row0 int64, rows []byte) error {
		first := int64(band)*r.add.t.bandRows() + row0
		for at := int64(0); at < int64(len(rows)); at += step {
			p := recodedRows{recode: r, sum: r.loaded[band].broad, codes: rows[at:min(at+step, int64(len(rows)))], row: first + at/rowBytes, inBand: int(row0 + at/rowBytes)}
			if err := p.apply(ctx, b, w); err != nil {
				return err
			}
		}
		return nil
	})
}

// recodedRows are rows of a weight that get new codes together.
type recodedRows struct {
	*recode
	sum    *kernel.Update[float64]
	codes  []byte
	row    int64 // the first one
	inBand int
}

func (p *recodedRows) apply(ctx context.Context, b *block, w *worker) error {
	x := &w.recoding
	n := int64(len(p.codes)) / p.recode.codes.RowBytes() * p.recode.codes.Cols
	x.Codes, x.Was, x.Now, x.Sum = p.codes, grown(x.Was, n), grown(x.Now, n), grown(x.Sum, n)
	if err := p.recode.codes.Values(ctx, x.Was, p.codes, p.row); err != nil {
		return err
	}
	if err := p.sums(ctx, b, w); err != nil {
		return err
	}
	cols := int(p.recode.codes.Cols)
	x.Side = func(i int, m float64) (int, error) {
		return kernel.Side(ctx, p.sum, x.Was[i], m, p.inBand+i/cols, i%cols)
	}
	x.Dither, x.Clamped = p.dither, 0
	if err := p.recode.codes.Recode(ctx, x, p.row); err != nil {
		return err
	}
	b.taken.clamped += x.Clamped
	for i, sum := range x.Sum {
		if sum != sum && x.Was[i] == x.Was[i] {
			x.Now[i] = sum // no code holds it, and the run fails
		}
		if p.weight.DType == dtype.F32 { // without the rounding of w
			x.Sum[i] = x.Was[i] + (sum - float64(float32(x.Was[i])))
		}
	}
	b.stats.Count(x.Was, x.Sum, x.Now)
	return nil
}

// sums writes the sums to w.recoding.Sum.
func (p *recodedRows) sums(ctx context.Context, b *block, w *worker) error {
	x, d := &w.recoding, p.weight.DType
	var st kernel.Stats
	w.other = grown(w.other, int64(len(x.Was)*d.Size()))
	var err error
	if d == dtype.F64 {
		for i, was := range x.Was {
			binary.LittleEndian.PutUint64(w.other[8*i:], math.Float64bits(was))
		}
		err = p.sum.Merge(ctx, w.other, p.inBand, &st, &w.broad)
	} else {
		err = p.sum.MergeFrom(ctx, w.other, x.Was, p.inBand, &st, &w.broad)
	}
	b.stats.Slow, b.stats.Exact = b.stats.Slow+st.Slow, b.stats.Exact+st.Exact
	dtype.Widen64(x.Sum, d, w.other)
	return err
}

// grown returns n elements of a slice, or of a new one.
func grown[T any](s []T, n int64) []T {
	if int64(cap(s)) < n {
		return make([]T, n)
	}
	return s[:n]
}
