package ggml

import (
	"encoding/binary"

	"github.com/loratool/loratool/format/dtype"
)

// The simple types have one scale d for a block, and some a minimum m. Of the 16 bytes with two
// codes of four bits each, the low halves are the first 16 elements.

// d(q−8): d, q
func decodeQ4_0(dst []float64, block []byte) {
	d := half(block)
	for i, q := range block[2:18] {
		dst[i], dst[i+16] = d*float64(int(q&15)-8), d*float64(int(q>>4)-8)
	}
}

// d·q: d, q in signed bytes
func decodeQ8_0(dst []float64, block []byte) {
	d := half(block)
	for i, q := range block[2:34] {
		dst[i] = d * float64(int8(q))
	}
}

// half returns the number in F16 that p begins with.
func half(p []byte) float64 { return float64(dtype.F16ToFloat32(binary.LittleEndian.Uint16(p))) }
