package ggml

import (
	"encoding/binary"

	"github.com/loratool/loratool/format/dtype"
)

// The simple types have a scale d for a block, and some a minimum m, both in F16. Where a byte has
// two codes q of four bits, its low half belongs to the first half of the block. The order of the
// products is that of ggml, and shows in the signs of zeros.

// decodeQ4_0: d(q−8), stored as d, q.
func decodeQ4_0(dst []float64, block []byte) { look(dst, block[2:18], &lessEight, half(block)) }

// decodeQ4_1: d·q + m, stored as d, m, q.
func decodeQ4_1(dst []float64, block []byte) {
	d, m := half(block), half(block[2:])
	for i, q := range block[4:20] {
		dst[i], dst[i+16] = d*float64(q&15)+m, d*float64(q>>4)+m
	}
}

// decodeQ5_0: d(q−16), stored as d, the fifth bits of all q in 32 bits, and the rest.
func decodeQ5_0(dst []float64, block []byte) {
	d, high := half(block), binary.LittleEndian.Uint32(block[2:])
	for i, q := range block[6:22] {
		low, up := int(q&15)|int(high>>i&1)<<4, int(q>>4)|int(high>>(i+16)&1)<<4
		dst[i], dst[i+16] = d*float64(low-16), d*float64(up-16)
	}
}

// decodeQ5_1: d·q + m, stored as d, m, the fifth bits of all q in 32 bits, and the rest.
func decodeQ5_1(dst []float64, block []byte) {
	d, m, high := half(block), half(block[2:]), binary.LittleEndian.Uint32(block[4:])
	for i, q := range block[8:24] {
		low, up := int(q&15)|int(high>>i&1)<<4, int(q>>4)|int(high>>(i+16)&1)<<4
		dst[i], dst[i+16] = d*float64(low)+m, d*float64(up)+m
	}
}

// decodeQ8_0: d·q, stored as d, and q in signed bytes.
func decodeQ8_0(dst []float64, block []byte) {
	d := half(block)
	for i, q := range block[2:34] {
		dst[i] = d * float64(int8(q))
	}
}

// decodeQ1_0: ±d, stored as d, and bits that are 1 for +, the lowest first.
func decodeQ1_0(dst []float64, block []byte) {
	d := half(block)
	values := [2]float64{-d, d}
	for i := range dst {
		dst[i] = values[block[2+i/8]>>(i%8)&1]
	}
}

// decodeQ2_0: d(q−1), stored as d, and q in two bits, the lowest first.
func decodeQ2_0(dst []float64, block []byte) {
	d := half(block)
	for i := range dst {
		dst[i] = d * float64(int(block[2+i/4]>>(i%4*2)&3)-1)
	}
}

// decodeTQ1_0: d(q−1), with q of 0, 1 or 2. Five q are the digits of a number in base 3, which is
// stored as a fraction of 256: the digits come out of multiplications by 3. The block has 160 q in
// 32 bytes, 80 in 16 and 16 in 4 bytes, where neighbours are in different bytes, and d.
func decodeTQ1_0(dst []float64, block []byte) {
	d := half(block[52:])
	for _, bytes := range [][]byte{block[:32], block[32:48], block[48:52]} {
		for power := byte(1); power != 243 && len(dst) > 0; power *= 3 {
			for i, b := range bytes {
				dst[i] = d * float64(int(uint16(b*power)*3>>8)-1)
			}
			dst = dst[len(bytes):]
		}
	}
}

// decodeTQ2_0: d(q−1), stored as q in two bits and d. Of 32 bytes, the lowest two bits are the
// first 32 elements.
func decodeTQ2_0(dst []float64, block []byte) {
	d := half(block[64:])
	for i := range dst {
		dst[i] = d * float64(int(block[i/128*32+i%32]>>(i/32%4*2)&3)-1)
	}
}

// half returns the number in F16 that p begins with.
func half(p []byte) float64 { return halfOf(binary.LittleEndian.Uint16(p)) }

func halfOf(bits uint16) float64 { return float64(dtype.F16ToFloat32(bits)) }
