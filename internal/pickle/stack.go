package pickle

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/loratool/loratool/internal/fault"
)

// The types of values on the stack, besides nil, bool, int64, float64 and string.
type (
	long  string // an integer of more than 64 bits, little-endian
	tuple []any
	list  struct{ items []any }
	dict  struct{ entries []entry } // a dict or an OrderedDict, in order
	entry struct{ key, value any }
)

// maxPickleBytes bounds a pickle without its storages. One tensor takes about 200 bytes.
const maxPickleBytes = 64 << 20

// maxValues bounds the values that a pickle pushes, at about a hundred bytes of memory each. One
// tensor takes about 20 values.
const maxValues = 4 << 20

// maxTextBytes bounds one string.
const maxTextBytes = 1 << 20

// machine runs one pickle on a stack of values. It calls only the functions of globals.go and
// distributed.go.
type machine struct {
	r       *bufio.Reader
	at      int64 // of the next byte in the file, for errors
	left    int64 // bytes until the end of the readable range
	started int64

	stack   []any
	marks   []int
	memo    map[uint64]any
	nValues int
	load    func(id tuple) (*storage, error) // resolves a persistent id
}

// newMachine returns a machine that reads up to n bytes of a file from offset off.
func newMachine(r io.ReaderAt, off, n int64) *machine {
	return &machine{r: bufio.NewReaderSize(io.NewSectionReader(r, off, n), 1<<16), at: off, left: n}
}

func (m *machine) corrupt(format string, args ...any) error {
	return fault.New(fault.Corrupt, "pickle: "+format, args...).At(m.at)
}

// read returns the next n bytes.
func (m *machine) read(n uint64) ([]byte, error) {
	if n > uint64(m.left) {
		return nil, fault.New(fault.Truncated, "pickle: want %s, %d left", fault.Count(int64(n), "byte"), m.left).At(m.at).
			WithHint("the file was not written or downloaded completely; fetch it again")
	}
	if n > maxTextBytes || m.at+int64(n)-m.started > maxPickleBytes {
		return nil, fault.New(fault.Limit, "pickle: a value has %d bytes, the limit is %d, and %d for all values", n, maxTextBytes, maxPickleBytes).At(m.at)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(m.r, p); err != nil {
		return nil, err
	}
	m.at += int64(n)
	m.left -= int64(n)
	return p, nil
}

// uint reads a little-endian integer of n bytes.
func (m *machine) uint(n int) (uint64, error) {
	var b [8]byte
	p, err := m.read(uint64(n))
	copy(b[:], p)
	return binary.LittleEndian.Uint64(b[:]), err
}

// line reads to the end of a line. GLOBAL writes its names as lines.
func (m *machine) line() (string, error) {
	var b []byte
	for len(b) < 256 {
		p, err := m.read(1)
		if err != nil {
			return "", err
		}
		if p[0] == '\n' {
			return string(b), nil
		}
		b = append(b, p[0])
	}
	return "", m.corrupt("a name has no end")
}

func (m *machine) push(v any) error {
	if m.nValues++; m.nValues > maxValues {
		return fault.New(fault.Limit, "pickle: more than %d values", maxValues).At(m.at)
	}
	m.stack = append(m.stack, v)
	return nil
}

// pop removes the n topmost values above the last mark and returns them.
func (m *machine) pop(n int) ([]any, error) {
	floor := 0
	if len(m.marks) > 0 {
		floor = m.marks[len(m.marks)-1]
	}
	if len(m.stack)-n < floor {
		return nil, m.corrupt("an opcode needs %d values on the stack, got %d", n, len(m.stack)-floor)
	}
	at := len(m.stack) - n
	values := m.stack[at:]
	m.stack = m.stack[:at]
	return values, nil
}

// popMark removes the last mark and returns the values above it.
func (m *machine) popMark() ([]any, error) {
	if len(m.marks) == 0 {
		return nil, m.corrupt("an opcode needs a mark on the stack, got none")
	}
	at := m.marks[len(m.marks)-1]
	m.marks = m.marks[:len(m.marks)-1]
	values := m.stack[at:]
	m.stack = m.stack[:at]
	return values, nil
}

// refuseOpcode returns the error for an opcode that is not executed.
func refuseOpcode(m *machine, op byte) error {
	if name := otherOpcodes[op]; name != "" {
		return fault.New(fault.Unsupported, "the pickle uses %s, which torch.save never uses for tensors; nothing in it was run", name).At(m.at-1).WithHint("%s", hintResave)
	}
	return m.corrupt("0x%02x is not an opcode", op)
}

// describe names the kind of a value, for errors.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		return "a bool"
	case int64, long:
		return "an integer"
	case float64:
		return "a float"
	case string:
		return "a string"
	case tuple:
		return fmt.Sprintf("a tuple of %d", len(v))
	case *list:
		return fmt.Sprintf("a list of %d", len(v.items))
	case *dict:
		return fmt.Sprintf("a dictionary of %d", len(v.entries))
	case *storage:
		return "a storage"
	case *Tensor:
		return "a tensor"
	case *part:
		return "a part of a DTensor"
	case *object:
		return "an object of the class " + v.class
	case global:
		return string(v)
	}
	return "an object"
}

const (
	hintResave    = "if you trust the file, load it with torch and save its tensors with safetensors.torch.save_file"
	hintPlainCopy = "save it as a plain tensor: tensor.to(torch.float32).contiguous()"
)

// global is a Python name in a pickle, module and member: "torch.FloatStorage". It is only
// compared, never looked up.
type global string

// object is an instance of a class of DTensors.
type object struct {
	class string
	state *dict // its attributes; nil before BUILD
}

// part is a DTensor whose values other processes hold as well.
type part struct {
	placements string
	local      []uint64
	whole      []int64
}
