// Package krylov searches for the leading singular vectors of a large matrix A (m×n), by block
// Golub–Kahan–Lanczos with full reorthogonalisation (Golub, Luk and Overton, 1981).
//
// A Space has an orthonormal basis V of a Krylov space of AᵀA, and the products A·V. Its singular
// values are those of A·V, and approach those of A from below. The caller grows the space and
// decides when they have settled:
//
//	s := krylov.New(a, krylov.Single, options)
//	for !s.Closed {
//		err := s.Grow(ctx)
//		sigma, err := s.Values(ctx)
//		…
//	}
//	u, v, err := s.Vectors(ctx, rank)
//
// The results do not depend on the number of workers, if the products do not.
package krylov

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/loratool/loratool/internal/dense"
)

// Matrix is A, given by its products with vectors.
type Matrix interface {
	// Dims returns the number of rows m and of columns n.
	Dims() (m, n int)
	// Mul returns A·x for each x.
	Mul(ctx context.Context, xs [][]float64) ([][]float64, error)
	// MulT returns Aᵀ·y for each y.
	MulT(ctx context.Context, ys [][]float64) ([][]float64, error)
}

// Twofold is a Matrix that may find both products in one pass over A.
type Twofold interface {
	Matrix
	// MulBoth returns A·x and Aᵀ·A·x for each x. The latter is nil if it would take another pass.
	MulBoth(ctx context.Context, xs [][]float64) (ys, zs [][]float64, err error)
}

// Precision is that of the products with A.
type Precision int

const (
	// Single is for products rounded to float32. The space keeps Y = A·V and solves YᵀY: the square
	// roots of float64 have more digits than the products.
	Single Precision = iota
	// Double is for products in float64. The space keeps an orthonormal basis U of A·V and solves
	// UᵀAV, which keeps all digits. It costs about twice as much beside the products.
	Double
)

// unit is the unit roundoff of the products.
func (p Precision) unit() float64 {
	if p == Double {
		return 0x1p-53
	}
	return 0x1p-24
}

// rest is the share of ‖A‖² outside an invariant space that counts as rounding.
func (p Precision) rest() float64 {
	if p == Double {
		return 1e-14
	}
	return 1e-10
}

// Options of a Space.
type Options struct {
	Energy  float64    // ‖A‖_F²
	Width   int        // vectors of a block; more than one, to find equal singular values
	Random  *rand.Rand // for the first block
	Workers int        // goroutines; 0 means one per processor
}

// Space is a growing Krylov space.
type Space struct {
	// Closed says that the space cannot grow: it contains all of A, but for rounding.
	Closed bool

	a         Matrix
	precision Precision
	options   Options
	right     Basis       // V
	left      Basis       // U, or A·V in single precision
	newest    int         // vectors of the last block of left
	first     int         // vectors of the first block of right
	largest   float64     // norm of a vector of A·V: a lower bound of σ₁ close enough to scale noise
	small     []float64   // UᵀAV, or YᵀY; rows of right.Size() elements
	image     [][]float64 // Aᵀ times the last block of left; nil if not known
	vectors   []float64   // left singular vectors of small as columns; nil if not known
	sigma     []float64
}

// New returns an empty space of A. Its first block is random.
func New(a Matrix, p Precision, o Options) *Space {
	s := &Space{a: a, precision: p, options: o}
	m, n := a.Dims()
	s.right, s.left = Basis{Dim: n, Workers: o.Workers}, Basis{Dim: m, Workers: o.Workers}
	return s
}

// NewAt is New with a first block, whose vectors need not be orthonormal. It overwrites them.
func NewAt(a Matrix, p Precision, o Options, start [][]float64) *Space {
	s := New(a, p, o)
	s.image = start
	return s
}

// Size returns the dimension of the space.
func (s *Space) Size() int { return s.right.Size() }

// Grow adds a block to the space. It closes the space if there is none to add, or if none can
// follow.
func (s *Space) Grow(ctx context.Context) error {
	added, err := s.extend(ctx)
	if err != nil {
		return err
	}
	if s.first == 0 {
		s.first = added
	}
	if added > 0 {
		err = s.project(ctx, added)
	}
	s.Closed = added == 0 || s.right.Size() >= s.right.Dim ||
		s.precision == Double && s.left.Size() >= s.left.Dim
	return err
}

