package pickle

import (
	"encoding/binary"
	"math"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/fault"
)

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
