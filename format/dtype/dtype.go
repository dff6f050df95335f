// Package dtype holds the storage types of the safetensors format: their names and widths. It
// widens float types exactly to float32 or float64, and rounds wide values back once, to nearest
// even.
package dtype

import (
	"math/bits"
	"strings"
)

// Type is a storage type. The zero value is Invalid.
type Type uint8

// The storage types of safetensors, spelled as in its headers. They are in the order of Hugging
// Face's library, which writes the data of the last type first.
const (
	Invalid Type = iota
	BOOL
	F4
	F6E2M3
	F6E3M2
	U8
	I8
	F8E5M2
	F8E4M3
	F8E8M0
	F8E4M3FNUZ
	F8E5M2FNUZ
	I16
	U16
	F16
	BF16
	I32
	U32
	F32
	C64
	F64
	I64
	U64
	nTypes
)

var types = [nTypes]struct {
	name string
	bits int
}{
	Invalid:    {"invalid", 0},
	BOOL:       {"BOOL", 8},
	F4:         {"F4", 4},
	F6E2M3:     {"F6_E2M3", 6},
	F6E3M2:     {"F6_E3M2", 6},
	U8:         {"U8", 8},
	I8:         {"I8", 8},
	F8E5M2:     {"F8_E5M2", 8},
	F8E4M3:     {"F8_E4M3", 8},
	F8E8M0:     {"F8_E8M0", 8},
	F8E4M3FNUZ: {"F8_E4M3FNUZ", 8},
	F8E5M2FNUZ: {"F8_E5M2FNUZ", 8},
	I16:        {"I16", 16},
	U16:        {"U16", 16},
	F16:        {"F16", 16},
	BF16:       {"BF16", 16},
	I32:        {"I32", 32},
	U32:        {"U32", 32},
	F32:        {"F32", 32},
	C64:        {"C64", 64},
	F64:        {"F64", 64},
	I64:        {"I64", 64},
	U64:        {"U64", 64},
}

var byName = func() map[string]Type {
	m := make(map[string]Type, nTypes)
	for t := BOOL; t < nTypes; t++ {
		m[types[t].name] = t
	}
	return m
}()

// Parse returns the type with a safetensors name; ok is false for a name that no version of
// safetensors defines.
func Parse(name string) (Type, bool) {
	t, ok := byName[name]
	return t, ok
}

// All returns every type, in ascending order.
func All() []Type {
	all := make([]Type, 0, nTypes)
	for t := BOOL; t < nTypes; t++ {
		all = append(all, t)
	}
	return all
}

// String returns the safetensors name.
func (t Type) String() string {
	if t >= nTypes {
		t = Invalid
	}
	return types[t].name
}

// Bits returns the width of one element in bits, 0 for Invalid. F4 and the F6 types are narrower
// than a byte.
func (t Type) Bits() int {
	if t >= nTypes {
		return 0
	}
	return types[t].bits
}

// Size returns the width of one element in bytes, or 0 for types narrower than a byte.
func (t Type) Size() int { return t.Bits() / 8 }

// IsFloat reports whether Widen, Load and Store know the type: F64, F32, F16 and BF16.
func (t Type) IsFloat() bool { return t == F64 || t == F32 || t == F16 || t == BF16 }

// NBytes returns the number of bytes of n elements; ok is false if that is not a whole number or
// does not fit an int64.
func (t Type) NBytes(n uint64) (nBytes int64, ok bool) {
	hi, lo := bits.Mul64(n, uint64(t.Bits()))
	if hi != 0 || lo%8 != 0 || lo/8 > 1<<62 {
		return 0, false
	}
	return int64(lo / 8), true
}

// NElements returns the product of a shape; ok is false if it overflows 63 bits. Zero dimensions do
// not excuse an overflow of the others. An empty shape has one element.
func NElements(shape []uint64) (n uint64, ok bool) {
	n, zero := 1, false
	for _, d := range shape {
		if d == 0 {
			zero = true
			continue
		}
		hi, lo := bits.Mul64(n, d)
		if hi != 0 || lo > 1<<63-1 {
			return 0, false
		}
		n = lo
	}
	if zero {
		return 0, true
	}
	return n, true
}

// Names returns the names of types, separated by commas.
func Names(ts []Type) string {
	names := make([]string, len(ts))
	for i, t := range ts {
		names[i] = t.String()
	}
	return strings.Join(names, ", ")
}
