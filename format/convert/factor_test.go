package convert

import (
	"errors"
	"math"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// TestRoundingIntoInfinityIsRefused: a finite number beyond the range of a dtype is an error, also
// where rounding is allowed, and an infinite one stays.
func TestRoundingIntoInfinityIsRefused(t *testing.T) {
	raw := make([]byte, 8)
	for _, c := range []struct {
		v, x float64
		ok   bool
	}{{60000, 1, true}, {70000, 1, false}, {-40000, 2, false}, {math.Inf(1), 1, true}} {
		dtype.Store(dtype.F32, raw, 1, c.v)
		x := &format.Tensor{Name: "a", DType: dtype.F32, Shape: []uint64{2}}
		if _, err := multiplied(x, raw, c.x, dtype.F16, true); (err == nil) != c.ok || err != nil && !errors.Is(err, format.ErrUnsupported) {
			t.Errorf("%v·%v in F16: %v", c.v, c.x, err)
		}
	}
}
