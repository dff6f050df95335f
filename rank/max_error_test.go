package rank_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// TestTheLargestErrorIsThatOfTheFactorsAsStored: the limit holds for the stored factors, down to
// the precision of their dtype. Below that the extraction fails.
func TestTheLargestErrorIsThatOfTheFactorsAsStored(t *testing.T) {
	rng := rand.New(rand.NewPCG(101, 102))
	base := testkit.Random(rng, "w.weight", dtype.F64, 0.02, 70, 50)
	w := load(base)
	for k := range 40 { // singular values that fall by a quarter each
		u, v := make([]float64, 70), make([]float64, 50)
		for i := range u {
			u[i] = rng.NormFloat64() * math.Pow(0.75, float64(k))
		}
		for j := range v {
			v[j] = rng.NormFloat64()
		}
		for i := range w {
			w[i] += u[i/50] * v[i%50]
		}
	}
	tuned := testkit.Values("w.weight", dtype.F64, []uint64{70, 50}, w...)
	basePath, tunedPath := pairOf(t, "", []testkit.Tensor{base}, []testkit.Tensor{tuned})
	w0, w1 := load(base), load(tuned)
	met, refused := 0, 0
	for _, out := range []dtype.Type{dtype.F32, dtype.BF16, dtype.F16} {
		for _, limit := range []float64{0.3, 0.1, 0.03, 0.01, 6e-3, 4e-3, 3e-3, 2.5e-3, 1e-3, 5e-4, 3e-4, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9} {
			src, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.MaxError(limit, 0), DType: out})
			if errors.Is(err, format.ErrCheck) {
				refused++
				if unit := map[dtype.Type]float64{dtype.F32: 0x1p-24, dtype.BF16: 0x1p-8, dtype.F16: 0x1p-11}[out]; limit > 2*unit {
					t.Errorf("%v, error %v: %v, and the unit roundoff is %v", out, limit, err, unit)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			met++
			got := deltaOf(t, src, &src.Manifest().Adapters[0].Layers[0])
			var diff, norm float64
			for i := range got {
				want := w1[i] - w0[i]
				diff += (got[i] - want) * (got[i] - want)
				norm += want * want
			}
			truth := math.Sqrt(diff / norm)
			// Δ itself is rounded to float32 before the decomposition.
			if l := report.Layers[0]; truth > limit+0x1p-24 || math.Abs(l.Rounded-truth) > 1e-3*truth+0x1p-24 {
				t.Errorf("%v, error %v: rank %d has the error %.6g, reported %.6g", out, limit, l.Rank, truth, l.Rounded)
			}
		}
	}
	if met < 20 || refused < 3 {
		t.Errorf("%d limits were met and %d refused", met, refused)
	}
}
