package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// ValueType is a type of values. The numbers are those of enum gguf_type.
type ValueType uint32

// The types of values.
const (
	Uint8 ValueType = iota
	Int8
	Uint16
	Int16
	Uint32
	Int32
	Float32
	Bool
	Text
	Array
	Uint64
	Int64
	Float64
)

var valueTypes = [...]struct {
	name  string
	width int64 // bytes, at least
}{
	Uint8: {"uint8", 1}, Int8: {"int8", 1}, Uint16: {"uint16", 2}, Int16: {"int16", 2},
	Uint32: {"uint32", 4}, Int32: {"int32", 4}, Float32: {"float32", 4}, Bool: {"bool", 1},
	Text: {"string", 8}, Array: {"array", 12}, Uint64: {"uint64", 8}, Int64: {"int64", 8},
	Float64: {"float64", 8},
}

// String returns the type's name.
func (t ValueType) String() string {
	if int(t) < len(valueTypes) {
		return valueTypes[t].name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// width returns the least number of bytes of a value, 0 for an unknown type.
func (t ValueType) width() int64 {
	if int(t) < len(valueTypes) {
		return valueTypes[t].width
	}
	return 0
}

// KV is a key with its value.
type KV struct {
	Key string
	Value
}

// Value is a number, a bool, a string, or an array of one of these. It keeps the bytes of the file.
type Value struct {
	Type ValueType
	Elem ValueType // of an array's elements
	N    uint64    // elements of an array; 1 for any other value

	raw []byte
}

// Text returns a string; ok is false for any other value.
func (v Value) Text() (s string, ok bool) {
	if v.Type != Text || len(v.raw) < 8 {
		return "", false
	}
	return string(v.raw[8:]), true
}

// Uint returns an integer that is not negative; ok is false for any other value.
func (v Value) Uint() (n uint64, ok bool) {
	if v.Type == Array {
		return 0, false
	}
	return v.uintAt(v.Type, 0)
}

// Uints returns the elements of an array of integers that are not negative; ok is false for any
// other value.
func (v Value) Uints() (all []uint64, ok bool) {
	if v.Type != Array {
		return nil, false
	}
	all = make([]uint64, v.N)
	for i := range all {
		if all[i], ok = v.uintAt(v.Elem, i); !ok {
			return nil, false
		}
	}
	return all, true
}

// uintAt returns element i of the given type.
func (v Value) uintAt(t ValueType, i int) (n uint64, ok bool) {
	isSigned := false
	switch t {
	case Uint8, Int8:
		n, isSigned = uint64(v.raw[i]), t == Int8 && v.raw[i] > math.MaxInt8
	case Uint16, Int16:
		x := binary.LittleEndian.Uint16(v.raw[2*i:])
		n, isSigned = uint64(x), t == Int16 && x > math.MaxInt16
	case Uint32, Int32:
		x := binary.LittleEndian.Uint32(v.raw[4*i:])
		n, isSigned = uint64(x), t == Int32 && x > math.MaxInt32
	case Uint64, Int64:
		n = binary.LittleEndian.Uint64(v.raw[8*i:])
		isSigned = t == Int64 && n > math.MaxInt64
	default:
		return 0, false
	}
	return n, !isSigned
}

// Float returns a float; ok is false for any other value.
func (v Value) Float() (x float64, ok bool) {
	switch v.Type {
	case Float32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(v.raw))), true
	case Float64:
		return math.Float64frombits(binary.LittleEndian.Uint64(v.raw)), true
	}
	return 0, false
}

// String shows the value in messages: arrays by their type and length alone.
func (v Value) String() string {
	if v.Type == Array {
		return fmt.Sprintf("an array of %d %v", v.N, v.Elem)
	}
	if s, ok := v.Text(); ok {
		return fmt.Sprintf("%q", s)
	}
	if x, ok := v.Float(); ok {
		return fmt.Sprint(x)
	}
	if n, ok := v.Uint(); ok {
		return fmt.Sprintf("%d (%v)", n, v.Type)
	}
	return "a value of type " + v.Type.String()
}

// TextKV returns a key with a string.
func TextKV(key, text string) KV {
	return KV{key, Value{Type: Text, N: 1, raw: appendText(nil, text)}}
}

// Uint32KV returns a key with an integer of 32 bits.
func Uint32KV(key string, n uint32) KV {
	return KV{key, Value{Type: Uint32, N: 1, raw: binary.LittleEndian.AppendUint32(nil, n)}}
}

// Int32KV returns a key with a signed integer of 32 bits.
func Int32KV(key string, n int32) KV {
	return KV{key, Value{Type: Int32, N: 1, raw: binary.LittleEndian.AppendUint32(nil, uint32(n))}}
}

// Float32KV returns a key with a float of 32 bits.
func Float32KV(key string, x float32) KV {
	raw := binary.LittleEndian.AppendUint32(nil, math.Float32bits(x))
	return KV{key, Value{Type: Float32, N: 1, raw: raw}}
}

// Uint32sKV returns a key with an array of integers of 32 bits.
func Uint32sKV(key string, all []uint32) KV {
	v := Value{Type: Array, Elem: Uint32, N: uint64(len(all))}
	for _, n := range all {
		v.raw = binary.LittleEndian.AppendUint32(v.raw, n)
	}
	return KV{key, v}
}

func appendText(p []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(p, uint64(len(s))), s...)
}

// IsKey reports whether ggml's documentation allows the key: lower-case words with dots between.
func IsKey(key string) bool {
	return key != "" && len(key) <= MaxKeyBytes && strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789_-.") == ""
}
