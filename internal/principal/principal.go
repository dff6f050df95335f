// Package principal computes the part of a weight that PiSSA and OLoRA subtract before training:
// the part of the leading singular vectors (PiSSA, Meng et al., arXiv:2404.02948), or of the
// leading columns of the QR decomposition (OLoRA, Büyükakyüz, arXiv:2406.01775).
//
// Singular and Leading return it as factors, Left·Right. Both compute Q·Qᵀ·W in float64, for a Q of
// r orthonormal columns. An error in Q of norm e changes the part by at most e·‖W‖. From the
// smaller side of W on, the part is W.
package principal

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/krylov"
)

// Part is a product Left·Right, rows×rank times rank×cols, both row-major.
type Part struct {
	Rank        int
	Left, Right []float64
}

const (
	// fullSide is the largest side of a matrix that is decomposed in full.
	fullSide = 192
	// block is the growth of the Krylov space in vectors. It is more than one, to find equal
	// singular values.
	block = 8
	// tolerance is the residual of a converged singular vector, relative to the largest singular
	// value.
	tolerance = 0x1p-49
)

// ErrOpen is the error for a matrix that leaves the part open: singular values that are equal at
// the cut can have any vectors of their space, and a column that depends on those before it adds
// any direction to Q.
var ErrOpen = errors.New("more than one part fits")

// Singular returns the part of the first rank singular values of a rows×cols matrix, row-major. It
// decomposes in full where that is cheap, and otherwise searches for the leading vectors only. It
// returns ErrOpen if singular value number rank is not 0 and equals the next one.
func Singular(ctx context.Context, w []float32, rows, cols, rank int) (Part, error) {
	find := searched
	if min(rows, cols) <= fullSide {
		find = fullSingular
	}
	return part(ctx, w, rows, cols, rank, find)
}

// Leading returns the part of the first rank columns of Q and rows of R, in the QR decomposition of
// a rows×cols matrix. It returns ErrOpen if these columns of the matrix depend on each other.
func Leading(ctx context.Context, w []float32, rows, cols, rank int) (Part, error) {
	return part(ctx, w, rows, cols, rank, leading)
}

// finder returns rank orthonormal columns Q of a matrix with rows rows, row-major. Columns of
// zeros fill it up.
type finder func(ctx context.Context, w []float32, rows, cols, rank int) ([]float64, error)

// part returns Q·Qᵀ·W as factors.
func part(ctx context.Context, w []float32, rows, cols, rank int, find finder) (Part, error) {
	if rank >= min(rows, cols) {
		return whole(w, rows, cols), ctx.Err()
	}
	w, exponent, err := normal(ctx, w)
	if err != nil {
		return Part{}, err
	}
	q, err := find(ctx, w, rows, cols, rank)
	if err != nil {
		return Part{}, err
	}
	a := &krylov.Float32{M: rows, N: cols, Data: w}
	right, err := a.MulT(ctx, slices.Collect(slices.Chunk(dense.Flip(q, rows, rank), rows)))
	if err != nil {
		return Part{}, err
	}
	p := Part{Rank: rank, Left: q, Right: slices.Concat(right...)}
	p.scale(-exponent)
	return p, nil
}

// whole returns W as a product with the identity.
func whole(w []float32, rows, cols int) Part {
	values, n := make([]float64, len(w)), min(rows, cols)
	for i, x := range w {
		values[i] = float64(x)
	}
	one := make([]float64, n*n)
	for i := range n {
		one[i*n+i] = 1
	}
	if rows <= cols {
		return Part{Rank: n, Left: one, Right: values}
	}
	return Part{Rank: n, Left: values, Right: one}
}

// leading returns Q of the QR decomposition.
func leading(ctx context.Context, w []float32, rows, cols, rank int) ([]float64, error) {
	q := krylov.Basis{Dim: rows}
	for k := range rank {
		added, err := q.Extend(ctx, [][]float64{columnOf(w, cols, k)}, 0)
		if err != nil {
			return nil, err
		}
		if added == 0 {
			return nil, ErrOpen
		}
	}
	m := make([]float64, rows*rank)
	for k, v := range q.Vectors {
		for i, x := range v {
			m[i*rank+k] = x
		}
	}
	return m, nil
}

