// Package thin computes with matrices that are products of two thin factors, such as the ΔW of a
// LoRA layer. No product is ever formed: a matrix m×n of rank r takes the memory of its factors,
// and about (m+n)·r² operations, all in float64.
package thin

import (
	"context"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/dense"
)

// Matrix is Δ = 2^Exponent·B·Aᵀ.
type Matrix struct {
	M, N, R  int
	B        []float64 // M×R, row-major
	A        []float64 // N×R, row-major: the transpose of a layer's A
	Exponent int

	gramB, gramA []float64 // BᵀB and AᵀA, once they were needed
}

// Term is a summand of a Sum.
type Term struct {
	Weight float64
	*Matrix
}

// Sum returns Σ Weight·Δ, of the rank Σ R. All matrices must have the same size. A weight is
// rounded into the columns of B, with a relative error of at most 2⁻⁵³.
func Sum(terms ...Term) *Matrix {
	first := terms[0].Matrix
	s := &Matrix{M: first.M, N: first.N, Exponent: math.MinInt}
	for _, t := range terms {
		s.R += t.R
		s.Exponent = max(s.Exponent, t.Exponent)
	}
	s.B, s.A = make([]float64, s.M*s.R), make([]float64, s.N*s.R)
	at := 0
	for _, t := range terms {
		scale := math.Ldexp(t.Weight, max(t.Exponent-s.Exponent, -2000))
		for i := range s.M {
			into := s.B[i*s.R+at:]
			for k, v := range t.B[i*t.R : (i+1)*t.R] {
				into[k] = scale * v
			}
		}
		for j := range s.N {
			copy(s.A[j*s.R+at:], t.A[j*t.R:(j+1)*t.R])
		}
		at += t.R
	}
	return s
}

// Balance scales the columns of B and A by powers of two, so that no square of an important element
// overflows or vanishes, and moves what is left into Exponent. Largest elements are then between ½
// and 1 in a column of B, and at most 1 in a column of A. The product stays the same, except that
// columns without an effect become zeros. All elements must be finite.
func (x *Matrix) Balance() { x.balance() }

// balancing is how Balance scales the columns: by powers of two.
type balancing struct {
	a, b     []int
	exponent int
}

func (x *Matrix) balance() balancing {
	x.gramB, x.gramA = nil, nil
	by := balancing{a: make([]int, x.R), b: make([]int, x.R)}
	exponentsA, exponentsB := columnExponents(x.A, x.R), columnExponents(x.B, x.R)
	exponent := math.MinInt
	for k := range x.R {
		if exponentsA[k] != zeroColumn && exponentsB[k] != zeroColumn {
			exponent = max(exponent, exponentsA[k]+exponentsB[k])
		}
	}
	if exponent == math.MinInt { // Δ is zero
		clear(x.A)
		clear(x.B)
		x.Exponent = 0
		return by
	}
	by.exponent = exponent
	for k := range x.R {
		by.a[k] = -exponent
		if exponentsA[k] == zeroColumn || exponentsB[k] == zeroColumn {
			clearColumn(x.A, k, x.R)
			clearColumn(x.B, k, x.R)
			continue
		}
		by.a[k], by.b[k] = exponentsB[k]-exponent, -exponentsB[k]
	}
	x.scale(by)
	return by
}

// scale scales the columns. A column of zeros stays one.
func (x *Matrix) scale(by balancing) {
	for k := range x.R {
		scaleColumn(x.A, k, x.R, by.a[k])
		scaleColumn(x.B, k, x.R, by.b[k])
	}
	x.Exponent += by.exponent
}

// Scale multiplies Δ by a number, exactly where it is a power of two.
func (x *Matrix) Scale(by float64) {
	fraction, exponent := math.Frexp(by)
	x.gramB = nil
	for i := range x.B {
		x.B[i] *= fraction
	}
	x.Exponent += exponent
}

