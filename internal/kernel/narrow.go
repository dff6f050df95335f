package kernel

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// narrowing rounds float64 numbers to a narrower dtype, and tells when one rounding gives the
// result of a whole interval. It refuses zero, and numbers that might overflow.
//
// Consider the numbers of a binade that agree in all but the last drop bits. One of them, the one
// that ends in 1000…, is a midpoint m of two values of the dtype. For a number x among them, x − m
// is exact. Within e < |x − m| of x, everything is on x's side of m. The next midpoint on that side
// is at least 2^(drop−2) ulps of x away: half of the numbers that agree with x, or a quarter where
// a smaller binade begins. So if also e < share·|x|, with share = 2^(drop−2)·2⁻⁵³, RN(x) is the
// result for all of them.
type narrowing struct {
	drop        uint   // fraction bits of a float64 that the dtype lacks
	bias        uint64 // difference of the exponents' biases, in position
	sign        uint   // shift of the sign bit
	share       float64
	least, most float64 // magnitudes: the smallest normal one, and the largest to round
}

var narrowings = [...]narrowing{
	dtype.BF16: narrowingTo(dtype.BF16),
	dtype.F16:  narrowingTo(dtype.F16),
	dtype.F32:  narrowingTo(dtype.F32),
}

// narrowingTo returns the narrowing to a dtype.
func narrowingTo(d dtype.Type) narrowing {
	l, _ := d.Layout()
	bias := l.Bias()
	return narrowing{
		drop:  uint(52 - l.Fraction),
		bias:  uint64(1023-bias) << l.Fraction,
		sign:  uint(63 - l.Fraction - l.Exponent),
		share: math.Ldexp(1, -3-l.Fraction),
		least: math.Ldexp(1, 1-bias),
		most:  math.Ldexp(1, bias-1),
	}
}

// narrowingOf returns the narrowing to a dtype, or nil for F64.
func narrowingOf(d dtype.Type) *narrowing {
	if d == dtype.F64 {
		return nil
	}
	return &narrowings[d]
}

// round returns RN(x), as a float64 and as bits of the dtype, if all numbers within e of x round to
// it. If ok is false, they may still have the same result.
func (n *narrowing) round(x, e float64) (rounded float64, bits uint64, ok bool) {
	abs := math.Abs(x)
	b := math.Float64bits(abs)
	half := uint64(1) << (n.drop - 1)
	middle := math.Float64frombits(b&^(2*half-1) | half)
	if !(e < math.Abs(abs-middle) && e < n.share*abs && abs >= n.least && abs <= n.most) {
		return n.roundSmall(x, e)
	}
	b += half // never a tie
	sign := math.Float64bits(x) &^ (1<<63 - 1)
	return math.Float64frombits(b&^(2*half-1) | sign), b>>n.drop - n.bias | sign>>n.sign, true
}

// roundSmall is round for subnormal results. The smallest normal number more is in the binade whose
// values of D are as far apart as those below it. The sum is off by at most half an ulp. The sign
// of x is certain if e < |x|.
func (n *narrowing) roundSmall(x, e float64) (rounded float64, bits uint64, ok bool) {
	if abs := math.Abs(x); !(e < abs && abs < n.least) {
		return 0, 0, false
	}
	rounded, bits, ok = n.round(math.Abs(x)+n.least, e+0x1p-52*n.least)
	sign := math.Float64bits(x) &^ (1<<63 - 1)
	return math.Copysign(rounded-n.least, x), bits - 1<<(52-n.drop) | sign>>n.sign, ok
}

// put stores the bits of a number of the dtype.
func (n *narrowing) put(out []byte, bits uint64) {
	if n.sign == 32 {
		binary.LittleEndian.PutUint32(out, uint32(bits))
	} else {
		binary.LittleEndian.PutUint16(out, uint16(bits))
	}
}

// storeBetween stores RN_D of the numbers from lo to hi, if all of them round to one finite value.
func storeBetween(d dtype.Type, out []byte, lo, hi float64) (ok bool) {
	switch d {
	case dtype.BF16:
		lo, hi := dtype.BF16FromFloat64(lo), dtype.BF16FromFloat64(hi)
		if ok = lo == hi && lo&0x7f80 != 0x7f80; ok {
			binary.LittleEndian.PutUint16(out, lo)
		}
	case dtype.F16:
		lo, hi := dtype.F16FromFloat64(lo), dtype.F16FromFloat64(hi)
		if ok = lo == hi && lo&0x7c00 != 0x7c00; ok {
			binary.LittleEndian.PutUint16(out, lo)
		}
	case dtype.F32:
		lo, hi := math.Float32bits(float32(lo)), math.Float32bits(float32(hi))
		if ok = lo == hi && lo&0x7f800000 != 0x7f800000; ok {
			binary.LittleEndian.PutUint32(out, lo)
		}
	default:
		if ok = lo == hi && lo != 0 && isFinite(lo); ok {
			binary.LittleEndian.PutUint64(out, math.Float64bits(lo))
		}
	}
	return ok
}
