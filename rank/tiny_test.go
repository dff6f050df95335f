package rank

import (
	"math"
	"testing"
)

// TestTinyDifferencesAreFound: subtract tells of those that normalise makes zero, and of no others.
func TestTinyDifferencesAreFound(t *testing.T) {
	for x, want := range map[float32]int{
		0: 0, leastElement: 0, -leastElement: 0, 1: 0, math.Float32frombits(0x80000000): 0,
		leastElement / 2: 1, -leastElement / 2: 1, 0x1p-149: 1, -0x1p-149: 1, math.Nextafter32(leastElement, 0): 1,
	} {
		for at := range 6 {
			dst := make([]float32, 6)
			dst[at] = x
			if _, _, tiny := subtract(dst, make([]float32, 6)); tiny != want {
				t.Errorf("%g at %d counts %d, want %d", x, at, tiny, want)
			}
		}
	}
}
