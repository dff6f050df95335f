package dtype

import (
	"encoding/binary"
	"math"
)

// Widen writes the elements of src, little-endian values of type t, to dst as float32. F16 and BF16
// widen exactly; F64 is rounded to nearest even. Widen panics if t is not a float type or src is
// shorter than dst needs.
func Widen(dst []float32, t Type, src []byte) {
	switch t {
	case F32:
		src = src[:4*len(dst)]
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case BF16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	case F16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = F16ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))
		}
	case F64:
		src = src[:8*len(dst)]
		for i := range dst {
			dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
		}
	default:
		panic("dtype: Widen of " + t.String())
	}
}

// Widen64 writes the elements of src, little-endian values of type t, to dst as float64, exactly.
func Widen64(dst []float64, t Type, src []byte) {
	switch t {
	case F64:
		src = src[:8*len(dst)]
		for i := range dst {
			dst[i] = math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:]))
		}
	case F32:
		src = src[:4*len(dst)]
		for i := range dst {
			dst[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:])))
		}
	case F16, BF16:
		for i := range dst {
			dst[i] = Load(t, src, i)
		}
	default:
		panic("dtype: Widen64 of " + t.String())
	}
}

// Load returns element i of src, little-endian values of float type t, as a float64, exactly.
func Load(t Type, src []byte, i int) float64 {
	switch t {
	case F64:
		return math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:]))
	case F32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:])))
	case BF16:
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16))
	case F16:
		return float64(F16ToFloat32(binary.LittleEndian.Uint16(src[2*i:])))
	}
	panic("dtype: Load of " + t.String())
}

// Store writes RN_t(x), x rounded once to nearest even, to element i of dst. A NaN becomes a quiet
// NaN of type t.
func Store(t Type, dst []byte, i int, x float64) {
	switch t {
	case F64:
		binary.LittleEndian.PutUint64(dst[8*i:], math.Float64bits(x))
	case F32:
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(float32(x)))
	case BF16:
		binary.LittleEndian.PutUint16(dst[2*i:], BF16FromFloat64(x))
	case F16:
		binary.LittleEndian.PutUint16(dst[2*i:], F16FromFloat64(x))
	default:
		panic("dtype: Store of " + t.String())
	}
}

// Layout divides the bits of an IEEE 754 binary format: a sign, Exponent bits of exponent, and
// Fraction bits.
type Layout struct{ Exponent, Fraction int }

// Layout returns the layout of a type; ok is false if IsFloat is.
func (t Type) Layout() (l Layout, ok bool) {
	switch t {
	case F64:
		l = Layout{11, 52}
	case F32:
		l = Layout{8, 23}
	case F16:
		l = Layout{5, 10}
	case BF16:
		l = Layout{8, 7}
	}
	return l, l != Layout{}
}

// Bias returns the number that is added to the exponent of a normal number to store it.
func (l Layout) Bias() int { return 1<<(l.Exponent-1) - 1 }

// Unit returns the unit roundoff: half the distance from 1 to the next larger number.
func (l Layout) Unit() float64 { return math.Ldexp(1, -l.Fraction-1) }

// BF16ToFloat32 widens a bfloat16 exactly.
func BF16ToFloat32(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// BF16FromFloat32 rounds to nearest even. A NaN becomes quiet and keeps its sign and the top of its
// payload.
func BF16FromFloat32(x float32) uint16 {
	b := math.Float32bits(x)
	if b&0x7fffffff > 0x7f800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// BF16FromFloat64 rounds once to nearest even.
func BF16FromFloat64(x float64) uint16 { return BF16FromFloat32(toFloat32Odd(x)) }

// F16FromFloat64 rounds once to nearest even.
func F16FromFloat64(x float64) uint16 { return F16FromFloat32(toFloat32Odd(x)) }

// toFloat32Odd rounds to odd: it truncates an inexact result and sets its last bit. float32 has
// more than two bits beyond BF16 and F16, even in the subnormal range of F16, so rounding the
// result once more to nearest even gives the same as rounding x directly (Boldo and Melquiond,
// "Emulation of FMA and correctly rounded sums", 2008). BF16's subnormals are as deep as float32's,
// but two bits remain in every binade: 2^-133 against 2^-149.
func toFloat32Odd(x float64) float32 {
	f := float32(x)
	back := float64(f)
	if back == x || x != x {
		return f
	}
	b := math.Float32bits(f)
	if math.Abs(back) > math.Abs(x) {
		b-- // to the truncated value, or from infinity to the largest finite value
	}
	return math.Float32frombits(b | 1)
}

// F16ToFloat32 widens a half exactly; a signalling NaN stays signalling.
func F16ToFloat32(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exp := uint32(h>>10) & 0x1f
	frac := uint32(h & 0x3ff)
	switch exp {
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	case 0:
		return math.Float32frombits(sign | math.Float32bits(float32(frac)*0x1p-24))
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}

// F16FromFloat32 rounds to nearest even; magnitudes of 65520 and above become infinity. A NaN
// becomes quiet and keeps its sign and the top of its payload.
func F16FromFloat32(x float32) uint16 {
	b := math.Float32bits(x)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000:
		return sign | 0x7e00 | uint16(b>>13&0x3ff)
	case b >= 0x477ff000: // 65520, the midpoint above the largest half
		return sign | 0x7c00
	case b < 0x38800000: // below 2^-14: the result is subnormal; adding 0.5 makes the adder round at 2^-24
		f := math.Float32frombits(b) + 0.5
		return sign | uint16(math.Float32bits(f)-0x3f000000)
	}
	b += 0xfff + b>>13&1
	return sign | uint16((b-0x38000000)>>13)
}

// CountNonFinite returns how many values of float type t in src are NaN or infinite, which have all
// exponent bits set.
func CountNonFinite(t Type, src []byte) (n int) {
	exponent := map[Type]uint64{F64: 0x7ff << 52, F32: 0xff << 23, F16: 0x1f << 10, BF16: 0xff << 7}[t]
	size := t.Size()
	for ; len(src) >= size; src = src[size:] {
		var x uint64
		switch size {
		case 2:
			x = uint64(binary.LittleEndian.Uint16(src))
		case 4:
			x = uint64(binary.LittleEndian.Uint32(src))
		default:
			x = binary.LittleEndian.Uint64(src)
		}
		if x&exponent == exponent {
			n++
		}
	}
	return n
}
