package gguf

// The integer types.
const (
	I8  Type = 24
	I16 Type = 25
	I32 Type = 26
	I64 Type = 27
)

// TypeNamed returns the type that ggml gives a name; ok is false if no type that a file can have
// has it.
func TypeNamed(name string) (t Type, ok bool) {
	for t = range nTypes {
		if elements, _ := t.Block(); elements > 0 && t.String() == name {
			return t, true
		}
	}
	return 0, false
}

// nTypes is more than the number of any type.
const nTypes Type = 64
