package kernel

import (
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// Differences are sums over the elements of a difference Δ = W′ − W.
type Differences struct {
	Energy float64 // Σ δ²
	Base   float64 // Σ w²
	Units  float64 // Σ u², where u is the unit in the last place of w′ in its own type
	// IsPlain says that no δ but zeros is below LeastElement. Infinite and NaN elements do not
	// count.
	IsPlain bool
}

// LeastElement is the least element of Δ, unless it is zero, that counts as plain.
const LeastElement = 0x1p-60

// lanes is the number of running sums of each kind: element i goes to sum i mod lanes. All kernels
// have this order, so that they agree to the last bit: squares of float32 are exact in float64.
const lanes = 4

// differenceSums are the running sums of Differences.
type differenceSums struct {
	energy, base, units [lanes]float64
	tiny                uint32 // not 0 if an element is below LeastElement
}

// Difference writes tuned − base to dst: values of the types t and b, which are not F64. Float32
// subtraction rounds the exact difference once.
func Difference(dst []float32, t dtype.Type, tuned []byte, b dtype.Type, base []byte) Differences {
	var s differenceSums
	n := 0
	if t == b {
		n = differences(&s, dst, t, tuned, base)
	}
	s.add(dst[n:], t, tuned[n*t.Size():], b, base[n*b.Size():])
	return Differences{
		Energy: total(s.energy), Base: total(s.base),
		Units: total(s.units) * unitOfOne(t) * unitOfOne(t), IsPlain: s.tiny == 0,
	}
}

func total(s [lanes]float64) float64 { return s[0] + s[1] + s[2] + s[3] }

// differences is differenceSums.add for a multiple of lanes of the first elements, all of them of
// type t, and returns their number. Processors with wide registers replace it at the start of the
// program.
var differences = func(s *differenceSums, dst []float32, t dtype.Type, tuned, base []byte) int { return 0 }

// add adds the elements of a difference to the sums. The number of those added before is a multiple
// of lanes.
func (s *differenceSums) add(dst []float32, t dtype.Type, tuned []byte, b dtype.Type, base []byte) {
	const most = 512
	var narrow [most]float32
	least := leastPower(t)
	for len(dst) > 0 {
		d := dst[:min(most, len(dst))]
		w := narrow[:len(d)]
		dtype.Widen(d, t, tuned)
		dtype.Widen(w, b, base)
		dst, tuned, base = dst[len(d):], tuned[len(d)*t.Size():], base[len(d)*b.Size():]
		for ; len(d) >= lanes; d, w = d[lanes:], w[lanes:] {
			d, w := d[:lanes:lanes], w[:lanes:lanes]
			s.one(0, &d[0], w[0], least)
			s.one(1, &d[1], w[1], least)
			s.one(2, &d[2], w[2], least)
			s.one(3, &d[3], w[3], least)
		}
		for i := range d {
			s.one(i, &d[i], w[i], least)
		}
	}
}

// one subtracts w from d, and adds both to the sums of a lane.
func (s *differenceSums) one(lane int, d *float32, w float32, least uint32) {
	u := float64(powerOf(*d, least))
	x := *d - w
	*d = x
	if isTiny(x) {
		s.tiny = 1
	}
	s.energy[lane] += float64(x) * float64(x)
	s.base[lane] += float64(w) * float64(w)
	s.units[lane] += u * u
}

// UnitSquares returns Σ u², where u is the unit in the last place of each number: finite numbers of
// type t, which is not F64.
func UnitSquares(t dtype.Type, x []float64) (sum float64) {
	least := leastPower(t)
	for _, v := range x {
		u := float64(powerOf(float32(v), least))
		sum += u * u
	}
	return sum * unitOfOne(t) * unitOfOne(t)
}

// unitOfOne returns the unit in the last place of numbers from 1 to 2.
func unitOfOne(t dtype.Type) float64 {
	l, _ := t.Layout()
	return math.Ldexp(1, -l.Fraction)
}

// leastPower returns the bits of the least normal number of type t as a float32. Subnormal numbers
// have the same unit.
func leastPower(t dtype.Type) uint32 {
	l, _ := t.Layout()
	return uint32(1-l.Bias()+127) << 23
}

// powerOf returns the power of two with the exponent of x, but no less than that of the given bits.
func powerOf(x float32, least uint32) float32 {
	return math.Float32frombits(max(math.Float32bits(x)&(0xff<<23), least))
}

// isTiny reports whether a number is below LeastElement, and not zero.
func isTiny(x float32) bool {
	const least = (127 - 60) << 24 // the bits of LeastElement without the sign, twice
	return math.Float32bits(x)<<1-1 < least-1
}
