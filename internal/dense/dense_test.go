package dense

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/testkit"
	"gonum.org/v1/gonum/mat"
)

// TestLargeFactorizationsStopBetweenPanels: each factorization checks the context once per panel
// and stops at the first check that fails.
func TestLargeFactorizationsStopBetweenPanels(t *testing.T) {
	lower(t)
	n := atOnce + 8*panel
	rng := rand.New(rand.NewPCG(91, 92))
	x := random64(rng, n*n)
	g := make([]float64, n*n)
	AddTransposedProduct(g, x, x, n, n, n)
	for what, run := range map[string]func(ctx context.Context) error{
		"Eigen": func(ctx context.Context) error {
			_, _, err := Eigen(ctx, slices.Clone(g), n)
			return err
		},
		"Eigenvalues": func(ctx context.Context) error {
			_, err := Eigenvalues(ctx, g, n)
			return err
		},
		"SingularValues": func(ctx context.Context) error {
			_, err := SingularValues(ctx, slices.Clone(x), n, n)
			return err
		},
		"Triangle": func(ctx context.Context) error {
			_, err := Triangle(ctx, slices.Clone(x), n, n)
			return err
		},
		"Cholesky": func(ctx context.Context) error {
			_, _, err := Cholesky(ctx, slices.Clone(g), n)
			return err
		},
		"LeftVectors": func(ctx context.Context) error {
			_, _, err := LeftVectors(ctx, slices.Clone(x), n, n)
			return err
		},
		"LeftVectors of a wide matrix": func(ctx context.Context) error {
			_, _, err := LeftVectors(ctx, random64(rng, 40*n*n/8), 40, n*n/8)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) { testkit.EndsAnywhere(t, 5, 7, run) })
	}
}

// TestLeftVectors compares with the definition, on both sides of atOnce: the vectors are
// orthonormal, and so are the rows of UᵀA but for the singular values, which are gonum's.
func TestLeftVectors(t *testing.T) {
	rng := rand.New(rand.NewPCG(95, 96))
	lower(t)
	n := atOnce + 9
	for name, c := range map[string]struct {
		a    []float64
		m, n int
	}{
		"small":          {random64(rng, 20*30), 20, 30},
		"wide":           {random64(rng, 7*atOnce*atOnce), 7, atOnce * atOnce},
		"large":          {random64(rng, n*n), n, n},
		"large and wide": {random64(rng, n*(n+20)), n, n + 20},
		"decays fast":    {graded(rng, n), n, n},
		"rank 3":         {lowRank(rng, n, 3), n, n},
	} {
		values, u, err := LeftVectors(t.Context(), slices.Clone(c.a), c.m, c.n)
		if err != nil {
			t.Fatal(name, err)
		}
		var svd mat.SVD
		if !svd.Factorize(mat.NewDense(c.m, c.n, slices.Clone(c.a)), mat.SVDNone) {
			t.Fatal("no truth")
		}
		// Backward stability allows errors of some n·u·σ₁; 10 leaves room for the constant.
		want, limit := svd.Values(nil), 0x1p-52*10*float64(c.m)*values[0]
		var rows, gram, product mat.Dense
		rows.Mul(mat.NewDense(c.m, c.m, u).T(), mat.NewDense(c.m, c.n, c.a))
		product.Mul(&rows, rows.T())
		gram.Mul(mat.NewDense(c.m, c.m, u).T(), mat.NewDense(c.m, c.m, u))
		for i, s := range want {
			if math.Abs(values[i]-s) > limit {
				t.Fatalf("%s: σ_%d = %v, want %v", name, i+1, values[i], s)
			}
			for j := range want {
				same := 0.0
				if i == j {
					same = 1
				}
				if got := product.At(i, j); math.Abs(got-same*s*s) > limit*values[0] {
					t.Fatalf("%s: rows %d and %d of UᵀA have product %v, σ = %v", name, i, j, got, s)
				}
				if got := gram.At(i, j); min(s, want[j]) > limit &&
					math.Abs(got-same) > limit/min(s, want[j]) {
					t.Fatalf("%s: vectors %d and %d have product %v", name, i, j, got)
				}
			}
		}
	}
}