// extend adds the next block to V. It adds nothing if only rounding is outside the space.
func (s *Space) extend(ctx context.Context) (added int, err error) {
	if s.right.Size() == 0 && s.image == nil {
		return s.restart(ctx)
	}
	if err := s.findImage(ctx); err != nil {
		return 0, err
	}
	// Rounding alone leaves up to unit·σ₁·‖Y‖ per vector.
	noise := s.precision.unit() * s.largest * math.Sqrt(sumSquares(s.last()...)/float64(max(1, s.newest)))
	added, err = s.right.Extend(ctx, s.image, noise)
	s.image = nil
	if err != nil || added > 0 || s.right.Size() == s.right.Dim {
		return added, err
	}
	// The space is invariant. Started from b vectors, it contains at most b for one singular
	// value, however often that value occurs. A new start finds the remaining energy.
	if s.options.Energy-s.captured() <= s.precision.rest()*s.options.Energy {
		return 0, nil
	}
	return s.restart(ctx)
}

// restart adds a random block to V.
func (s *Space) restart(ctx context.Context) (added int, err error) {
	xs := zeros(min(s.options.Width, s.right.Dim-s.right.Size()), s.right.Dim)
	for _, x := range xs {
		for i := range x {
			x[i] = s.options.Random.NormFloat64()
		}
	}
	return s.right.Extend(ctx, xs, 0)
}

// last returns the last block of left.
func (s *Space) last() [][]float64 { return s.left.Vectors[s.left.Size()-s.newest:] }

// findImage multiplies the last block of left by Aᵀ.
func (s *Space) findImage(ctx context.Context) (err error) {
	if s.image == nil && s.newest > 0 {
		s.image, err = s.a.MulT(ctx, s.last())
	}
	return err
}

// project extends the projected problem by the last b vectors of V.
func (s *Space) project(ctx context.Context, b int) error {
	products, err := s.multiply(ctx, s.right.Vectors[s.right.Size()-b:])
	if err != nil {
		return err
	}
	for _, y := range products {
		s.largest = max(s.largest, dense.Norm(y))
	}
	p, q := s.left.Size(), s.right.Size()
	if s.precision == Single {
		s.left.Vectors = append(s.left.Vectors, products...)
		s.newest = b
	} else if s.newest, err = s.left.Extend(ctx, clones(products), 4*s.precision.unit()*s.largest); err != nil {
		return err
	}
	c, err := s.left.Coefficients(ctx, products)
	if err != nil {
		return err
	}
	small := make([]float64, s.left.Size()*q)
	for i := range s.left.Size() {
		if i < p {
			copy(small[i*q:], s.small[i*(q-b):(i+1)*(q-b)])
		}
		copy(small[(i+1)*q-b:(i+1)*q], c[i*b:])
	}
	if s.precision == Single { // YᵀY is symmetric
		for i := range q {
			for j := q - b; j < q; j++ {
				small[j*q+i] = small[i*q+j]
			}
		}
	}
	s.small, s.vectors = small, nil
	return nil
}

// multiply returns A·x for each x. In single precision the products become the last block of left,
// and their images may be known too.
func (s *Space) multiply(ctx context.Context, xs [][]float64) (ys [][]float64, err error) {
	if a, ok := s.a.(Twofold); ok && s.precision == Single {
		ys, s.image, err = a.MulBoth(ctx, xs)
		return ys, err
	}
	return s.a.Mul(ctx, xs)
}

// captured returns the energy within the space: Σσ² of the projected problem.
func (s *Space) captured() (sum float64) {
	if s.precision == Double {
		return sumSquares(s.small)
	}
	for i := range s.right.Size() {
		sum += s.small[i*s.right.Size()+i]
	}
	return sum
}

// Values returns the singular values within the space, descending, as many as its dimension.
func (s *Space) Values(ctx context.Context) ([]float64, error) {
	q := s.right.Size()
	if s.precision == Single {
		squares, err := dense.Eigenvalues(ctx, s.small, q)
		return roots(squares), err
	}
	sigma, err := dense.SingularValues(ctx, slices.Clone(s.small), s.left.Size(), q)
	return padded(sigma, q), err
}

// solve computes the singular values and the left singular vectors of the projected problem.
func (s *Space) solve(ctx context.Context) (err error) {
	if s.vectors != nil {
		return nil
	}
	q := s.right.Size()
	if s.precision == Single {
		var squares []float64
		squares, s.vectors, err = dense.Eigen(ctx, slices.Clone(s.small), q)
		s.sigma = roots(squares)
		return err
	}
	s.sigma, s.vectors, err = dense.LeftVectors(ctx, slices.Clone(s.small), s.left.Size(), q)
	return err
}

