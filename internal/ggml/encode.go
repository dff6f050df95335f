package ggml

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// The encoders compute what the quantize_row functions "ref" of llama.cpp do on x86-64: float32
// operations one after the other, none of them fused, which is why products are converted. The
// scale d is rounded to F16 when it is stored, and the codes are those of the unrounded d.

// encodeQ4_0: d = the element of largest magnitude, the first of them, / −8.
func encodeQ4_0(block []byte, src []float32) {
	d, by := scaleOf(extreme(src) / -8)
	putHalf(block, d)
	for i := range 16 {
		low, up := codeOf(float32(src[i]*by)+8.5, 15), codeOf(float32(src[i+16]*by)+8.5, 15)
		block[2+i] = low | up<<4
	}
}

// encodeQ4_1: m = the least element, d = (the largest − m) / 15.
func encodeQ4_1(block []byte, src []float32) {
	least, most := bounds(src)
	d, by := scaleOf((most - least) / 15)
	putHalf(block, d)
	putHalf(block[2:], least)
	for i := range 16 {
		low, up := codeOf(float32((src[i]-least)*by)+0.5, 15), codeOf(float32((src[i+16]-least)*by)+0.5, 15)
		block[4+i] = low | up<<4
	}
}

// encodeQ5_0: d as for Q4_0, / −16.
func encodeQ5_0(block []byte, src []float32) {
	d, by := scaleOf(extreme(src) / -16)
	putHalf(block, d)
	var codes [32]byte
	for i, x := range src {
		codes[i] = codeOf(float32(x*by)+16.5, 31)
	}
	putFiveBits(block[2:], &codes)
}

// encodeQ5_1: m and d as for Q4_1, / 31.
func encodeQ5_1(block []byte, src []float32) {
	least, most := bounds(src)
	d, by := scaleOf((most - least) / 31)
	putHalf(block, d)
	putHalf(block[2:], least)
	var codes [32]byte
	for i, x := range src {
		codes[i] = codeOf(float32((x-least)*by)+0.5, 31)
	}
	putFiveBits(block[4:], &codes)
}

// encodeQ8_0: d = the largest magnitude / 127, codes rounded half away from zero.
func encodeQ8_0(block []byte, src []float32) {
	d, by := scaleOf(magnitude(src) / 127)
	putHalf(block, d)
	for i, x := range src {
		block[2+i] = byte(truncate(round(x * by)))
	}
}

// encodeMXFP4: e−127 = ⌊log₂ amax⌋ − 2.
func encodeMXFP4(block []byte, src []float32) {
	amax := float32(0)
	for _, x := range src {
		if a := abs(x); amax < a {
			amax = a
		}
	}
	block[0] = 0
	if amax > 0 { // a logarithm that float32 rounds up to an integer counts as that
		log := float32(math.Log2(float64(amax)))
		block[0] = byte(truncate(float32(math.Floor(float64(log))) - 2 + 127))
	}
	d := float32(math.Ldexp(1, int(block[0])-128))
	for i := range 16 {
		block[1+i] = nearest(src[i], d) | nearest(src[i+16], d)<<4
	}
}

// encodeNVFP4: s = the largest magnitude / 6 in F8_E4M3, for groups of 16.
func encodeNVFP4(block []byte, src []float32) {
	for i := range 4 {
		group := src[16*i : 16*i+16]
		amax := float32(0)
		for _, x := range group {
			if a := abs(x); amax < a {
				amax = a
			}
		}
		block[i] = unsignedE4M3(amax / 6)
		d := float32(halvedE4M3[block[i]])
		for j := range 8 {
			block[4+8*i+j] = nearest(group[j], d) | nearest(group[j+8], d)<<4
		}
	}
}

// encodeTQ1_0: d = the largest magnitude.
func encodeTQ1_0(block []byte, src []float32) {
	d, by := scaleOf(magnitude(src))
	putHalf(block[52:], d)
	for _, bytes := range [][]byte{block[:32], block[32:48], block[48:52]} {
		n := min(5, len(src)/len(bytes))
		for i := range bytes {
			q := byte(0)
			for k := range 5 {
				if q *= 3; k < n {
					q += trit(src[i+k*len(bytes)] * by)
				}
			}
			bytes[i] = byte((uint16(q)*256 + 242) / 243)
		}
		src = src[n*len(bytes):]
	}
}

// encodeTQ2_0: d = the largest magnitude.
func encodeTQ2_0(block []byte, src []float32) {
	d, by := scaleOf(magnitude(src))
	putHalf(block[64:], d)
	clear(block[:64])
	for i, x := range src {
		block[i/128*32+i%32] |= trit(x*by) & 3 << (i / 32 % 4 * 2)
	}
}

