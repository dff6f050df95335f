package kernel

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// Stats counts and measures the changes of a merge. Sums are over elements whose w and Δ are
// finite.
type Stats struct {
	Elements   int64
	Unchanged  int64   // out equals w (−0 equals 0, a NaN any NaN)
	Slow       int64   // not decided by the fast pass
	Exact      int64   // decided in exact arithmetic
	NaNBefore  int64   // w is NaN or infinite
	NaNAfter   int64   // out is NaN or infinite
	NormW      Squares // Σ w²
	NormDelta  Squares // Σ Δ², the intended update
	NormStored Squares // Σ (out − w)², the stored update
	NormError  Squares // Σ (out − w − Δ)²
}

// Add adds o to s.
func (s *Stats) Add(o *Stats) {
	s.Elements += o.Elements
	s.Unchanged += o.Unchanged
	s.Slow += o.Slow
	s.Exact += o.Exact
	s.NaNBefore += o.NaNBefore
	s.NaNAfter += o.NaNAfter
	s.NormW.join(&o.NormW)
	s.NormDelta.join(&o.NormDelta)
	s.NormStored.join(&o.NormStored)
	s.NormError.join(&o.NormError)
}

// Count adds elements of the base, with the sums that they should be and the stored results.
func (s *Stats) Count(w, sums, results []float64) {
	s.Elements += int64(len(w))
	sums, results = sums[:len(w)], results[:len(w)]
	var base, delta, stored, missing float64
	var unchanged int64
	for i, x := range w {
		moved, d := results[i]-x, sums[i]-x
		lost := moved - d
		base, delta, stored, missing = base+x*x, delta+d*d, stored+moved*moved, missing+lost*lost
		if moved == 0 {
			unchanged++
		}
	}
	// Squares that vanish are less than 2⁻¹⁰⁷⁴ each. A sum of 0 is one of zeros, or of such
	// squares.
	const least = 0x1p-900
	if isSafe := func(sum float64) bool { return sum > least && sum <= math.MaxFloat64 }; isSafe(base) && isSafe(delta) && isSafe(stored) && isSafe(missing) {
		s.Unchanged += unchanged
		s.NormW.mid, s.NormDelta.mid = s.NormW.mid+base, s.NormDelta.mid+delta
		s.NormStored.mid, s.NormError.mid = s.NormStored.mid+stored, s.NormError.mid+missing
		return
	}
	for i, x := range w {
		account(s, x, sums[i]-x, results[i])
	}
}

// account adds one element to st, except to st.Elements, which the caller counts.
func account(st *Stats, w, delta, result float64) {
	moved := result - w
	missing := moved - delta
	isStill := moved == 0
	if !(isStill || isMiddle(moved)) || !(isMiddle(w) && isMiddle(delta) && isMiddle(missing)) {
		accountFar(st, w, delta, result)
		return
	}
	if isStill {
		st.Unchanged++
	}
	st.NormW.mid += w * w
	st.NormDelta.mid += delta * delta
	st.NormStored.mid += moved * moved
	st.NormError.mid += missing * missing
}

// accountFar is account for numbers of any size.
func accountFar(st *Stats, w, delta, result float64) {
	if w == result || w != w && result != result {
		st.Unchanged++
	}
	if !isFinite(w) {
		st.NaNBefore++
	}
	if !isFinite(result) {
		st.NaNAfter++
		return
	}
	moved := result - w
	if isFinite(delta) && isFinite(moved) {
		st.NormW.add(w)
		st.NormDelta.add(delta)
		st.NormStored.add(moved)
		st.NormError.add(moved - delta)
	}
}

func isFinite(x float64) bool { return x-x == 0 }

// Squares is a sum of squares of float64 numbers of any size. Squares beyond the range of float64
// are kept in other units (J. L. Blue, "A portable Fortran program to find the Euclidean norm of a
// vector", 1978). The zero value is 0.
type Squares struct {
	big, mid, small float64 // in units of 2^1200, 1 and 2^−1200
}

