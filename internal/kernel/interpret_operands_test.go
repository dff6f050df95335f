package kernel

import (
	"encoding/binary"
	"regexp"
	"strconv"
	"strings"
)

var (
	inMemory   = regexp.MustCompile(`^([+-]?\d*)\((\w+)\)(?:\((\w+)\*(\d)\))?$`)
	isArgument = regexp.MustCompile(`^\w+\+(\d+)\(FP\)$`)
	isConstant = regexp.MustCompile(`^(\w+)<>\+(\d+)\(SB\)$`)
)

// place is an operand in memory: an offset from a constant, from the arguments, or from base +
// index·scale.
type place struct {
	constant, base, index string
	off                   int64
	scale                 uint64
}

var places = make(map[string]*place) // by their text

func placeOf(a string) *place {
	if p := places[a]; p != nil {
		return p
	}
	p := new(place)
	if x := isArgument.FindStringSubmatch(a); x != nil {
		p.off, _ = strconv.ParseInt(x[1], 10, 64)
	} else if x := isConstant.FindStringSubmatch(a); x != nil {
		p.constant = x[1]
		p.off, _ = strconv.ParseInt(x[2], 10, 64)
	} else if x := inMemory.FindStringSubmatch(a); x != nil {
		p.base, p.index = x[2], x[3]
		p.off, _ = strconv.ParseInt(x[1], 10, 64)
		p.scale, _ = strconv.ParseUint(x[4], 10, 64)
	} else {
		panic("no address: " + a)
	}
	places[a] = p
	return p
}

func (m *machine) address(a string) uint64 {
	p := placeOf(a)
	return uint64(p.off) + m.gp[p.base] + m.gp[p.index]*p.scale
}

// at returns n bytes of memory.
func (m *machine) at(a string, n int) []byte {
	p := placeOf(a)
	switch {
	case p.constant != "":
		return m.program.constants[p.constant][p.off : int(p.off)+n]
	case p.base == "":
		return m.args[p.off : int(p.off)+n]
	}
	at := m.address(a)
	region, off := m.memory[at>>32-1], int(uint32(at))
	return region[off : off+n]
}

// width returns the size of the named vector register, or 0 for other names.
func width(a string) int {
	if len(a) > 1 && a[1] >= '0' && a[1] <= '9' {
		return map[byte]int{'X': 16, 'Y': 32, 'Z': 64}[a[0]]
	}
	return 0
}

func index(a string) int { n, _ := strconv.Atoi(a[1:]); return n }

// source reads an operand of n bytes: a register, memory, or a number of size bytes repeated.
func (m *machine) source(in *instruction, a string, n, size int) (v [64]byte) {
	switch {
	case width(a) > 0:
		copy(v[:n], m.v[index(a)][:n])
	case in.broadcast:
		x := m.at(a, size)
		for i := 0; i < n; i += size {
			copy(v[i:], x)
		}
	default:
		copy(v[:n], m.at(a, n))
	}
	return v
}

// store writes the first n bytes of x to memory, or to a register, whose other bytes become zero.
func (m *machine) store(a string, x *[64]byte, n int) {
	if width(a) > 0 {
		m.v[index(a)] = [64]byte{}
		copy(m.v[index(a)][:n], x[:n])
		return
	}
	copy(m.at(a, n), x[:n])
}

func (m *machine) value(a string, size int) uint64 {
	switch {
	case a[0] == '$':
		x, err := strconv.ParseInt(strings.TrimPrefix(a[1:], "+"), 0, 64)
		if err != nil {
			u, err := strconv.ParseUint(a[1:], 0, 64)
			if err != nil {
				panic(a)
			}
			return u
		}
		return uint64(x)
	case strings.Contains(a, "("):
		var x [8]byte
		copy(x[:], m.at(a, size))
		return binary.LittleEndian.Uint64(x[:])
	case width(a) > 0:
		return binary.LittleEndian.Uint64(m.v[index(a)][:]) & (1<<(8*size-1)<<1 - 1)
	case a[0] == 'K':
		return m.k[index(a)]
	}
	return m.gp[a] & (1<<(8*size-1)<<1 - 1)
}

func (m *machine) set(a string, x uint64, size int) {
	switch {
	case strings.Contains(a, "("):
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], x)
		copy(m.at(a, size), b[:size])
	case a[0] == 'K':
		m.k[index(a)] = x
	default:
		m.gp[a] = x & (1<<(8*size-1)<<1 - 1)
	}
}