// normal returns a matrix without subnormal numbers: w itself, or a copy multiplied by 2^exponent,
// with a largest element near 1. Elements still subnormal become zero. They are less than
// 2⁻¹²⁵·√(rows·cols) of the largest element, where float64 resolves 2⁻⁵³. Every product would read
// them again, at some 150 cycles each on many processors.
func normal(ctx context.Context, w []float32) (x []float32, exponent int, err error) {
	const least = 0x1p-126
	isSmall := func(v float32) bool { return -least < v && v < least && v != 0 }
	var largest float32
	someSmall := false
	for part := range slices.Chunk(w, askElements) {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		for _, v := range part {
			largest = max(largest, v, -v)
		}
		someSmall = someSmall || slices.ContainsFunc(part, isSmall)
	}
	if !someSmall {
		return w, 0, nil
	}
	exponent = -math.Ilogb(float64(largest))
	x = make([]float32, len(w))
	for i, v := range w {
		if i%askElements == 0 && ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		if v = float32(math.Ldexp(float64(v), exponent)); !isSmall(v) {
			x[i] = v
		}
	}
	return x, exponent, nil
}

// askElements is the number of elements between two looks at the context.
const askElements = 1 << 20

// scale multiplies the part by 2^exponent.
func (p *Part) scale(exponent int) {
	factor := math.Ldexp(1, exponent)
	for i := range p.Right {
		p.Right[i] *= factor
	}
}

// fullSingular decomposes all of W, as coefficients of its columns in a basis of them.
func fullSingular(ctx context.Context, w []float32, rows, cols, rank int) ([]float64, error) {
	q := krylov.Basis{Dim: rows}
	small := make([][]float64, cols)
	for j := range small {
		column := columnOf(w, cols, j)
		if _, err := q.Extend(ctx, [][]float64{slices.Clone(column)}, 0); err != nil {
			return nil, err
		}
		var err error
		if small[j], err = q.Coefficients(ctx, [][]float64{column}); err != nil {
			return nil, err
		}
	}
	if q.Size() == 0 { // W is zero
		return make([]float64, rows*rank), nil
	}
	left, sigma, err := leftVectors(ctx, small, q.Size())
	if err != nil {
		return nil, err
	}
	if isOpen(sigma, rank) {
		return nil, ErrOpen
	}
	return q.Combine(ctx, left, q.Size(), rank)
}

// isOpen reports whether the singular values, descending, do not separate the first rank of them
// from the others. Values that are zero but for rounding need no separation.
func isOpen(sigma []float64, rank int) bool {
	if rank >= len(sigma) {
		return false
	}
	near := 0x1p-44 * sigma[0]
	return sigma[rank-1] > near && sigma[rank-1]-sigma[rank] <= near
}

func columnOf(w []float32, cols, j int) []float64 {
	column := make([]float64, len(w)/cols)
	for i := range column {
		column[i] = float64(w[i*cols+j])
	}
	return column
}

// searched finds the leading left singular vectors in a Krylov space.
func searched(ctx context.Context, w []float32, rows, cols, rank int) ([]float64, error) {
	energy, err := sumSquares(ctx, w)
	if err != nil || energy == 0 {
		return make([]float64, rows*rank), err
	}
	space := krylov.New(&krylov.Float32{M: rows, N: cols, Data: w}, krylov.Double,
		krylov.Options{Energy: energy, Width: block, Random: rand.New(rand.NewPCG(1, 2))}) // a fixed seed
	look := rank + 1 // dimension of the space at the next look at its residual
	for {
		if err := space.Grow(ctx); err != nil {
			return nil, err
		}
		if space.Size() < look && !space.Closed {
			continue
		}
		look = space.Size() + max(block, space.Size()/4)
		// The next value shows whether the last one differs from it.
		residual, largest, err := space.Residual(ctx, rank+1)
		if err != nil {
			return nil, err
		}
		if !space.Closed && residual > tolerance*largest {
			continue
		}
		sigma, err := space.Values(ctx)
		if err != nil {
			return nil, err
		}
		if isOpen(sigma, rank) {
			return nil, ErrOpen
		}
		return space.Left(ctx, rank)
	}
}

// sumSquares returns ‖W‖_F².
func sumSquares(ctx context.Context, w []float32) (sum float64, err error) {
	for part := range slices.Chunk(w, askElements) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		for _, x := range part {
			sum += float64(x) * float64(x)
		}
	}
	return sum, nil
}

// leftVectors returns the left singular vectors, as columns, and the singular values of a matrix
// given by columns, without trailing zeros. The matrix has no more rows than columns.
func leftVectors(
	ctx context.Context, columns [][]float64, rows int,
) (left, sigma []float64, err error) {
	a := make([]float64, rows*len(columns))
	for j, c := range columns {
		for i, x := range c {
			a[i*len(columns)+j] = x
		}
	}
	sigma, left, err = dense.LeftVectors(ctx, a, rows, len(columns))
	return left, sigma, err
}