// 2^60 squares of numbers up to midEdge do not overflow, and squares of numbers from its inverse on
// are far from underflow.
const (
	midExponent = 480
	midEdge     = 0x1p480
	unitStep    = 600 // squares of 2^±600 are the units
)

// add adds x². Nearly all numbers are in the middle, where one multiplication does.
func (s *Squares) add(x float64) {
	if isMiddle(x) {
		s.mid += x * x
		return
	}
	s.addFar(math.Abs(x))
}

// isMiddle reports whether the magnitude of x is from 1/midEdge to midEdge, by its exponent.
func isMiddle(x float64) bool {
	return math.Float64bits(x)<<1>>53-(1023-midExponent) < 2*midExponent
}

// addFar adds the square of a number whose square could overflow or vanish, in units of 2^±1200.
func (s *Squares) addFar(x float64) {
	if x >= midEdge {
		x *= 0x1p-600
		s.big += x * x
	} else {
		x *= 0x1p600
		s.small += x * x
	}
}

// addSum adds sum·4^exp, where sum is one of squares.
func (s *Squares) addSum(sum float64, exp int) {
	switch {
	case exp > 200:
		s.big += math.Ldexp(sum, 2*(exp-unitStep))
	case exp < -200:
		s.small += math.Ldexp(sum, 2*(exp+unitStep))
	default:
		s.mid += math.Ldexp(sum, 2*exp)
	}
}

func (s *Squares) join(o *Squares) {
	s.big += o.big
	s.mid += o.mid
	s.small += o.small
}

// IsZero reports whether all numbers were 0, or their squares too small for any unit.
func (s *Squares) IsZero() bool { return *s == Squares{} }

// root returns the square root as r·2^exp.
func (s *Squares) root() (r float64, exp int) {
	switch {
	case s.big != 0:
		return math.Sqrt(s.big + s.mid*0x1p-600*0x1p-600), unitStep
	case s.mid > 0x1p-600 || s.small == 0:
		return math.Sqrt(s.mid), 0
	}
	return math.Sqrt(s.small + s.mid*0x1p600*0x1p600), -unitStep
}

// Ratio returns √(s/o), for o other than 0.
func (s *Squares) Ratio(o *Squares) float64 {
	a, i := s.root()
	b, j := o.root()
	return math.Ldexp(a/b, i-j)
}

// ofBase corrects Σ w² if float32 cannot hold the squares that a micro-kernel adds. Squares of BF16
// numbers have twice as many binades as float32.
type ofBase struct {
	known       bool
	before, sum Squares
}

// baseSquares looks for an element of w whose square makes all squares lost in float32 negligible.
// If there is none, it adds up all squares itself. None overflows: a BF16 kernel leaves numbers
// beyond 2⁴⁴ undecided.
func baseSquares(d dtype.Type, w []byte, st *Stats) (o ofBase) {
	o = ofBase{before: st.NormW}
	if d != dtype.BF16 {
		return o
	}
	for i := 0; i < len(w)/2; i += sampleStep(len(w) / 2) {
		if exponent := int(binary.LittleEndian.Uint16(w[2*i:])>>7&0xff) - 127; exponent >= -40 &&
			exponent < 128 {
			return o
		}
	}
	o.known, o.sum = true, squaresBF16(w)
	return o
}

// replace stores the sum in st.
func (o *ofBase) replace(st *Stats) {
	if o.known {
		st.NormW = o.before
		st.NormW.join(&o.sum)
	}
}

const infinityBF16 = 0x7f80

func squaresBF16(w []byte) (sum Squares) {
	for ; len(w) >= 2; w = w[2:] {
		if h := binary.LittleEndian.Uint16(w); h&infinityBF16 != infinityBF16 {
			x := float64(dtype.BF16ToFloat32(h))
			sum.mid += x * x
		}
	}
	return sum
}

// sampleStep is the distance between sampled elements among n. Each sample costs a cache line.
func sampleStep(n int) int { return max(1, n/128) }
