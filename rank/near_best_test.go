package rank_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
	"gonum.org/v1/gonum/mat"
)

// TestNearBestTellsTheTruth plants spectra whose least error lies from 1e-1 to 1e-12 of ‖Δ‖. The
// stored factors must be within 0.1 % of it, or NearBest must be false. The truth is a full
// decomposition of Δ in float64.
func TestNearBestTellsTheTruth(t *testing.T) {
	const m, n, k = 40, 30, 6
	rng := rand.New(rand.NewPCG(105, 106))
	near, far := 0, 0
	for _, d := range []dtype.Type{dtype.F64, dtype.F32, dtype.BF16} {
		for exponent := -1; exponent >= -12; exponent-- {
			tail := math.Pow(10, float64(exponent))
			for _, sigma := range []func(i int) float64{
				func(i int) float64 { return math.Pow(tail, float64(i)/k) },
				func(i int) float64 { return []float64{1, tail}[min(i/k, 1)] },
			} {
				base := testkit.Random(rng, "w.weight", d, 0.02, m, n)
				w := load(base)
				for i, x := range rank.Planted(rng, m, n, sigma) {
					w[i] += x
				}
				tuned := testkit.Values("w.weight", d, []uint64{m, n}, w...)
				delta := load(tuned)
				for i, x := range load(base) {
					delta[i] -= x
				}
				best, norm := leastError(delta, m, n, k)
				basePath, tunedPath := pairOf(t, "", []testkit.Tensor{base}, []testkit.Tensor{tuned})
				for _, out := range []dtype.Type{dtype.F32, dtype.BF16} {
					src, report, err := extract(t, basePath, tunedPath,
						rank.ExtractOptions{Rule: rank.FixedRank{K: k}, DType: out})
					if err != nil {
						t.Fatal(err)
					}
					got := deltaOf(t, src, &src.Manifest().Adapters[0].Layers[0])
					for i, x := range delta {
						got[i] -= x
					}
					reached := mat.Norm(mat.NewDense(m, n, got), 2)
					l := &report.Layers[0]
					switch {
					case l.NearBest:
						near++
						if reached > 1.001*best {
							t.Errorf("%v to %v: the error is %.6g of |Δ|, %.6g times the least, and said to be near it",
								d, out, reached/norm, reached/best)
						}
					case out == dtype.F32 && best > 1e-5*norm:
						t.Errorf("%v: the least error is %.3g of |Δ|, and factors in F32 are said to miss it: by %.3g %%",
							d, best/norm, 100*(reached/best-1))
					default:
						far++
					}
				}
			}
		}
	}
	if near < 50 || far < 50 {
		t.Errorf("%d errors are near the least and %d are not", near, far)
	}
}

// leastError returns the least error of a rank-k matrix, from a full decomposition, and the norm.
func leastError(x []float64, m, n, k int) (best, norm float64) {
	var svd mat.SVD
	svd.Factorize(mat.NewDense(m, n, x), mat.SVDNone)
	for i, s := range svd.Values(nil) {
		norm = math.Hypot(norm, s)
		if i >= k {
			best = math.Hypot(best, s)
		}
	}
	return best, norm
}
