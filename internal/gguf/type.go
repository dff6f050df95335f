package gguf

import "fmt"

// Type is a type of tensors of ggml. The numbers are those of enum ggml_type.
type Type uint32

// The float types, whose values need no decoder, and a type of blocks: a scale d, and 32 integers q
// of 8 bits, which stand for d·q.
const (
	F32  Type = 0
	F16  Type = 1
	Q8_0 Type = 8
	F64  Type = 28
	BF16 Type = 30
)

// layout says how a type stores a row: in blocks of so many elements and bytes.
type layout struct {
	name            string
	elements, bytes int64
}

// layouts has every type that ggml has had. A removed type has no sizes.
var layouts = map[Type]layout{
	F32:  {"F32", 1, 4},
	F16:  {"F16", 1, 2},
	2:    {"Q4_0", 32, 18},
	3:    {"Q4_1", 32, 20},
	4:    {name: "Q4_2"},
	5:    {name: "Q4_3"},
	6:    {"Q5_0", 32, 22},
	7:    {"Q5_1", 32, 24},
	Q8_0: {"Q8_0", 32, 34},
	9:    {"Q8_1", 32, 36},
	10:   {"Q2_K", 256, 84},
	11:   {"Q3_K", 256, 110},
	12:   {"Q4_K", 256, 144},
	13:   {"Q5_K", 256, 176},
	14:   {"Q6_K", 256, 210},
	15:   {"Q8_K", 256, 292},
	16:   {"IQ2_XXS", 256, 66},
	17:   {"IQ2_XS", 256, 74},
	18:   {"IQ3_XXS", 256, 98},
	19:   {"IQ1_S", 256, 50},
	20:   {"IQ4_NL", 32, 18},
	21:   {"IQ3_S", 256, 110},
	22:   {"IQ2_S", 256, 82},
	23:   {"IQ4_XS", 256, 136},
	24:   {"I8", 1, 1},
	25:   {"I16", 1, 2},
	26:   {"I32", 1, 4},
	27:   {"I64", 1, 8},
	F64:  {"F64", 1, 8},
	29:   {"IQ1_M", 256, 56},
	BF16: {"BF16", 1, 2},
	31:   {name: "Q4_0_4_4"},
	32:   {name: "Q4_0_4_8"},
	33:   {name: "Q4_0_8_8"},
	34:   {"TQ1_0", 256, 54},
	35:   {"TQ2_0", 256, 66},
	36:   {name: "IQ4_NL_4_4"},
	37:   {name: "IQ4_NL_4_8"},
	38:   {name: "IQ4_NL_8_8"},
	39:   {"MXFP4", 32, 17},
	40:   {"NVFP4", 64, 36},
	41:   {"Q1_0", 128, 18},
	42:   {"Q2_0", 64, 18},
}

// String returns the name that ggml gives the type.
func (t Type) String() string {
	if l, ok := layouts[t]; ok {
		return l.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// Block returns the elements and the bytes of a block, zeros for a type that is unknown or removed.
// A row of a tensor is a whole number of blocks.
func (t Type) Block() (elements, bytes int64) {
	l := layouts[t]
	return l.elements, l.bytes
}

// IsFloat reports whether the elements of the type are plain floats: F64, F32, F16 or BF16.
func (t Type) IsFloat() bool { return t == F32 || t == F16 || t == F64 || t == BF16 }
