package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestCountOfElementsIsThatOfEach: the figures of a batch are those of its elements one by one,
// also where squares overflow or vanish, and where numbers are not finite.
func TestCountOfElementsIsThatOfEach(t *testing.T) {
	rng := rand.New(rand.NewPCG(81, 82))
	for name, scale := range map[string]float64{"usual": 1, "huge": 0x1p600, "tiny": 0x1p-600, "zero": 0} {
		for _, odd := range []float64{0, math.Inf(1), math.NaN()} {
			const n = 1000
			w, sums, results := make([]float64, n), make([]float64, n), make([]float64, n)
			for i := range w {
				w[i] = scale * rng.NormFloat64()
				sums[i] = w[i] + scale*rng.NormFloat64()/8
				if results[i] = w[i]; i%3 > 0 {
					results[i] = sums[i] + scale*rng.NormFloat64()/16
				}
			}
			if odd != 0 {
				w[7], sums[7], results[7] = odd, odd, odd
			}
			var got, want Stats
			got.Count(w, sums, results)
			for i := range w {
				want.Elements++
				account(&want, w[i], sums[i]-w[i], results[i])
			}
			if got.Elements != want.Elements || got.Unchanged != want.Unchanged || got.NaNBefore != want.NaNBefore || got.NaNAfter != want.NaNAfter {
				t.Errorf("%s with %v: the counts are %+v, want %+v", name, odd, got, want)
			}
			for _, x := range [][2]*Squares{{&got.NormW, &want.NormW}, {&got.NormDelta, &want.NormDelta}, {&got.NormStored, &want.NormStored}, {&got.NormError, &want.NormError}} {
				if x[0].IsZero() != x[1].IsZero() || !x[1].IsZero() && math.Abs(x[0].Ratio(x[1])-1) > 1e-12 {
					t.Errorf("%s with %v: a norm is %+v, want %+v", name, odd, *x[0], *x[1])
				}
			}
		}
	}
}
