package rank

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// productOracle decomposes the whole product.
func productOracle(a, b []float64, m, n, r int) []float64 {
	var d mat.Dense
	d.Mul(mat.NewDense(m, r, b), mat.NewDense(n, r, a).T())
	var svd mat.SVD
	if !svd.Factorize(&d, mat.SVDNone) {
		panic("no convergence")
	}
	return svd.Values(nil)
}

func random64(rng *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = float64(float32(rng.NormFloat64()))
	}
	return x
}

func TestSpectrumOfAProduct(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 32))
	for _, c := range []struct {
		name    string
		m, n, r int
		edit    func(a, b []float64, r int)
	}{
		{"random", 60, 40, 8, nil},
		{"rank above both sides", 5, 7, 12, nil},
		{"rank above one side", 5, 70, 12, nil},
		{"rank 1", 30, 20, 1, nil},
		{"a wide range of singular values", 60, 50, 6, func(a, b []float64, r int) {
			for i := range b {
				b[i] *= math.Pow(10, -1.2*float64(i%r))
			}
		}},
		{"a repeated column", 60, 50, 6, func(a, b []float64, r int) {
			for i := 0; i < len(b); i += r {
				b[i+1] = b[i]
			}
		}},
		{"zero", 20, 20, 4, func(a, b []float64, r int) { clear(b) }},
	} {
		a, b := random64(rng, c.n*c.r), random64(rng, c.m*c.r)
		if c.edit != nil {
			c.edit(a, b, c.r)
		}
		want := productOracle(a, b, c.m, c.n, c.r)
		got, err := productSingularValues(t.Context(), slices.Clone(a), slices.Clone(b), c.m, c.n, c.r)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != min(c.m, c.n, c.r) {
			t.Errorf("%s: %d values, want %d", c.name, len(got), min(c.m, c.n, c.r))
		}
		for i := range got {
			// The oracle itself has an absolute error of about 2^-50·σ₁.
			if math.Abs(got[i]-want[i]) > 1e-6*want[i]+0x1p-46*want[0] {
				t.Errorf("%s: σ_%d = %.12g, want %.12g", c.name, i+1, got[i], want[i])
			}
		}
	}
}

// TestSpectrumDoesNotSeeTheFactorization: B·G and G⁻¹·A have the same product.
func TestSpectrumDoesNotSeeTheFactorization(t *testing.T) {
	rng := rand.New(rand.NewPCG(33, 34))
	const m, n, r = 50, 40, 6
	a, b := random64(rng, n*r), random64(rng, m*r)
	want, err := productSingularValues(t.Context(), slices.Clone(a), slices.Clone(b), m, n, r)
	if err != nil {
		t.Fatal(err)
	}
	g := mat.NewDense(r, r, random64(rng, r*r))
	var inverse, bg, ag mat.Dense
	if err := inverse.Inverse(g); err != nil {
		t.Fatal(err)
	}
	bg.Mul(mat.NewDense(m, r, b), g)
	ag.Mul(mat.NewDense(n, r, a), inverse.T())
	got, err := productSingularValues(t.Context(), ag.RawMatrix().Data, bg.RawMatrix().Data, m, n, r)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if math.Abs(got[i]-want[i]) > 1e-9*want[0] {
			t.Errorf("σ_%d = %.12g, want %.12g", i+1, got[i], want[i])
		}
	}
}

func TestDescribe(t *testing.T) {
	s := describe("m", []float64{2, 1, 1, 1, 1}, 0, 100, 0x1p-24)
	if s.Frobenius != math.Sqrt(8) || s.StableRank != 2 || s.NumericalRank != 5 {
		t.Errorf("describe = %+v, want Frobenius √8, stable rank 2, numerical rank 5", s)
	}
	// The entropy of (1/2, 1/8, 1/8, 1/8, 1/8) is 2 ln 2; its exponential is 4.
	if math.Abs(s.EntropyRank-4) > 1e-12 {
		t.Errorf("entropy rank = %v, want 4", s.EntropyRank)
	}
	for share, want := range map[float64]int{0.5: 1, 0.51: 2, 0.625: 2, 0.9: 5, 1: 5} {
		if got := s.RankFor(share); got != want {
			t.Errorf("RankFor(%v) = %d, want %d", share, got, want)
		}
	}
}
