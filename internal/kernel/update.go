package kernel

import (
	"context"
	"fmt"
	"slices"

	"github.com/loratool/loratool/format/dtype"
)

// Term is one update of a matrix: S · L · R with L rows×Rank and R Rank×cols, both row-major.
type Term[T Float] struct {
	S    float64 // finite
	Rank int
	L, R []T
}

// panicSize panics because the factors do not fit a rows×cols matrix.
func (t *Term[T]) panicSize(rows, cols int) {
	panic(fmt.Sprintf("kernel: a term of rank %d of a %d×%d matrix has factors of %d and %d elements",
		t.Rank, rows, cols, len(t.L), len(t.R)))
}

// Update is Σ_t S_t·L_t·R_t for one matrix, packed for a kernel. Any number of goroutines may use
// it.
type Update[T Float] struct {
	packed[T]
	d      dtype.Type
	source dtype.Type // of the base's values: d, or that of T if widened
	kernel *Kernel
	group  int // number of panels processed together, by their size
	bottom *bottom
	// the update that this one negates, or nil
	positive *Update[T]
}

// roundings returns how many roundings product k passes on its way into δ, at least one: those that
// all products have in common, the additions in its chunk, and the later additions of chunks.
func (u *packed[T]) roundings(k int) int {
	nChunks, first := (u.rank+chunk-1)/chunk, k/chunk*chunk
	return u.extra + min(chunk, u.rank-first) - k%chunk + nChunks - max(1, k/chunk)
}

// extraRoundings returns those that all products have in common: one in S·l unless that is exact,
// and one of its own unless multiply-add is fused. A base rounded to float32 counts as one more.
func (u *packed[T]) extraRoundings(isExact bool) (n int) {
	for _, rounds := range []bool{!isExact, !u.micro.fuses, u.isWidened && isNarrow[T]()} {
		if rounds {
			n++
		}
	}
	return n
}

// groupBytes is the amount of R processed together. It fits in the first-level cache beside tiles
// of W and rows of L.
const groupBytes = 20 << 10

// Prepare packs the terms for a rows×cols matrix of dtype d: F64, F32, F16 or BF16. T = float32
// needs one of the last two. It keeps L and copies R: see pack.go. The only
// error is that of a context that has ended.
func Prepare[T Float](
	ctx context.Context, k *Kernel, d dtype.Type, rows, cols int, terms []Term[T],
) (*Update[T], error) {
	return prepareFrom(ctx, k, d, d, rows, cols, terms)
}

// PrepareWidened is Prepare for base values that D may not hold, for MergeFrom. D is F32, F16 or
// BF16.
func PrepareWidened[T Float](
	ctx context.Context, k *Kernel, d dtype.Type, rows, cols int, terms []Term[T],
) (*Update[T], error) {
	return prepareFrom(ctx, k, d, dtypeOf[T](), rows, cols, terms)
}

func prepareFrom[T Float](
	ctx context.Context, k *Kernel, d, source dtype.Type, rows, cols int, terms []Term[T],
) (*Update[T], error) {
	u := &Update[T]{d: d, source: source, kernel: k, bottom: new(bottom)}
	u.isWidened, u.dot = source != d, dotFor[T](k)
	u.rows, u.cols, u.terms, u.micro = rows, cols, slices.Clone(terms), microFor[T](k, d, u.isWidened)
	for i := range terms {
		t := &terms[i]
		if len(t.L) != rows*t.Rank || len(t.R) != t.Rank*cols {
			t.panicSize(rows, cols)
		}
		u.rank += t.Rank
	}
	nr := u.micro.cols
	u.panels = (cols + nr - 1) / nr
	u.group = max(1, min(u.micro.panels, u.panels, groupBytes/(max(1, u.rank)*nr*sizeOf[T]())))
	if err := u.pack(ctx); err != nil {
		return nil, err
	}
	for i := range u.terms {
		u.terms[i].R = nil
	}
	return u, nil
}

// UpdateBytes returns the largest memory of an Update while it is prepared and used, for a
// rows×cols matrix of dtype d, terms of the given total rank, and float64 if wide. L and R exist as
// given and packed, with a norm per line. A 16-bit matrix may use bottom.go, which holds all of it
// in float64 as well, and some rows in float32.
func UpdateBytes(d dtype.Type, wide bool, rows, cols, rank int64) int64 {
	const narrowBytes, wideBytes = 4, 8
	elements := (2*rank + 1) * (rows + cols)
	switch {
	case wide:
		return wideBytes * elements
	case d.Size() < narrowBytes:
		return (narrowBytes+wideBytes)*elements + bottomRows*cols*narrowBytes
	}
	return narrowBytes * elements
}

// NegativeBytes returns the largest additional memory of an Update's negative.
func NegativeBytes(d dtype.Type, wide bool, rows, rank int64) int64 {
	switch {
	case wide:
		return 8 * rows * rank
	case d.Size() < 4:
		return (4 + 8) * rows * rank
	}
	return 4 * rows * rank
}

// Negative returns −u, which removes u again. Both share R. The only error is that of a context
// that has ended.
func (u *Update[T]) Negative(ctx context.Context) (*Update[T], error) {
	n := *u
	n.bottom, n.positive = new(bottom), u
	n.terms = make([]Term[T], len(u.terms))
	for i, t := range u.terms {
		t.S = -t.S
		n.terms[i] = t
	}
	n.l = make([]T, len(u.l))
	for i, x := range u.l {
		if i%askElements == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		n.l[i] = -x
	}
	return &n, nil
}
