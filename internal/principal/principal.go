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
	find := krylov
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
	right, err := transposedProduct(ctx, w, cols, q, rank)
	if err != nil {
		return Part{}, err
	}
	p := Part{Rank: rank, Left: q, Right: right}
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
	q := &basis{size: rows}
	for k := range rank {
		added, err := q.extend(ctx, [][]float64{columnOf(w, cols, k)})
		if err != nil {
			return nil, err
		}
		if added == 0 {
			return nil, ErrOpen
		}
	}
	return q.rowMajor(rank), nil
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

// transposedProduct returns Qᵀ·W.
func transposedProduct(
	ctx context.Context, w []float32, cols int, q []float64, rank int,
) ([]float64, error) {
	right := make([]float64, rank*cols)
	for i := range len(w) / cols {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		line := w[i*cols : (i+1)*cols]
		for k := range rank {
			c := q[i*rank+k]
			dst := right[k*cols : (k+1)*cols]
			for j, x := range line {
				dst[j] += float64(c * float64(x))
			}
		}
	}
	return right, nil
}

// fullSingular decomposes all of W, as coefficients of its columns in a basis of them.
func fullSingular(ctx context.Context, w []float32, rows, cols, rank int) ([]float64, error) {
	q := &basis{size: rows}
	small := make([][]float64, cols)
	for j := range small {
		column := columnOf(w, cols, j)
		if _, err := q.extend(ctx, [][]float64{column}); err != nil {
			return nil, err
		}
		small[j] = q.coefficients(column)
	}
	if q.n() == 0 { // W is zero
		return make([]float64, rows*rank), nil
	}
	left, sigma, err := decompose(ctx, small, q.n())
	if err != nil {
		return nil, err
	}
	if isOpen(sigma, rank) {
		return nil, ErrOpen
	}
	return q.combine(ctx, left, rank)
}

// isOpen reports whether the singular values, descending, do not separate the first rank of them
// from the others. Values that are zero but for rounding need no separation.
func isOpen(sigma []float64, rank int) bool {
	if rank >= len(sigma) {
		return false
	}
	near := dependent * sigma[0]
	return sigma[rank-1] > near && sigma[rank-1]-sigma[rank] <= near
}

func columnOf(w []float32, cols, j int) []float64 {
	column := make([]float64, len(w)/cols)
	for i := range column {
		column[i] = float64(w[i*cols+j])
	}
	return column
}

// krylov finds the leading left singular vectors by block Lanczos bidiagonalisation with full
// reorthogonalisation (Golub, Luk and Overton, 1981). The spaces of U and V grow in turn. The
// singular vectors of W are those of the small matrix Uᵀ·W·V once W maps them into the spaces, at
// the latest when a space is complete.
func krylov(ctx context.Context, w []float32, rows, cols, rank int) ([]float64, error) {
	rng := rand.New(rand.NewPCG(1, 2)) // a fixed seed
	u, v := &basis{size: rows}, &basis{size: cols}
	var small [][]float64 // Uᵀ·W·V by columns, without trailing zeros
	look := rank + 1      // size of V at the next convergence check
	next := random(rng, cols)
	for {
		added, err := v.extend(ctx, next)
		if added == 0 && err == nil { // the spaces are closed, and may lack a direction
			next = random(rng, cols)
			if added, err = v.extend(ctx, next); added == 0 {
				look = 0
			}
		}
		if err != nil {
			return nil, err
		}
		products, err := times(ctx, w, cols, v.newest(added))
		if err != nil {
			return nil, err
		}
		grown, err := u.extend(ctx, products)
		if err != nil {
			return nil, err
		}
		for _, p := range products {
			small = append(small, u.coefficients(p))
		}
		if next, err = timesT(ctx, w, cols, u.newest(grown)); err != nil {
			return nil, err
		}
		full := v.n() == cols || u.n() == rows || added == 0
		if v.n() < look && !full {
			continue
		}
		if u.n() == 0 { // W is zero
			return make([]float64, rows*rank), nil
		}
		look = v.n() + max(block, v.n()/4)
		left, sigma, err := decompose(ctx, small, u.n())
		if err != nil {
			return nil, err
		}
		done := full
		if !full && len(sigma) > rank { // the next value shows whether the last one differs from it
			if done, err = converged(ctx, left, sigma, v, next, rank+1); err != nil {
				return nil, err
			}
		}
		if done && isOpen(sigma, rank) {
			return nil, ErrOpen
		}
		if done {
			return u.combine(ctx, left, rank)
		}
	}
}

