package rank

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// errorOf returns ‖Δ − B·A‖_F, from the whole product in float64.
func errorOf(d *Dense, b, a []float64, r int) float64 {
	x := make([]float64, len(d.Data))
	widen(x, d.Data)
	delta := mat.NewDense(d.M, d.N, x)
	var product mat.Dense
	product.Mul(mat.NewDense(d.M, r, b), mat.NewDense(r, d.N, a))
	delta.Sub(delta, &product)
	return mat.Norm(delta, 2)
}

// decays are spectra with tails from 1e-1 to below 1e-6 of the norm within 60 values.
var decays = map[string]func(i int) float64{
	"10^-i/8":           func(i int) float64 { return math.Pow(10, -float64(i)/8) },
	"10^-i/3":           func(i int) float64 { return math.Pow(10, -float64(i)/3) },
	"a step to 1e-5":    func(i int) float64 { return map[bool]float64{true: 1, false: 1e-5 / float64(i+1)}[i < 8] },
	"a step to 1e-6":    func(i int) float64 { return map[bool]float64{true: 1, false: 1e-6}[i < 8] },
	"pairs, 10^-i/8":    func(i int) float64 { return math.Pow(10, -float64(i/2)/4) },
	"steps of 8, 10^-i": func(i int) float64 { return math.Pow(10, -float64(i/8)) },
}

// TestTruncationIsNearlyTheBestDownToAMillionth: unrounded factors are within 0.1 % of the least
// error, wherever that exceeds 1e-6·‖Δ‖. The truth is a full decomposition in float64.
func TestTruncationIsNearlyTheBestDownToAMillionth(t *testing.T) {
	rng := rand.New(rand.NewPCG(97, 98))
	cases := 0
	for name, s := range decays {
		for _, shape := range [][2]int{{150, 100}, {80, 130}} {
			d := withSpectrum(rng, shape[0], shape[1], s)
			sigma := trueSingularValues(d)
			total := math.Sqrt(sumSquares(sigma))
			energy, err := d.SumSquares(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range []int{1, 4, 8, 15, 16, 24, 32, 41, 48} {
				best := math.Sqrt(sumSquares(sigma[k:]))
				if best < 1e-6*total {
					continue
				}
				cases++
				for _, rule := range []Rule{FixedRank{k}, MaxError(best/total*1.00001, 0)} {
					dec, err := TruncatedSVD(context.Background(), d, energy, rule, Options{})
					if err != nil {
						t.Fatal(err)
					}
					b, a := dec.factors()
					if got := errorOf(d, b, a, dec.K); got > 1.001*best || dec.K > k+1 {
						t.Errorf("%s, %v, %+v: rank %d with the error %.6g·‖Δ‖, the best of %d is %.6g (%.3g %% less)", name, shape, rule, dec.K, got/total, k, best/total, 100*(got/best-1))
					}
				}
			}
		}
	}
	if cases < 40 {
		t.Errorf("only %d cases", cases)
	}
}

func TestTheWholeRangeOfFloat32IsDecomposed(t *testing.T) {
	rng := rand.New(rand.NewPCG(99, 100))
	d := withSpectrum(rng, 40, 30, func(i int) float64 { return math.Pow(2, -float64(i)) })
	want, wantError := decompose(t, d, FixedRank{4}, Options{})
	for _, e := range []int{-100, -60, 50} {
		scaled := &Dense{M: d.M, N: d.N, Data: times(d.Data, float32(math.Ldexp(1, e)))}
		energy, err := scaled.SumSquares(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		exponent, err := scaled.normalise(t.Context(), energy)
		if err != nil {
			t.Fatal(err)
		}
		got, gotError := decompose(t, scaled, FixedRank{4}, Options{})
		for i := range want.S {
			if s := math.Ldexp(got.S[i], -exponent-e); math.Abs(s-want.S[i]) > 1e-6*want.S[i] {
				t.Errorf("2^%d: σ_%d = %v, want %v", e, i+1, s, want.S[i])
			}
		}
		if got := math.Ldexp(gotError, -exponent-e); math.Abs(got-wantError) > 1e-5*wantError {
			t.Errorf("2^%d: error %v, want %v", e, got, wantError)
		}
	}
}