// encodeQ1_0: d = the mean magnitude.
func encodeQ1_0(block []byte, src []float32) {
	sum := float32(0)
	clear(block)
	for i, x := range src {
		sum += abs(x)
		if x >= 0 {
			block[2+i/8] |= 1 << (i % 8)
		}
	}
	putHalf(block, sum/128)
}

// encodeQ2_0: d = the largest magnitude.
func encodeQ2_0(block []byte, src []float32) {
	amax := float32(0)
	for _, x := range src {
		if a := abs(x); a > amax {
			amax = a
		}
	}
	d, by := scaleOf(amax)
	clear(block)
	putHalf(block, d)
	for i, x := range src {
		q := max(-1, min(2, truncate(round(x*by)))) + 1
		block[2+i/4] |= byte(q) << (i % 4 * 2)
	}
}

// scaleOf returns d and 1/d, or 0 for a d of 0.
func scaleOf(d float32) (scale, by float32) {
	if d == 0 {
		return d, 0
	}
	return d, 1 / d
}

// extreme returns the element of largest magnitude, the first of them.
func extreme(src []float32) (x float32) {
	amax := float32(0)
	for _, v := range src {
		if a := abs(v); amax < a {
			amax, x = a, v
		}
	}
	return x
}

// magnitude returns the largest magnitude. A NaN counts until the next element.
func magnitude(src []float32) (amax float32) {
	for _, x := range src {
		if a := abs(x); !(amax > a) {
			amax = a
		}
	}
	return amax
}

// bounds returns the least and the largest element.
func bounds(src []float32) (least, most float32) {
	least, most = math.MaxFloat32, -math.MaxFloat32
	for _, x := range src {
		if x < least {
			least = x
		}
		if x > most {
			most = x
		}
	}
	return least, most
}

func abs(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ (1 << 31)) }

// round rounds half away from zero.
func round(x float32) float32 { return float32(math.Round(float64(x))) }

// truncate converts as x86-64 does: NaN, and what int32 has no room for, become its least number.
func truncate(x float32) int32 {
	if x > -1<<31 && x < 1<<31 {
		return int32(x)
	}
	return math.MinInt32
}

// codeOf is MIN(most, (int8_t)x) of C on x86-64.
func codeOf(x float32, most int8) byte { return byte(min(most, int8(truncate(x)))) }

// trit is lroundf(x) + 1 of C on x86-64.
func trit(x float32) byte {
	if !(abs(x) <= math.MaxFloat32) { // not by x−x, which can be fused with the product that x is
		return 1
	}
	return byte(truncate(round(x)) + 1)
}

// putFiveBits stores the fifth bits of codes, and then the rest of them.
func putFiveBits(p []byte, codes *[32]byte) {
	high := uint32(0)
	for i, q := range codes {
		high |= uint32(q>>4) << i
	}
	binary.LittleEndian.PutUint32(p, high)
	for i := range 16 {
		p[4+i] = codes[i]&15 | codes[i+16]<<4
	}
}

// putHalf stores x in F16. ggml has one NaN.
func putHalf(p []byte, x float32) {
	bits := dtype.F16FromFloat32(x)
	if x != x {
		bits = bits&0x8000 | 0x7e00
	}
	binary.LittleEndian.PutUint16(p, bits)
}

// nearest returns the code of MXFP4 whose value times d is nearest to x, the lowest of several. The
// distances grow from the nearest value on.
func nearest(x, d float32) (code byte) {
	first := byte(1)
	if x < 0 {
		first = 9
	}
	least := abs(x)
	for q := first; q < first+7; q++ {
		distance := abs(float32(float32(doubled[q])*d) - x)
		if distance > least {
			break
		}
		if distance < least {
			code, least = q, distance
		}
	}
	return code
}

// unsignedE4M3 rounds to F8_E4M3 without a sign, half up. All from 256 on becomes 448, the largest.
func unsignedE4M3(x float32) byte {
	if !(x > 0) {
		return 0
	}
	bits := math.Float32bits(min(x, 448))
	exponent := int(bits>>23) - 127 + 7
	if exponent <= 0 { // a subnormal code, or 0
		return byte(min(7, truncate(float32(x*512)+0.5)))
	}
	code := uint32(exponent)<<3 | bits>>20&7 + bits>>19&1
	if code >= 15<<3 {
		code = 0x7e
	}
	return byte(code)
}
