package krylov

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/testkit"
	"gonum.org/v1/gonum/mat"
)

// made returns a matrix with the singular values σᵢ = value(i), and its exact decomposition's
// values but for rounding to float32.
func made(m, n int, value func(i int) float64) (*Float32, []float64) {
	rng := rand.New(rand.NewPCG(uint64(m), uint64(n)))
	orthonormal := func(rows, cols int) *mat.Dense {
		x := mat.NewDense(rows, cols, nil)
		for i := range rows {
			for j := range cols {
				x.Set(i, j, rng.NormFloat64())
			}
		}
		var qr mat.QR
		qr.Factorize(x)
		var q mat.Dense
		qr.QTo(&q)
		return mat.DenseCopyOf(q.Slice(0, rows, 0, cols))
	}
	k := min(m, n)
	u, v := orthonormal(m, k), orthonormal(n, k)
	for j := range k {
		for i := range m {
			u.Set(i, j, u.At(i, j)*value(j))
		}
	}
	var product mat.Dense
	product.Mul(u, v.T())
	a := &Float32{M: m, N: n, Data: make([]float32, m*n)}
	exact := mat.NewDense(m, n, nil)
	for i := range m {
		for j := range n {
			a.Data[i*n+j] = float32(product.At(i, j))
			exact.Set(i, j, float64(a.Data[i*n+j]))
		}
	}
	var svd mat.SVD
	svd.Factorize(exact, mat.SVDNone)
	return a, svd.Values(nil)
}

// rounded rounds the products of a matrix to float32.
type rounded struct{ *Float32 }

func (r rounded) Mul(ctx context.Context, xs [][]float64) ([][]float64, error) {
	ys, err := r.Float32.Mul(ctx, xs)
	return narrow(ys), err
}

func (r rounded) MulT(ctx context.Context, ys [][]float64) ([][]float64, error) {
	xs, err := r.Float32.MulT(ctx, ys)
	return narrow(xs), err
}

func narrow(xs [][]float64) [][]float64 {
	for _, x := range xs {
		for i, v := range x {
			x[i] = float64(float32(v))
		}
	}
	return xs
}

func spaceOf(a *Float32, p Precision, workers int) *Space {
	energy := 0.0
	for _, x := range a.Data {
		energy += float64(x) * float64(x)
	}
	o := Options{Energy: energy, Width: 4, Random: rand.New(rand.NewPCG(1, 2)), Workers: workers}
	if p == Single {
		return New(rounded{a}, p, o)
	}
	return New(a, p, o)
}