// Vectors returns the first r left singular vectors within the space (m×r), and the right ones
// (n×r). The vector of a singular value 0 may be zero.
func (s *Space) Vectors(ctx context.Context, r int) (u, v []float64, err error) {
	if err := s.solve(ctx); err != nil {
		return nil, nil, err
	}
	p := s.left.Size()
	right := s.vectors
	if s.precision == Double {
		right = make([]float64, s.right.Size()*p) // (UᵀAV)ᵀ·L
		dense.AddTransposedProduct(right, s.small, s.vectors, p, s.right.Size(), p)
	}
	if u, err = s.left.Combine(ctx, s.vectors, p, r); err != nil {
		return nil, nil, err
	}
	if v, err = s.right.Combine(ctx, right, p, r); err != nil {
		return nil, nil, err
	}
	if s.precision == Double {
		divide(v, s.sigma, r)
	} else {
		divide(u, s.sigma, r)
	}
	return u, v, nil
}

// Left is Vectors without the right ones.
func (s *Space) Left(ctx context.Context, r int) ([]float64, error) {
	u, _, err := s.Vectors(ctx, r)
	return u, err
}

// Weights returns the squares of the right singular vectors within the space, each projected onto
// the first block. For a random first block of b vectors of n elements, n/b·Σ weight·f(σ²)
// estimates the trace of f(AᵀA) (stochastic Lanczos quadrature: Ubaru, Chen and Saad, 2017). The
// space has single precision.
func (s *Space) Weights(ctx context.Context) ([]float64, error) {
	if err := s.solve(ctx); err != nil {
		return nil, err
	}
	q := s.right.Size()
	weights := make([]float64, q)
	for j := range s.first {
		for i, x := range s.vectors[j*q : (j+1)*q] {
			weights[i] += x * x
		}
	}
	return weights, nil
}

// Residual returns the largest of the first r Residuals, and σ₁. The residual is infinite if the
// space has fewer triplets.
func (s *Space) Residual(ctx context.Context, r int) (residual, largest float64, err error) {
	if s.left.Size() < r {
		return math.Inf(1), s.largest, nil
	}
	residuals, err := s.Residuals(ctx, r)
	if err != nil {
		return 0, 0, err
	}
	return slices.Max(residuals), s.sigma[0], nil
}

// Residuals returns ‖Aᵀuᵢ − σᵢvᵢ‖ of the first r singular triplets within the space, which has as
// many. They are triplets of A where it is 0. In single precision it is 0 if σᵢ is.
func (s *Space) Residuals(ctx context.Context, r int) ([]float64, error) {
	residuals := make([]float64, r)
	if err := s.solve(ctx); err != nil {
		return nil, err
	}
	if err := s.findImage(ctx); err != nil || s.newest == 0 {
		return residuals, err
	}
	// Only the last block of left leads out of V: the images of the others have been added to it.
	outside := clones(s.image)
	for range 2 {
		if err := s.right.Project(ctx, outside); err != nil {
			return nil, err
		}
	}
	p := s.left.Size()
	lost := make([]float64, s.right.Dim)
	for t := range residuals {
		clear(lost)
		for i, x := range outside {
			dense.AddScaled(lost, s.vectors[(p-s.newest+i)*p+t], x)
		}
		residuals[t] = dense.Norm(lost)
	}
	if s.precision == Single { // the combinations of Y are σᵢuᵢ
		divide(residuals, s.sigma, r)
	}
	return residuals, nil
}

// divide divides column i of x (…×r) by sigma[i]. A column of a zero becomes zero.
func divide(x, sigma []float64, r int) {
	by := make([]float64, r)
	for i, s := range sigma[:min(r, len(sigma))] {
		if s > 0 {
			by[i] = 1 / s
		}
	}
	for i := range x {
		x[i] *= by[i%r]
	}
}

// padded appends zeros up to n values.
func padded(x []float64, n int) []float64 { return append(x, make([]float64, n-len(x))...) }

func roots(squares []float64) []float64 {
	s := make([]float64, len(squares))
	for i, x := range squares {
		s[i] = math.Sqrt(max(x, 0))
	}
	return s
}

func sumSquares(xs ...[]float64) (sum float64) {
	for _, x := range xs {
		for _, v := range x {
			sum += v * v
		}
	}
	return sum
}
