package rank

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// spectrum names the singular values of a test matrix.
var spectra = map[string]func(i int) float64{
	"i^-0.5": func(i int) float64 { return math.Pow(float64(i+1), -0.5) },
	"i^-1":   func(i int) float64 { return 1 / float64(i+1) },
	"flat":   func(int) float64 { return 1 },
	"rank 16 and noise": func(i int) float64 {
		if i < 16 {
			return 1 - 0.04*float64(i)
		}
		return 0.01
	},
	"rank 5": func(i int) float64 {
		if i < 5 {
			return float64(5 - i)
		}
		return 0
	},
}

// Planted returns an m×n matrix U·diag(sigma)·Vᵀ with random orthogonal U and V.
func Planted(rng *rand.Rand, m, n int, sigma func(i int) float64) []float64 {
	q := min(m, n)
	orthonormal := func(rows int) *mat.Dense {
		data := make([]float64, rows*q)
		for i := range data {
			data[i] = rng.NormFloat64()
		}
		var qr mat.QR
		qr.Factorize(mat.NewDense(rows, q, data))
		var full mat.Dense
		qr.QTo(&full)
		return mat.DenseCopyOf(full.Slice(0, rows, 0, q))
	}
	u, v := orthonormal(m), orthonormal(n)
	for i := range q {
		for row := range m {
			u.Set(row, i, u.At(row, i)*sigma(i))
		}
	}
	var out mat.Dense
	out.Mul(u, v.T())
	return out.RawMatrix().Data
}

// withSpectrum is Planted in float32.
func withSpectrum(rng *rand.Rand, m, n int, s func(i int) float64) *Dense {
	out := &Dense{M: m, N: n, Data: make([]float32, m*n)}
	for i, x := range Planted(rng, m, n, s) {
		out.Data[i] = float32(x)
	}
	return out
}

// trueSingularValues is the oracle: a full decomposition in float64.
func trueSingularValues(d *Dense) []float64 {
	data := make([]float64, len(d.Data))
	for i, x := range d.Data {
		data[i] = float64(x)
	}
	var svd mat.SVD
	if !svd.Factorize(mat.NewDense(d.M, d.N, data), mat.SVDNone) {
		panic("no convergence")
	}
	return svd.Values(nil)
}

func decompose(t *testing.T, d *Dense, rule Rule, o Options) (*Decomposition, float64) {
	t.Helper()
	energy, err := d.SumSquares(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	dec, err := TruncatedSVD(context.Background(), d, energy, rule, o)
	if err != nil {
		t.Fatal(err)
	}
	b, a := dec.Factors()
	squares, err := d.ResidualSquares(context.Background(), b, a, dec.K)
	if err != nil {
		t.Fatal(err)
	}
	return dec, math.Sqrt(squares)
}

func TestTruncationIsNearlyTheBest(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 22))
	for name, s := range spectra {
		for _, shape := range [][2]int{{300, 300}, {400, 120}, {90, 500}, {40, 30}, {1, 50}, {50, 1}} {
			d := withSpectrum(rng, shape[0], shape[1], s)
			sigma := trueSingularValues(d)
			for _, k := range []int{1, 8, 16, 64} {
				dec, err := decompose(t, d, FixedRank{k}, Options{})
				where := fmt.Sprintf("%s, %v, k = %d", name, shape, k)
				best := math.Sqrt(sumSquares(sigma[min(k, len(sigma)):]))
				total := math.Sqrt(sumSquares(sigma))
				// Beside the promised 0.1 %, float32 factors have their own rounding.
				if limit := 1.001*best + 1e-6*total; err > limit {
					t.Errorf("%s: error %.6g, want at most %.6g (the best is %.6g)", where, err, limit, best)
				}
				if math.Abs(dec.Error-err) > 1e-3*err+2e-4*total && err > 1e-3*total {
					t.Errorf("%s: the error from the energies is %.6g, the true one %.6g", where, dec.Error, err)
				}
				for i, got := range dec.S {
					if name == "flat" || sigma[i] < 1e-5*sigma[0] {
						break // the order of equal values is undefined
					}
					if math.Abs(got-sigma[i]) > 1e-4*sigma[i] && sigma[i] > 1.02*sigma[min(k, len(sigma)-1)] {
						t.Errorf("%s: σ_%d = %.8g, want %.8g", where, i+1, got, sigma[i])
					}
				}
			}
		}
	}
}

