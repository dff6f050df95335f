// Package ggml knows how ggml stores the elements of tensors: plain numbers, or blocks of codes
// that share scales. It turns blocks into numbers, and numbers into the blocks of the simple types.
//
// A value that Decode writes is exact. Rounded to float32 it is, bit for bit, the value that
// llama.cpp's dequantize_row functions compute.
package ggml

import (
	"fmt"

	"github.com/loratool/loratool/format/dtype"
)

// Type is a type of tensors. The numbers are those of enum ggml_type.
type Type uint32

// The types that other packages name.
const (
	F32   Type = 0
	F16   Type = 1
	Q4_0  Type = 2
	Q4_1  Type = 3
	Q5_0  Type = 6
	Q5_1  Type = 7
	Q8_0  Type = 8
	F64   Type = 28
	BF16  Type = 30
	MXFP4 Type = 39
	NVFP4 Type = 40
)

// MaxElements and MaxBytes are the sizes of the largest block.
const (
	MaxElements = 256
	MaxBytes    = 292
)

// layout says how a type stores a row: in blocks of so many elements and bytes.
type layout struct {
	name            string
	elements, bytes int64
	plain           dtype.Type                        // of a float type
	decode          func(dst []float64, block []byte) // a block; nil for floats, and for types that are no weights
	encode          func(block []byte, src []float32) // a block; nil for types that are not encoded here
}

// layouts has every type that ggml has had. A removed type has no sizes.
var layouts = [...]layout{
	F32:   {name: "F32", elements: 1, bytes: 4, plain: dtype.F32},
	F16:   {name: "F16", elements: 1, bytes: 2, plain: dtype.F16},
	Q4_0:  {name: "Q4_0", elements: 32, bytes: 18, decode: decodeQ4_0, encode: encodeQ4_0},
	Q4_1:  {name: "Q4_1", elements: 32, bytes: 20, decode: decodeQ4_1, encode: encodeQ4_1},
	4:     {name: "Q4_2"},
	5:     {name: "Q4_3"},
	Q5_0:  {name: "Q5_0", elements: 32, bytes: 22, decode: decodeQ5_0, encode: encodeQ5_0},
	Q5_1:  {name: "Q5_1", elements: 32, bytes: 24, decode: decodeQ5_1, encode: encodeQ5_1},
	Q8_0:  {name: "Q8_0", elements: 32, bytes: 34, decode: decodeQ8_0, encode: encodeQ8_0},
	9:     {name: "Q8_1", elements: 32, bytes: 36}, // of activations
	10:    {name: "Q2_K", elements: 256, bytes: 84, decode: decodeQ2_K},
	11:    {name: "Q3_K", elements: 256, bytes: 110, decode: decodeQ3_K},
	12:    {name: "Q4_K", elements: 256, bytes: 144, decode: decodeQ4_K},
	13:    {name: "Q5_K", elements: 256, bytes: 176, decode: decodeQ5_K},
	14:    {name: "Q6_K", elements: 256, bytes: 210, decode: decodeQ6_K},
	15:    {name: "Q8_K", elements: 256, bytes: 292}, // of activations
	16:    {name: "IQ2_XXS", elements: 256, bytes: 66, decode: decodeIQ2_XXS},
	17:    {name: "IQ2_XS", elements: 256, bytes: 74, decode: decodeIQ2_XS},
	18:    {name: "IQ3_XXS", elements: 256, bytes: 98, decode: decodeIQ3_XXS},
	19:    {name: "IQ1_S", elements: 256, bytes: 50, decode: decodeIQ1_S},
	20:    {name: "IQ4_NL", elements: 32, bytes: 18, decode: decodeIQ4_NL},
	21:    {name: "IQ3_S", elements: 256, bytes: 110, decode: decodeIQ3_S},
	22:    {name: "IQ2_S", elements: 256, bytes: 82, decode: decodeIQ2_S},
	23:    {name: "IQ4_XS", elements: 256, bytes: 136, decode: decodeIQ4_XS},
	24:    {name: "I8", elements: 1, bytes: 1},
	25:    {name: "I16", elements: 1, bytes: 2},
	26:    {name: "I32", elements: 1, bytes: 4},
	27:    {name: "I64", elements: 1, bytes: 8},
	F64:   {name: "F64", elements: 1, bytes: 8, plain: dtype.F64},
	29:    {name: "IQ1_M", elements: 256, bytes: 56, decode: decodeIQ1_M},
	BF16:  {name: "BF16", elements: 1, bytes: 2, plain: dtype.BF16},
	31:    {name: "Q4_0_4_4"},
	32:    {name: "Q4_0_4_8"},
	33:    {name: "Q4_0_8_8"},
	34:    {name: "TQ1_0", elements: 256, bytes: 54, decode: decodeTQ1_0, encode: encodeTQ1_0},
	35:    {name: "TQ2_0", elements: 256, bytes: 66, decode: decodeTQ2_0, encode: encodeTQ2_0},
	36:    {name: "IQ4_NL_4_4"},
	37:    {name: "IQ4_NL_4_8"},
	38:    {name: "IQ4_NL_8_8"},
	MXFP4: {name: "MXFP4", elements: 32, bytes: 17, decode: decodeMXFP4, encode: encodeMXFP4},
	NVFP4: {name: "NVFP4", elements: 64, bytes: 36, decode: decodeNVFP4, encode: encodeNVFP4},
	41:    {name: "Q1_0", elements: 128, bytes: 18, decode: decodeQ1_0, encode: encodeQ1_0},
	42:    {name: "Q2_0", elements: 64, bytes: 18, decode: decodeQ2_0, encode: encodeQ2_0},
}

