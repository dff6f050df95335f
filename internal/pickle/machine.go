package pickle

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"unicode/utf8"

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

// machine runs one pickle on a stack of values. It calls only the functions of globals.go.
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

// run runs one pickle and returns its value.
func (m *machine) run() (any, error) {
	m.stack, m.marks, m.memo, m.started = nil, nil, make(map[uint64]any), m.at
	for {
		op, err := m.read(1)
		if err != nil {
			return nil, err
		}
		if op[0] == opStop {
			top, err := m.pop(1)
			if err != nil {
				return nil, err
			}
			return top[0], nil
		}
		if err := m.step(op[0]); err != nil {
			return nil, err
		}
	}
}

// step runs one opcode.
func (m *machine) step(op byte) error {
	switch op {
	case opProto:
		p, err := m.read(1)
		if err == nil && p[0] > 2 {
			err = fault.New(fault.Unsupported, "the pickle has protocol %d, torch.save writes 2", p[0]).At(m.at).
				WithHint("save it without pickle_protocol, or better, as safetensors")
		}
		return err
	case opMark:
		if m.nValues++; m.nValues > maxValues {
			return fault.New(fault.Limit, "pickle: more than %d values", maxValues).At(m.at)
		}
		m.marks = append(m.marks, len(m.stack))
		return nil
	case opPop:
		_, err := m.pop(1)
		return err
	case opNone:
		return m.push(nil)
	case opNewTrue, opNewFalse:
		return m.push(op == opNewTrue)
	case opBinInt, opBinInt1, opBinInt2, opLong1, opBinFloat:
		return m.number(op)
	case opBinUnicode, opBinString, opShortBinString:
		return m.text(op)
	case opEmptyTuple:
		return m.push(tuple{})
	case opEmptyList:
		return m.push(&list{})
	case opEmptyDict:
		return m.push(&dict{})
	case opTuple, opTuple1, opTuple2, opTuple3, opAppend, opAppends, opSetItem, opSetItems:
		return m.collect(op)
	case opBinPut, opLongBinPut, opBinGet, opLongBinGet:
		return m.remember(op)
	case opGlobal:
		return m.global()
	case opBinPersID:
		return m.persistent()
	case opReduce, opBuild:
		return m.construct(op)
	case opNewObj:
		return newObject(m)
	}
	return refuseOpcode(m, op)
}

// refuseOpcode returns the error for an opcode that is not executed.
func refuseOpcode(m *machine, op byte) error {
	if name := otherOpcodes[op]; name != "" {
		return fault.New(fault.Unsupported, "the pickle uses %s, which torch.save never uses for tensors; nothing in it was run", name).At(m.at-1).WithHint("%s", hintResave)
	}
	return m.corrupt("0x%02x is not an opcode", op)
}

// number pushes an integer or a float.
func (m *machine) number(op byte) error {
	n := map[byte]int{opBinInt: 4, opBinInt1: 1, opBinInt2: 2, opLong1: 1, opBinFloat: 8}[op]
	v, err := m.uint(n)
	switch {
	case err != nil:
		return err
	case op == opBinInt:
		return m.push(int64(int32(v)))
	case op == opBinFloat: // the only big-endian number
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		return m.push(math.Float64frombits(binary.BigEndian.Uint64(b[:])))
	case op != opLong1:
		return m.push(int64(v))
	}
	p, err := m.read(v)
	switch {
	case err != nil:
		return err
	case len(p) > 8:
		return m.push(long(p))
	case len(p) == 0:
		return m.push(int64(0))
	}
	var x int64
	for i := len(p) - 1; i >= 0; i-- {
		x = x<<8 | int64(p[i])
	}
	shift := 64 - 8*len(p)
	return m.push(x << shift >> shift) // extend the sign
}

// text pushes a string. A Python 2 byte string counts as UTF-8.
func (m *machine) text(op byte) error {
	size := 4
	if op == opShortBinString {
		size = 1
	}
	n, err := m.uint(size)
	if err != nil {
		return err
	}
	p, err := m.read(n)
	if err != nil {
		return err
	}
	if !utf8.Valid(p) {
		return m.corrupt("a string is not UTF-8: %q", p[:min(len(p), 64)])
	}
	return m.push(string(p))
}

// collect makes a tuple, or adds values to a list or a dictionary.
func (m *machine) collect(op byte) error {
	var values []any
	var err error
	switch op {
	case opTuple, opAppends, opSetItems:
		values, err = m.popMark()
	default:
		values, err = m.pop(map[byte]int{opTuple1: 1, opTuple2: 2, opTuple3: 3, opAppend: 1, opSetItem: 2}[op])
	}
	if err != nil {
		return err
	}
	switch op {
	case opTuple, opTuple1, opTuple2, opTuple3:
		return m.push(append(tuple{}, values...))
	}
	if len(m.stack) == 0 {
		return m.corrupt("an opcode needs a list or a dictionary on the stack, got none")
	}
	switch into := m.stack[len(m.stack)-1].(type) {
	case *list:
		if op == opAppend || op == opAppends {
			into.items = append(into.items, values...)
			return nil
		}
	case *dict:
		if (op == opSetItem || op == opSetItems) && len(values)%2 == 0 {
			for i := 0; i < len(values); i += 2 {
				into.entries = append(into.entries, entry{values[i], values[i+1]})
			}
			return nil
		}
	}
	return m.corrupt("an opcode adds %d values to %s", len(values), describe(m.stack[len(m.stack)-1]))
}

// remember stores the topmost value under a number, or pushes a stored value.
func (m *machine) remember(op byte) error {
	size := 1
	if op == opLongBinPut || op == opLongBinGet {
		size = 4
	}
	key, err := m.uint(size)
	if err != nil {
		return err
	}
	if op == opBinGet || op == opLongBinGet {
		v, ok := m.memo[key]
		if !ok {
			return m.corrupt("value %d is used before it is stored", key)
		}
		return m.push(v)
	}
	if len(m.stack) == 0 {
		return m.corrupt("an opcode needs a value on the stack, got none")
	}
	m.memo[key] = m.stack[len(m.stack)-1]
	return nil
}

// persistent replaces a persistent id by its storage.
func (m *machine) persistent() error {
	top, err := m.pop(1)
	if err != nil {
		return err
	}
	id, ok := top[0].(tuple)
	if !ok || m.load == nil {
		return m.corrupt("a persistent id is %s, want a tuple that names a storage", describe(top[0]))
	}
	s, err := m.load(id)
	if err != nil {
		return err
	}
	return m.push(s)
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
