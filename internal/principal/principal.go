// Package principal computes the part of a weight that PiSSA and OLoRA subtract before training:
// the part of the leading singular vectors (PiSSA, Meng et al., arXiv:2404.02948), or of the
// leading columns of the QR decomposition (OLoRA, Büyükakyüz, arXiv:2406.01775).
//
// Singular and Leading return it as factors, Left·Right. Both compute Q·Qᵀ·W in float64, for a Q of
// r orthonormal columns. An error in Q of norm e changes the part by at most e·‖W‖.
package principal

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"
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

// Singular returns the part of the first rank singular values of a rows×cols matrix, row-major.
func Singular(w []float32, rows, cols, rank int) (Part, error) {
	w, exponent := normal(w)
	part, err := singular(w, rows, cols, min(rank, rows, cols))
	part.scale(-exponent)
	return part, err
}

// singular decomposes in full where that is cheap, and otherwise searches for the leading vectors
// only.
func singular(w []float32, rows, cols, rank int) (Part, error) {
	if min(rows, cols) <= fullSide {
		return fullSingular(w, rows, cols, rank)
	}
	left, err := krylov(w, rows, cols, rank)
	if err != nil {
		return Part{}, err
	}
	return project(w, rows, cols, left, rank), nil
}

// Leading returns the part of the first rank columns of Q and rows of R, in the QR decomposition of
// a rows×cols matrix.
func Leading(w []float32, rows, cols, rank int) Part {
	w, exponent := normal(w)
	part := leading(w, rows, cols, min(rank, rows, cols))
	part.scale(-exponent)
	return part
}

func leading(w []float32, rows, cols, rank int) Part {
	q := &basis{size: rows}
	for k := range rank {
		column := make([]float64, rows)
		for i := range column {
			column[i] = float64(w[i*cols+k])
		}
		// a dependent column adds nothing: its row of R is zero on the diagonal
		q.extend([][]float64{column})
	}
	return project(w, rows, cols, q.rowMajor(rank), rank)
}

// normal returns a matrix without subnormal numbers: w itself, or a copy multiplied by 2^exponent,
// with a largest element near 1. Elements still subnormal become zero. They are less than
// 2⁻¹²⁵·√(rows·cols) of the largest element, where float64 resolves 2⁻⁵³. Every product would read
// them again, at some 150 cycles each on many processors.
func normal(w []float32) (x []float32, exponent int) {
	const least = 0x1p-126
	isSmall := func(v float32) bool { return -least < v && v < least && v != 0 }
	if !slices.ContainsFunc(w, isSmall) {
		return w, 0
	}
	var largest float32
	for _, v := range w {
		largest = max(largest, v, -v)
	}
	exponent = -math.Ilogb(float64(largest))
	x = make([]float32, len(w))
	for i, v := range w {
		if v = float32(math.Ldexp(float64(v), exponent)); !isSmall(v) {
			x[i] = v
		}
	}
	return x, exponent
}

// scale multiplies the part by 2^exponent.
func (p *Part) scale(exponent int) {
	factor := math.Ldexp(1, exponent)
	for i := range p.Right {
		p.Right[i] *= factor
	}
}

// project returns Q·(Qᵀ·W).
func project(w []float32, rows, cols int, q []float64, rank int) Part {
	right := make([]float64, rank*cols)
	for i := range rows {
		line := w[i*cols : (i+1)*cols]
		for k := range rank {
			c := q[i*rank+k]
			dst := right[k*cols : (k+1)*cols]
			for j, x := range line {
				dst[j] += float64(c * float64(x))
			}
		}
	}
	return Part{Rank: rank, Left: q, Right: right}
}

// fullSingular uses a full decomposition.
func fullSingular(w []float32, rows, cols, rank int) (Part, error) {
	columns := make([][]float64, cols)
	for j := range columns {
		columns[j] = make([]float64, rows)
		for i := range columns[j] {
			columns[j][i] = float64(w[i*cols+j])
		}
	}
	u, _, err := decompose(columns, rows)
	if err != nil {
		return Part{}, err
	}
	q := make([]float64, rows*rank)
	for i := range rows {
		for k := range rank {
			q[i*rank+k] = u.At(i, k)
		}
	}
	return project(w, rows, cols, q, rank), nil
}