// zeroColumn is the exponent of a column of zeros.
const zeroColumn = math.MinInt32

// columnExponents returns for each column of x (·×r) the exponent e of its largest element, which
// lies between 2^(e−1) and 2^e.
func columnExponents(x []float64, r int) []int {
	largest := make([]float64, r)
	for i := 0; i < len(x); i += r {
		for k, v := range x[i : i+r] {
			if v = math.Abs(v); v > largest[k] {
				largest[k] = v
			}
		}
	}
	exponents := make([]int, r)
	for k, v := range largest {
		exponents[k] = zeroColumn
		if v > 0 {
			_, exponents[k] = math.Frexp(v)
		}
	}
	return exponents
}

// scaleColumn multiplies a column by 2^e, in steps that float64 can express.
func scaleColumn(x []float64, k, r, e int) {
	for e != 0 {
		step := max(-1000, min(e, 1000))
		factor := math.Ldexp(1, step)
		for i := k; i < len(x); i += r {
			x[i] *= factor
		}
		e -= step
	}
}

func clearColumn(x []float64, k, r int) {
	for i := k; i < len(x); i += r {
		x[i] = 0
	}
}

// Inner returns the inner product Σ Δ_ij·Γ_ij of two matrices of the same size, as a number that
// 2^(x.Exponent+y.Exponent) multiplies. Its error is some 2⁻⁵⁰·‖Δ‖·‖Γ‖.
func Inner(ctx context.Context, x, y *Matrix) (float64, error) {
	b, err := gram(ctx, x.B, y.B, x.M, x.R, y.R)
	if err != nil {
		return 0, err
	}
	a, err := gram(ctx, x.A, y.A, x.N, x.R, y.R)
	if err != nil {
		return 0, err
	}
	return dense.Dot(b, a), nil
}

// Norm returns ‖Δ‖_F as a number that 2^Exponent multiplies. If the columns cancel each other, as
// they do in a difference of two nearly equal products, its error is some 2⁻⁵⁰ of the norm of the
// parts. Norm leaves the matrix alone.
func (x *Matrix) Norm(ctx context.Context) (float64, error) {
	if err := x.grams(ctx); err != nil {
		return 0, err
	}
	var sum, parts float64
	for i, g := range x.gramB {
		sum += g * x.gramA[i]
		parts += math.Abs(g * x.gramA[i])
	}
	if sum > cancelled*parts || parts == 0 {
		return math.Sqrt(sum), nil
	}
	// Squares of the parts hide the sum. Triangles have the parts themselves.
	copied := Matrix{M: x.M, N: x.N, R: x.R, B: slices.Clone(x.B), A: slices.Clone(x.A)}
	core, err := copied.householderCore(ctx)
	if err != nil {
		return 0, err
	}
	return dense.Norm(core.values), nil
}

// Distance returns ‖Δ − by·Γ‖_F of two matrices of the same size, with the accuracy of Norm.
func Distance(ctx context.Context, x *Matrix, by float64, y *Matrix) (float64, error) {
	if by == 1 && x.Exponent == y.Exponent && slices.Equal(x.B, y.B) && slices.Equal(x.A, y.A) {
		return 0, nil
	}
	if d, ok, err := apart(ctx, x, by, y); ok || err != nil {
		return d, err
	}
	d := Sum(Term{1, x}, Term{-by, y})
	norm, err := d.Norm(ctx)
	return math.Ldexp(norm, d.Exponent), err
}

