package kernel

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestNarrowingRoundsWholeIntervals checks narrowing over the rationals. If it rounds x with an
// error e, both ends of the interval must have that result, RN of each. Numbers lie beside
// midpoints and ends of binades, with errors just below and above the distance to a change of
// rounding.
func TestNarrowingRoundsWholeIntervals(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
		n := narrowingOf(d)
		rounded, all := 0, 40_000
		for range all {
			x, e := n.sample(rng)
			value, bits, ok := n.round(x, e)
			if !ok {
				continue
			}
			rounded++
			for _, side := range []float64{-e, e} {
				exact := new(big.Rat).SetFloat64(x)
				exact.Add(exact, new(big.Rat).SetFloat64(side))
				if !isNearest(d, bits, exact) {
					t.Fatalf("%v: %v ± %v becomes %#x, which is not RN of %v", d, x, e, bits,
						exact.FloatString(60))
				}
			}
			var out [8]byte
			n.put(out[:], bits)
			if got := dtype.Load(d, out[:], 0); got != value || math.IsInf(got, 0) {
				t.Fatalf("%v: %v ± %v is stored as %v and reported as %v", d, x, e, got, value)
			}
		}
		if rounded < all/8 || rounded > all*3/4 {
			t.Errorf("%v: %d of %d intervals were rounded", d, rounded, all)
		}
	}
}

// sample returns a number from any binade, and an error near its distance to a midpoint or to the
// end of its binade.
func (n *narrowing) sample(rng *rand.Rand) (x, e float64) {
	low, high := math.Ilogb(n.least), math.Ilogb(n.most)
	exp := low - 1 + rng.IntN(high-low+3)
	if rng.IntN(4) == 0 { // a subnormal number of the dtype has fewer digits
		exp = low - 1 - rng.IntN(int(52-n.drop)+2)
	}
	bits := rng.Uint64() & (1<<52 - 1)
	half := uint64(1) << min(51, int(n.drop)-1+max(0, low-exp))
	switch rng.IntN(4) {
	case 0: // beside a midpoint
		bits = bits&^(2*half-1) | half
		bits += uint64(rng.IntN(9)) - 4
	case 1: // at the beginning of a binade
		bits = uint64(rng.IntN(5))
	case 2: // at the end
		bits = 1<<52 - 1 - uint64(rng.IntN(5))
	}
	x = math.Float64frombits(uint64(1023+exp)<<52 | bits)
	middle := math.Float64frombits(math.Float64bits(x)&^(2*half-1) | half)
	e = []float64{math.Abs(x - middle), n.share * x, 2 * n.share * x,
		x * rng.Float64()}[rng.IntN(4)]
	e *= 1 + float64(rng.IntN(3)-1)*0x1p-50
	if rng.IntN(8) == 0 {
		e = 0
	}
	return math.Copysign(x, rng.Float64()-0.5), e
}

// TestNarrowingLeavesOutTheEnds: NaN, infinity, zero, signs that are not certain, and numbers that
// might overflow.
func TestNarrowingLeavesOutTheEnds(t *testing.T) {
	for d, largest := range map[dtype.Type]float64{
		dtype.BF16: maxBF16, dtype.F16: maxF16, dtype.F32: maxF32,
	} {
		for _, x := range []float64{
			math.NaN(), math.Inf(1), 0, largest, largest * 1.01, math.MaxFloat64,
		} {
			for _, x := range []float64{x, -x} {
				if _, bits, ok := narrowingOf(d).round(x, 0); ok {
					t.Errorf("%v: %v is rounded to %#x, want it left out", d, x, bits)
				}
			}
		}
		for _, x := range []float64{0x1p-1074, 0.1 * ulp(d, 0), -0.1 * ulp(d, 0)} {
			if _, bits, ok := narrowingOf(d).round(x, math.Abs(x)); ok {
				t.Errorf("%v: %v ± %[2]v is rounded to %#x, want it left out", d, x, bits)
			}
		}
		if _, _, ok := narrowingOf(d).round(1.001, math.NaN()); ok {
			t.Errorf("%v: an error that is not known is taken for one", d)
		}
	}
}