// krylov finds the leading left singular vectors by block Lanczos bidiagonalisation with full
// reorthogonalisation (Golub, Luk and Overton, 1981). The spaces of U and V grow in turn. The
// singular vectors of W are those of the small matrix Uᵀ·W·V once W maps them into the spaces, at
// the latest when a space is complete.
func krylov(w []float32, rows, cols, rank int) ([]float64, error) {
	rng := rand.New(rand.NewPCG(1, 2)) // a fixed seed
	u, v := &basis{size: rows}, &basis{size: cols}
	var small [][]float64 // Uᵀ·W·V by columns, without trailing zeros
	look := rank          // size of V at the next convergence check
	next := random(rng, cols)
	for {
		added := v.extend(next)
		if added == 0 { // the spaces are closed, and may lack a direction
			next = random(rng, cols)
			if added = v.extend(next); added == 0 {
				look = 0
			}
		}
		products := times(w, cols, v.newest(added))
		grown := u.extend(products)
		for _, p := range products {
			small = append(small, u.coefficients(p))
		}
		next = timesT(w, cols, u.newest(grown))
		full := v.n() == cols || u.n() == rows || added == 0
		if v.n() < look && !full {
			continue
		}
		if u.n() == 0 { // W is zero
			return make([]float64, rows*rank), nil
		}
		look = v.n() + max(block, v.n()/4)
		left, sigma, err := decompose(small, u.n())
		if err != nil {
			return nil, err
		}
		if full || len(sigma) >= rank && converged(left, sigma, v, next, rank) {
			return u.combine(left, rank), nil
		}
	}
}

// converged reports whether Wᵀ maps the leading vectors into V. next is Wᵀ times the newest vectors
// of U, the only ones that lead out of V.
func converged(left *mat.Dense, sigma []float64, v *basis, next [][]float64, rank int) bool {
	if len(next) == 0 {
		return true
	}
	outside := make([][]float64, len(next))
	for c, x := range next {
		outside[c] = slices.Clone(x)
		v.takeOut(outside[c])
	}
	n, _ := left.Dims()
	residual := make([]float64, v.size)
	for i := range rank {
		clear(residual)
		for c, x := range outside {
			blas64.Axpy(left.At(n-len(next)+c, i), vector(x), vector(residual))
		}
		if blas64.Nrm2(vector(residual)) > tolerance*sigma[0] {
			return false
		}
	}
	return true
}

// decompose returns the left singular vectors and the singular values of a matrix given by columns.
func decompose(columns [][]float64, rows int) (u *mat.Dense, sigma []float64, err error) {
	m := mat.NewDense(rows, len(columns), nil)
	for j, c := range columns {
		for i, x := range c {
			m.Set(i, j, x)
		}
	}
	var svd mat.SVD
	if !svd.Factorize(m, mat.SVDThinU) {
		return nil, nil, fmt.Errorf("the singular values of a %d×%d matrix do not converge", rows,
			len(columns))
	}
	u = new(mat.Dense)
	svd.UTo(u)
	return u, svd.Values(nil), nil
}

// basis is a growing set of orthonormal vectors.
type basis struct {
	size    int
	vectors [][]float64
}

func (b *basis) n() int                   { return len(b.vectors) }
func (b *basis) newest(n int) [][]float64 { return b.vectors[len(b.vectors)-n:] }

// extend adds the directions that the basis lacks, and returns their number.
func (b *basis) extend(vectors [][]float64) (added int) {
	for _, x := range vectors {
		y := slices.Clone(x)
		before := blas64.Nrm2(vector(y))
		b.takeOut(y)
		if norm := blas64.Nrm2(vector(y)); norm > dependent*before && b.n() < b.size {
			blas64.Scal(1/norm, vector(y))
			b.vectors = append(b.vectors, y)
			added++
		}
	}
	return added
}

// dependent is the share of a vector that rounding leaves after removing a basis that contains it.
const dependent = 0x1p-44

// takeOut removes from x its part in the basis. Two passes suffice (Giraud, Langou and Rozložník,
// 2005).
func (b *basis) takeOut(x []float64) {
	for range 2 {
		for _, q := range b.vectors {
			blas64.Axpy(-dot(q, x), vector(q), vector(x))
		}
	}
}

func (b *basis) coefficients(x []float64) []float64 {
	c := make([]float64, b.n())
	for i, q := range b.vectors {
		c[i] = dot(q, x)
	}
	return c
}

// combine returns the basis times the first columns of a small matrix, row-major, padded with zero
// columns.
func (b *basis) combine(small *mat.Dense, rank int) []float64 {
	q := make([]float64, b.size*rank)
	_, n := small.Dims()
	for i, v := range b.vectors {
		for k := range min(n, rank) {
			c := small.At(i, k)
			for row, x := range v {
				q[row*rank+k] += float64(c * x)
			}
		}
	}
	return q
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
func times(w []float32, cols int, xs [][]float64) [][]float64 {
	rows := len(w) / cols
	ys := make([][]float64, len(xs))
	for c, x := range xs {
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
	return ys
}

// timesT returns Wᵀ·y for several y.
func timesT(w []float32, cols int, ys [][]float64) [][]float64 {
	xs := make([][]float64, len(ys))
	for c := range ys {
		xs[c] = make([]float64, cols)
	}
	for i := range len(w) / cols {
		line := w[i*cols:][:cols]
		for c, y := range ys {
			f, x := y[i], xs[c][:len(line)]
			for j, v := range line {
				x[j] += float64(f * float64(v))
			}
		}
	}
	return xs
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

func vector(v []float64) blas64.Vector { return blas64.Vector{N: len(v), Inc: 1, Data: v} }

func dot(a, b []float64) float64 { return blas64.Dot(vector(a), vector(b)) }