func (t Type) layout() layout {
	if int64(t) < int64(len(layouts)) {
		return layouts[t]
	}
	return layout{}
}

// String returns the name that ggml gives the type.
func (t Type) String() string {
	if l := t.layout(); l.name != "" {
		return l.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// Block returns the elements and the bytes of a block, zeros for a type that is unknown or removed.
// A row of a tensor is a whole number of blocks.
func (t Type) Block() (elements, bytes int64) {
	l := t.layout()
	return l.elements, l.bytes
}

// IsRemoved reports whether ggml once had the type.
func (t Type) IsRemoved() bool { l := t.layout(); return l.name != "" && l.elements == 0 }

// IsFloat reports whether the elements of the type are plain floats: F64, F32, F16 or BF16.
func (t Type) IsFloat() bool { return t == F32 || t == F16 || t == F64 || t == BF16 }

// CanDecode reports whether Decode knows the type: a float, or one of the types that weights have.
func (t Type) CanDecode() bool { return t.IsFloat() || t.layout().decode != nil }

// Decode writes the values of whole blocks to dst, which has room for all of their elements. Values
// of NVFP4 are to be multiplied by the scale of the tensor. Decode panics unless CanDecode is true.
func (t Type) Decode(dst []float64, blocks []byte) {
	l := t.layout()
	if t.IsFloat() {
		dtype.Widen64(dst[:int64(len(blocks))/l.bytes], l.plain, blocks)
		return
	}
	for ; len(blocks) > 0; dst, blocks = dst[l.elements:], blocks[l.bytes:] {
		l.decode(dst[:l.elements:l.elements], blocks[:l.bytes:l.bytes])
	}
}

// CanEncode reports whether Encode knows the type.
func (t Type) CanEncode() bool { return t.layout().encode != nil }

// Encode quantises whole blocks of src, as llama-quantize does on x86-64 without an importance
// matrix. dst has room for all of the blocks. Encode panics unless CanEncode is true.
func (t Type) Encode(dst []byte, src []float32) {
	l := t.layout()
	for ; len(src) > 0; dst, src = dst[l.bytes:], src[l.elements:] {
		l.encode(dst[:l.bytes:l.bytes], src[:l.elements:l.elements])
	}
}