// converged reports whether Wᵀ maps the leading vectors into V. next is Wᵀ times the newest vectors
// of U, the only ones that lead out of V.
func converged(
	ctx context.Context, left, sigma []float64, v *basis, next [][]float64, rank int,
) (bool, error) {
	if len(next) == 0 {
		return true, nil
	}
	outside := make([][]float64, len(next))
	for c, x := range next {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		outside[c] = slices.Clone(x)
		v.takeOut(outside[c])
	}
	n := len(sigma)
	residual := make([]float64, v.size)
	for i := range rank {
		clear(residual)
		for c, x := range outside {
			dense.AddScaled(residual, left[(n-len(next)+c)*n+i], x)
		}
		if dense.Norm(residual) > tolerance*sigma[0] {
			return false, nil
		}
	}
	return true, nil
}

// decompose returns the left singular vectors, as columns, and the singular values of a matrix
// given by columns, without trailing zeros. The matrix has no more rows than columns.
func decompose(
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

// basis is a growing set of orthonormal vectors.
type basis struct {
	size    int
	vectors [][]float64
}

func (b *basis) n() int                   { return len(b.vectors) }
func (b *basis) newest(n int) [][]float64 { return b.vectors[len(b.vectors)-n:] }

// extend adds the directions that the basis lacks, and returns their number.
func (b *basis) extend(ctx context.Context, vectors [][]float64) (added int, err error) {
	for _, x := range vectors {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		y := slices.Clone(x)
		before := dense.Norm(y)
		b.takeOut(y)
		if norm := dense.Norm(y); norm > dependent*before && b.n() < b.size {
			for i := range y {
				y[i] *= 1 / norm
			}
			b.vectors = append(b.vectors, y)
			added++
		}
	}
	return added, nil
}

// dependent is the share of a vector that rounding leaves after removing a basis that contains it.
const dependent = 0x1p-44

// takeOut removes from x its part in the basis. Two passes suffice (Giraud, Langou and Rozložník,
// 2005).
func (b *basis) takeOut(x []float64) {
	for range 2 {
		for _, q := range b.vectors {
			dense.AddScaled(x, -dense.Dot(q, x), q)
		}
	}
}

func (b *basis) coefficients(x []float64) []float64 {
	c := make([]float64, b.n())
	for i, q := range b.vectors {
		c[i] = dense.Dot(q, x)
	}
	return c
}

// combine returns the basis times the first columns of a small square matrix, row-major, padded
// with zero columns.
func (b *basis) combine(ctx context.Context, small []float64, rank int) ([]float64, error) {
	q, n := make([]float64, b.size*rank), b.n()
	for row := range b.size {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		dst := q[row*rank:][:min(n, rank)]
		for i, v := range b.vectors {
			x, line := v[row], small[i*n:][:len(dst)]
			for k, c := range line {
				dst[k] += float64(c * x)
			}
		}
	}
	return q, nil
}

// rowMajor returns the vectors as the first columns of a matrix with rank columns; the others are
// zero.
func (b *basis) rowMajor(rank int) []float64 {
	m := make([]float64, b.size*rank)
	for k, v := range b.vectors {
		for i, x := range v {
			m[i*rank+k] = x
		}
	}
	return m
}

// times returns W·x for several x.
func times(ctx context.Context, w []float32, cols int, xs [][]float64) ([][]float64, error) {
	rows := len(w) / cols
	ys := make([][]float64, len(xs))
	for c, x := range xs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ys[c] = make([]float64, rows)
		for i := range ys[c] {
			line := w[i*cols:][:len(x)]
			var s0, s1, s2, s3 float64
			j := 0
			for ; j+4 <= len(x); j += 4 {
				s0 += float64(float64(line[j]) * x[j])
				s1 += float64(float64(line[j+1]) * x[j+1])
				s2 += float64(float64(line[j+2]) * x[j+2])
				s3 += float64(float64(line[j+3]) * x[j+3])
			}
			for ; j < len(x); j++ {
				s0 += float64(float64(line[j]) * x[j])
			}
			ys[c][i] = (s0 + s1) + (s2 + s3)
		}
	}
	return ys, nil
}

// timesT returns Wᵀ·y for several y.
func timesT(ctx context.Context, w []float32, cols int, ys [][]float64) ([][]float64, error) {
	xs := make([][]float64, len(ys))
	for c := range ys {
		xs[c] = make([]float64, cols)
	}
	for i := range len(w) / cols {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		line := w[i*cols:][:cols]
		for c, y := range ys {
			f, x := y[i], xs[c][:len(line)]
			for j, v := range line {
				x[j] += float64(f * float64(v))
			}
		}
	}
	return xs, nil
}

// random returns a block of normal vectors.
func random(rng *rand.Rand, size int) [][]float64 {
	xs := make([][]float64, block)
	for c := range xs {
		xs[c] = make([]float64, size)
		for i := range xs[c] {
			xs[c][i] = rng.NormFloat64()
		}
	}
	return xs
}
