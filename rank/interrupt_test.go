package rank

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// endsAt is a context that ends at its n-th check.
type endsAt struct {
	context.Context
	n     int64
	looks atomic.Int64
}

func (c *endsAt) Err() error {
	if c.looks.Add(1) >= c.n {
		return context.Canceled
	}
	return nil
}

// TestLargeFactorizationsStopBetweenPanels: each factorization checks the context once per panel
// and stops at the first check that fails.
func TestLargeFactorizationsStopBetweenPanels(t *testing.T) {
	const n = atOnce + 8*panel
	rng := rand.New(rand.NewPCG(91, 92))
	x := random64(rng, n*n)
	g := make([]float64, n*n)
	addTransposedProduct(g, x, x, n, n, n)
	for what, run := range map[string]func(ctx context.Context) error{
		"symmetricEigen": func(ctx context.Context) error {
			_, _, err := symmetricEigen(ctx, slices.Clone(g), n)
			return err
		},
		"symmetricValues": func(ctx context.Context) error {
			_, err := symmetricValues(ctx, g, n)
			return err
		},
		"singularValues": func(ctx context.Context) error {
			_, err := singularValues(ctx, slices.Clone(x), n, n)
			return err
		},
		"triangle": func(ctx context.Context) error {
			_, err := triangle(ctx, slices.Clone(x), n, n)
			return err
		},
		"cholesky": func(ctx context.Context) error {
			_, _, err := cholesky(ctx, slices.Clone(g), n)
			return err
		},
	} {
		all := &endsAt{Context: t.Context(), n: math.MaxInt64}
		if err := run(all); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		looks := all.looks.Load()
		if looks < 6 {
			t.Errorf("%s looked at the context %d times, want one a panel", what, looks)
		}
		for _, at := range []int64{1, looks / 2, looks} {
			ctx := &endsAt{Context: t.Context(), n: at}
			if err := run(ctx); !errors.Is(err, context.Canceled) || ctx.looks.Load() != at {
				t.Errorf("%s that ends at look %d = %v after %d looks", what, at, err, ctx.looks.Load())
			}
		}
	}
}

// TestFactorizationsInPanels compares factorizations in panels with gonum's, and with the matrix.
func TestFactorizationsInPanels(t *testing.T) {
	rng := rand.New(rand.NewPCG(93, 94))
	for _, n := range []int{atOnce + panel + 3} {
		for name, x := range map[string][]float64{
			"random":      random64(rng, n*n),
			"rank 3":      lowRank(rng, n, 3),
			"decays fast": graded(rng, n),
		} {
			g := make([]float64, n*n)
			addTransposedProduct(g, x, x, n, n, n)
			values, vectors, err := symmetricEigen(t.Context(), slices.Clone(g), n)
			if err != nil {
				t.Fatalf("%s, %d: %v", name, n, err)
			}
			alone, err := symmetricValues(t.Context(), g, n)
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
			sigma, err := singularValues(t.Context(), slices.Clone(x), n, n)
			if err != nil {
				t.Fatal(err)
			}
			r, err := triangle(t.Context(), slices.Clone(x), n, n)
			if err != nil {
				t.Fatal(err)
			}
			ofR, err := singularValues(t.Context(), r, n, n)
			if err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if limit := 0x1p-52 * 10 * float64(n) * want[0]; math.Abs(sigma[i]-want[i]) > limit || math.Abs(ofR[i]-want[i]) > limit {
					t.Fatalf("%s, %d: σ_%d = %v, of the triangle %v, want %v", name, n, i+1, sigma[i], ofR[i], want[i])
				}
			}
			factor, condition, err := cholesky(t.Context(), slices.Clone(g), n)
			if err != nil {
				t.Fatal(err)
			}
			if truth := values[0] / values[n-1]; values[n-1] > 0 && truth < 1e6 && !(condition > truth/10) {
				t.Errorf("%s, %d: condition %.3g, want about %.3g", name, n, condition, truth)
			}
			if condition < gramLimit {
				again := make([]float64, n*n)
				addTransposedProduct(again, factor, factor, n, n, n)
				for i := range g {
					if math.Abs(again[i]-g[i]) > limit {
						t.Fatalf("%s, %d: RᵀR has %v at %d, G has %v", name, n, again[i], i, g[i])
					}
				}
			}
		}
	}
}

func lowRank(rng *rand.Rand, n, r int) []float64 {
	x, a, b := make([]float64, n*n), random64(rng, n*r), random64(rng, n*r)
	addProductTransposed(x, a, b, n, n, r)
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
