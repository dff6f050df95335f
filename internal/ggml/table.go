package ggml

import (
	"encoding/binary"
	"math"
)

// These types have codes of four bits, and look their values up in a table.

// lessEight are the values of the codes of Q4_0.
var lessEight = [16]float64{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}

// nonlinear are the values of the codes of IQ4_NL and IQ4_XS.
var nonlinear = [16]float64{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// doubled are the values of the codes of MXFP4 and NVFP4, E2M1 times 2. ggml has no −0.
var doubled = [16]float64{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

// decodeIQ4_NL: d·v[q], stored as d, q.
func decodeIQ4_NL(dst []float64, block []byte) { look(dst, block[2:18], &nonlinear, half(block)) }

// decodeIQ4_XS: d(s−32)·v[q] for groups of 32, stored as d, the upper two bits of all s, their
// lower four, q.
func decodeIQ4_XS(dst []float64, block []byte) {
	d, high := half(block), int(binary.LittleEndian.Uint16(block[2:]))
	for i := range 8 {
		s := int(block[4+i/2]>>(i%2*4)&15) | high>>(2*i)&3<<4
		look(dst[32*i:], block[8+16*i:24+16*i], &nonlinear, d*float64(s-32))
	}
}

// decodeMXFP4: 2^(e−128)·v[q], stored as e, q.
func decodeMXFP4(dst []float64, block []byte) {
	look(dst, block[1:17], &doubled, math.Float64frombits(uint64(1023-128+int(block[0]))<<52))
}

// decodeNVFP4: s·v[q] for groups of 16, stored as the s in F8_E4M3 without a sign, halved, and q.
func decodeNVFP4(dst []float64, block []byte) {
	for i := range 4 {
		look(dst[16*i:], block[4+8*i:12+8*i], &doubled, halvedE4M3[block[i]])
	}
}

// halvedE4M3 are the scales of NVFP4. ggml ignores the sign, and takes 0x7f, a NaN, as 0.
var halvedE4M3 = func() (values [256]float64) {
	for code := range values {
		exponent, fraction := code>>3&15, float64(code&7)
		if exponent > 0 {
			fraction += 8
		}
		values[code] = math.Ldexp(fraction, max(exponent, 1)-11)
	}
	values[0x7f] = 0
	return values
}()

// look decodes the codes of a group, whose low halves are its first half.
func look(dst []float64, codes []byte, table *[16]float64, scale float64) {
	low, up := dst[:len(codes)], dst[len(codes):2*len(codes)]
	for i, q := range codes {
		low[i], up[i] = scale*table[q&15], scale*table[q>>4]
	}
}