// TestClosedSpaceHasTheSingularValues: values and vectors equal those of a full decomposition, but
// for the rounding of the products, which the precision names. Equal values occur more often than a
// block is wide.
func TestClosedSpaceHasTheSingularValues(t *testing.T) {
	for name, value := range map[string]func(i int) float64{
		"slope":  func(i int) float64 { return 1 / float64(i+1) },
		"steep":  func(i int) float64 { return math.Ldexp(1, -i) },
		"equal":  func(i int) float64 { return 1 },
		"rank 3": func(i int) float64 { return max(0, float64(3-i)) },
	} {
		for _, shape := range [][2]int{{70, 30}, {30, 30}, {1200, 20}} {
			a, want := made(shape[0], shape[1], value)
			for _, p := range []Precision{Single, Double} {
				s := spaceOf(a, p, 2)
				for !s.Closed {
					if err := s.Grow(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				sigma, err := s.Values(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				// Products add roundings of m terms. The space may close before it has all of A.
				rounding := 10 * float64(a.M) * p.unit()
				limit := max(rounding, math.Sqrt(p.rest())) * want[0]
				for i, w := range want {
					got := 0.0
					if i < len(sigma) {
						got = sigma[i]
					}
					if math.Abs(got-w) > limit {
						t.Errorf("%s, %v, precision %d: σ_%d = %v, want %v", name, shape, p, i+1, got, w)
					}
				}
				checkVectors(t, name, s, a, min(3, len(sigma)), rounding)
			}
		}
	}
}

// checkVectors checks A·v = σ·u, and that the vectors of values above 0 are orthonormal.
func checkVectors(t *testing.T, name string, s *Space, a *Float32, r int, limit float64) {
	t.Helper()
	u, v, err := s.Vectors(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	m, n := a.Dims()
	exact := mat.NewDense(m, n, nil)
	for i, x := range a.Data {
		exact.Set(i/n, i%n, float64(x))
	}
	left, right := mat.NewDense(m, r, u), mat.NewDense(n, r, v)
	var image, gram mat.Dense
	image.Mul(exact, right)
	gram.Mul(left.T(), left)
	for i := range r {
		for j := range r {
			same := 0.0
			if i == j {
				same = 1
			}
			if d := math.Abs(gram.At(i, j) - same); d > limit {
				t.Errorf("%s: uᵀu of %d and %d is off by %v", name, i, j, d)
			}
		}
		for row := range m {
			if d := math.Abs(image.At(row, i) - s.sigma[i]*left.At(row, i)); d > limit*s.sigma[0] {
				t.Fatalf("%s: A·v_%d and σ·u differ by %v", name, i+1, d)
			}
		}
	}
}

// TestResidualFallsToTheRounding: in double precision the triplets of a space that is not closed
// become those of the matrix, to 2⁻⁴⁹ of the largest value, and equal those of a full
// decomposition.
func TestResidualFallsToTheRounding(t *testing.T) {
	a, want := made(300, 240, func(i int) float64 { return 1 / float64(1+i*i) })
	s := spaceOf(a, Double, 1)
	for {
		if err := s.Grow(t.Context()); err != nil {
			t.Fatal(err)
		}
		residual, largest, err := s.Residual(t.Context(), 5)
		if err != nil {
			t.Fatal(err)
		}
		if residual <= 0x1p-49*largest {
			break
		}
		if s.Closed {
			t.Fatalf("the space closed with a residual of %v", residual)
		}
	}
	sigma, err := s.Values(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range want[:5] {
		if math.Abs(sigma[i]-w) > 100*0x1p-53*want[0] {
			t.Errorf("σ_%d = %v, want %v", i+1, sigma[i], w)
		}
	}
	if s.Closed {
		t.Error("the space had to close before its residual fell")
	}
}

// TestSpaceDoesNotDependOnWorkers, for pieces of vectors and blocks of rows in different orders.
func TestSpaceDoesNotDependOnWorkers(t *testing.T) {
	a, _ := made(2100, 40, func(i int) float64 { return 1 / float64(i+1) })
	for _, p := range []Precision{Single, Double} {
		var want []float64
		for _, workers := range []int{1, 2, 5} {
			a.Workers = workers
			s := spaceOf(a, p, workers)
			for range 3 {
				if err := s.Grow(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			u, v, err := s.Vectors(t.Context(), 4)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Concat(u, v)
			if want == nil {
				want = got
			}
			if !slices.Equal(got, want) {
				t.Errorf("precision %d: %d workers give other vectors than one", p, workers)
			}
		}
	}
}

func TestSpaceEndsWithItsContext(t *testing.T) {
	a, _ := made(60, 50, func(i int) float64 { return 1 / float64(i+1) })
	for _, p := range []Precision{Single, Double} {
		testkit.EndsAnywhere(t, 50, 11, func(ctx context.Context) error {
			s := spaceOf(a, p, 1)
			for !s.Closed {
				if err := s.Grow(ctx); err != nil {
					return err
				}
			}
			_, _, err := s.Vectors(ctx, 5)
			return err
		})
	}
}

// TestWeightsAreAQuadrature: with a first block X, Σ weight·σ^(2k) is tr Xᵀ(AᵀA)^k·X, for every k
// that the space can tell.
func TestWeightsAreAQuadrature(t *testing.T) {
	a, _ := made(80, 50, func(i int) float64 { return math.Pow(float64(i+1), -0.5) })
	s := New(rounded{a}, Single, Options{Energy: 1e9, Width: 3, Random: rand.New(rand.NewPCG(1, 2))})
	for range 4 {
		if err := s.Grow(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	weights, err := s.Weights(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	xs := s.right.Vectors[:3]
	for k := range 4 {
		var want, got float64
		for i, x := range xs {
			for j, v := range x {
				want += v * s.right.Vectors[i][j]
			}
		}
		for i, w := range weights {
			got += w * math.Pow(s.sigma[i], 2*float64(k))
		}
		if math.Abs(got-want) > 1e-5*want {
			t.Errorf("the quadrature of σ^%d is %v, want %v", 2*k, got, want)
		}
		ys, err := a.Mul(t.Context(), xs)
		if err == nil {
			xs, err = a.MulT(t.Context(), ys)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
