package rank

import (
	"math"
	"testing"
)

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