// apart returns ‖Δ − by·Γ‖_F by the norms and the inner product of two matrices. ok is false if
// nearly all cancels.
func apart(ctx context.Context, x *Matrix, by float64, y *Matrix) (distance float64, ok bool, err error) {
	a, err := x.Norm(ctx)
	if err != nil {
		return 0, false, err
	}
	b, err := y.Norm(ctx)
	if err != nil {
		return 0, false, err
	}
	product, err := Inner(ctx, x, y)
	if err != nil {
		return 0, false, err
	}
	// In units of 2^x.Exponent, and then of the larger of the two.
	b, product = math.Ldexp(b, y.Exponent-x.Exponent)*math.Abs(by), math.Ldexp(product, y.Exponent-x.Exponent)*by
	if most := max(a, b); most > 0 {
		if squares := (a/most)*(a/most) + (b/most)*(b/most) - 2*product/most/most; squares > cancelled {
			return math.Ldexp(most*math.Sqrt(squares), x.Exponent), true, nil
		}
	}
	return 0, false, nil
}

// Lost returns ‖Δ − by·Γ‖_F as Distance does, for a Γ that rounding has made of a nearby matrix
// near, with factors of the same shape, of which ‖Δ − by·near‖_F is known to be left. Where nearly
// all cancels, the differences of the factors give the norm, with fewer operations than Distance
// takes for it. If Δ − by·near is orthogonal to the columns of near's factors, as the rest of a
// truncation is, the result is then an upper bound, above the norm by at most the share of the
// rounding. Lost balances the factors of both, which begin with the same exponent.
func Lost(ctx context.Context, x *Matrix, by, left float64, near, rounded *Matrix) (float64, error) {
	scales := rounded.balance()
	if d, ok, err := apart(ctx, x, by, rounded); ok || err != nil {
		return d, err
	}
	near.scale(scales)
	// near − Γ = E_B·Aᵀ + B̂·E_Aᵀ, with the differences E of the factors.
	k := near.R
	change := &Matrix{M: x.M, N: x.N, R: 2 * k, B: make([]float64, 2*k*x.M), A: make([]float64, 2*k*x.N)}
	both := &Matrix{M: x.M, N: x.N, R: k, B: make([]float64, k*x.M), A: make([]float64, k*x.N)}
	for i, v := range rounded.B {
		e := near.B[i] - v
		both.B[i] = e
		change.B[i/k*2*k+i%k], change.B[i/k*2*k+k+i%k] = e, v
	}
	for i, v := range rounded.A {
		e := near.A[i] - v
		both.A[i] = e
		change.A[i/k*2*k+i%k], change.A[i/k*2*k+k+i%k] = near.A[i], e
	}
	var norms [2]float64
	for i, m := range []*Matrix{change, both} {
		m.Exponent = rounded.Exponent
		m.Balance()
		norm, err := m.Norm(ctx)
		if err != nil {
			return 0, err
		}
		norms[i] = math.Ldexp(norm*math.Abs(by), m.Exponent)
	}
	return math.Hypot(math.Hypot(left, norms[0]), math.Sqrt(2*left)*math.Sqrt(norms[1])), nil
}

// cancelled is the share of a sum of products below which the rounding of the products, some 2⁻⁵⁰
// of them, counts.
const cancelled = 1e-9

// grams computes the Gram matrices of both factors, unless they are known.
func (x *Matrix) grams(ctx context.Context) (err error) {
	if x.gramB == nil {
		if x.gramB, err = gram(ctx, x.B, x.B, x.M, x.R, x.R); err != nil {
			return err
		}
	}
	if x.gramA == nil {
		x.gramA, err = gram(ctx, x.A, x.A, x.N, x.R, x.R)
	}
	return err
}

// gram returns XᵀY, for X (rows×a) and Y (rows×b).
func gram(ctx context.Context, x, y []float64, rows, a, b int) ([]float64, error) {
	g := make([]float64, a*b)
	step := max(1, pieceFlops/max(1, a*b))
	for i := 0; i < rows; i += step {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		k := min(step, rows-i)
		dense.AddTransposedProduct(g, x[i*a:(i+k)*a], y[i*b:(i+k)*b], k, a, b)
	}
	return g, nil
}

// pieceFlops is the number of multiplications between two checks of the context: less than a
// second.
const pieceFlops = 1 << 27
