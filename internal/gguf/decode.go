package gguf

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// Decoded returns the plain type that holds every value of t exactly: t itself if it is a float,
// and F32 for Q8_0, whose values have at most 19 bits. ok is false for a type that is not decoded
// here.
func Decoded(t Type) (plain Type, ok bool) {
	if t == Q8_0 {
		return F32, true
	}
	return t, t.IsFloat()
}

// Decode fills dst with the values of whole blocks of type Q8_0 as numbers of type F32, four bytes
// each in the order of the file.
func Decode(dst, blocks []byte) {
	elements, size := Q8_0.Block()
	for len(blocks) > 0 {
		scale := dtype.Load(dtype.F16, blocks, 0)
		for i, q := range blocks[2:size] {
			value := math.Float32bits(float32(scale * float64(int8(q))))
			binary.LittleEndian.PutUint32(dst[4*i:], value)
		}
		dst, blocks = dst[4*elements:], blocks[size:]
	}
}