// TestFactorizationsInPanels compares factorizations in panels with gonum's, and with the matrix.
func TestFactorizationsInPanels(t *testing.T) {
	lower(t)
	rng := rand.New(rand.NewPCG(93, 94))
	for _, n := range []int{atOnce + panel + 3} {
		for name, x := range map[string][]float64{
			"random":      random64(rng, n*n),
			"rank 3":      lowRank(rng, n, 3),
			"decays fast": graded(rng, n),
		} {
			g := make([]float64, n*n)
			AddTransposedProduct(g, x, x, n, n, n)
			values, vectors, err := Eigen(t.Context(), slices.Clone(g), n)
			if err != nil {
				t.Fatalf("%s, %d: %v", name, n, err)
			}
			alone, err := Eigenvalues(t.Context(), g, n)
			if err != nil {
				t.Fatal(err)
			}
			// Backward stability allows errors of some n·u·‖G‖; 10 leaves room for the constant.
			limit := 0x1p-52 * 10 * float64(n) * values[0]
			var product mat.Dense
			v := mat.NewDense(n, n, vectors)
			product.Product(v, mat.NewDiagDense(n, values), v.T())
			for i, want := range g {
				if got := product.RawMatrix().Data[i]; math.Abs(got-want) > limit {
					t.Fatalf("%s, %d: V·Λ·Vᵀ has %v at %d, G has %v", name, n, got, i, want)
				}
			}
			for i := range values {
				if math.Abs(values[i]-alone[i]) > limit || i > 0 && values[i] > values[i-1] {
					t.Fatalf("%s, %d: eigenvalue %d is %v, and %v without vectors", name, n, i, values[i], alone[i])
				}
			}
			var svd mat.SVD
			if !svd.Factorize(mat.NewDense(n, n, slices.Clone(x)), mat.SVDNone) {
				t.Fatal("no truth")
			}
			want := svd.Values(nil)
			sigma, err := SingularValues(t.Context(), slices.Clone(x), n, n)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Triangle(t.Context(), slices.Clone(x), n, n)
			if err != nil {
				t.Fatal(err)
			}
			ofR, err := SingularValues(t.Context(), r, n, n)
			if err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if limit := 0x1p-52 * 10 * float64(n) * want[0]; math.Abs(sigma[i]-want[i]) > limit || math.Abs(ofR[i]-want[i]) > limit {
					t.Fatalf("%s, %d: σ_%d = %v, of the triangle %v, want %v", name, n, i+1, sigma[i], ofR[i], want[i])
				}
			}
			factor, condition, err := Cholesky(t.Context(), slices.Clone(g), n)
			if err != nil {
				t.Fatal(err)
			}
			if truth := values[0] / values[n-1]; values[n-1] > 0 && truth < 1e6 && !(condition > truth/10) {
				t.Errorf("%s, %d: condition %.3g, want about %.3g", name, n, condition, truth)
			}
			if condition < 1e9 {
				again := make([]float64, n*n)
				AddTransposedProduct(again, factor, factor, n, n, n)
				for i := range g {
					if math.Abs(again[i]-g[i]) > limit {
						t.Fatalf("%s, %d: RᵀR has %v at %d, G has %v", name, n, again[i], i, g[i])
					}
				}
			}
		}
	}
}

// lower makes the panels work on small matrices, so that a test is quick.
func lower(t *testing.T) {
	before := atOnce
	atOnce = 40
	t.Cleanup(func() { atOnce = before })
}

func lowRank(rng *rand.Rand, n, r int) []float64 {
	x, a, b := make([]float64, n*n), random64(rng, n*r), random64(rng, n*r)
	AddProductTransposed(x, a, b, n, n, r)
	return x
}

// graded returns a random matrix, each column half as large as the one before.
func graded(rng *rand.Rand, n int) []float64 {
	x := random64(rng, n*n)
	for i := range x {
		x[i] = math.Ldexp(x[i], -(i % n))
	}
	return x
}

func random64(rng *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = rng.NormFloat64()
	}
	return x
}