func TestDecompositionDoesNotDependOnWorkers(t *testing.T) {
	d := withSpectrum(rand.New(rand.NewPCG(23, 24)), 300, 700, spectra["i^-0.5"])
	var first *Decomposition
	for _, workers := range []int{1, 2, 5} {
		d.Workers = workers
		dec, _ := decompose(t, d, FixedRank{8}, Options{Workers: workers})
		if first == nil {
			first = dec
		} else if !slices.Equal(first.U, dec.U) || !slices.Equal(first.V, dec.V) || !slices.Equal(first.S, dec.S) {
			t.Errorf("%d workers give another decomposition than one", workers)
		}
	}
}

func TestZeroMatrixHasRankZero(t *testing.T) {
	dec, _ := decompose(t, &Dense{M: 5, N: 7, Data: make([]float32, 35)}, FixedRank{3}, Options{})
	if dec.K != 0 {
		t.Errorf("rank %d, want 0", dec.K)
	}
}

func TestRulesChooseTheRank(t *testing.T) {
	rng := rand.New(rand.NewPCG(25, 26))
	d := withSpectrum(rng, 200, 150, spectra["rank 16 and noise"])
	sigma := trueSingularValues(d)
	total := sumSquares(sigma)
	fewest := func(share float64) int {
		for k := range sigma {
			if sumSquares(sigma[:k]) >= share*total {
				return k
			}
		}
		return len(sigma)
	}
	for _, c := range []struct {
		name string
		rule Rule
		want int
	}{
		{"energy 0.5", EnergyShare{Share: 0.5}, fewest(0.5)},
		{"energy 0.9", EnergyShare{Share: 0.9}, fewest(0.9)},
		{"energy 0.9999", EnergyShare{Share: 0.9999}, fewest(0.9999)},
		{"energy 0.9, at most 3", EnergyShare{Share: 0.9, Max: 3}, 3},
		{"error 0.3", MaxError(0.3, 0), fewest(1 - 0.09)},
		{"noise floor", NoiseFloor{Sigma: 0.01 / math.Sqrt(150)}, 16},
		{"fixed 1000", FixedRank{1000}, 150},
	} {
		if dec, _ := decompose(t, d, c.rule, Options{}); dec.K != c.want {
			t.Errorf("%s: rank %d, want %d", c.name, dec.K, c.want)
		}
	}
}

func BenchmarkTruncatedSVD(b *testing.B) {
	rng := rand.New(rand.NewPCG(27, 28))
	for _, shape := range [][2]int{{512, 512}, {2048, 5632}} {
		d := &Dense{M: shape[0], N: shape[1], Data: make([]float32, shape[0]*shape[1])}
		for i := range d.Data { // slow decay: noise plus a power law would need orthogonal factors of this size
			d.Data[i] = float32(rng.NormFloat64())
		}
		energy, _ := d.SumSquares(context.Background())
		for _, k := range []int{8, 64} {
			b.Run(fmt.Sprintf("m=%d/n=%d/k=%d", shape[0], shape[1], k), func(b *testing.B) {
				for b.Loop() {
					if _, err := TruncatedSVD(context.Background(), d, energy, FixedRank{k}, Options{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// TestProductsAreFew guards the passes over Δ, of two products each: residuals end the search a
// block before the values of two blocks agree.
func TestProductsAreFew(t *testing.T) {
	for _, shape := range [][2]int{{600, 400}, {400, 600}} {
		for name, want := range map[string]int{"i^-1": 10, "rank 16 and noise": 6} {
			d := withSpectrum(rand.New(rand.NewPCG(29, 30)), shape[0], shape[1], spectra[name])
			dec, err := decompose(t, d, FixedRank{8}, Options{})
			if dec.Products > want || dec.Products == 0 {
				t.Errorf("%s, %v: %d products, want at most %d", name, shape, dec.Products, want)
			}
			if best := math.Sqrt(sumSquares(trueSingularValues(d)[8:])); err > (1+1e-4)*best+1e-6*dec.S[0] {
				t.Errorf("%s, %v: the error is %.8g, and the least is %.8g", name, shape, err, best)
			}
		}
	}
}
