package kernel

import (
	"encoding/binary"
	"math"
	"math/bits"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"github.com/loratool/loratool/format/dtype"
)

// This file runs the text of micro_amd64.s on any machine: kernels for which the processor at hand lacks the instructions are held to
// their contract as well, and subnormal operands and results are counted, which cost some 150 cycles a vector on many processors
// and are not to be seen in the result. It knows the instructions that the generator uses, as the Intel manual describes them, and stops
// at any other, and at any access to memory outside the arguments.

// machine is the state of a processor, and of the memory that a kernel may touch.
type machine struct {
	gp      map[string]uint64
	v       [32][64]byte
	k       [8]uint64
	less    bool
	zero    bool
	memory  [][]byte // region i begins at address i<<32
	args    []byte
	program *program
	counts  *counts
}

// counts says how many operands and results of additions, multiplications and conversions were subnormal.
type counts struct{ operations, subnormal int }

type program struct {
	code      []instruction
	labels    map[string]int
	constants map[string][]byte
}

type instruction struct {
	op        string
	args      []string
	broadcast bool
	form      []string // of one on floating-point numbers, as floating takes it apart
}

var programs = sync.OnceValue(func() map[string]*program {
	text, err := os.ReadFile("micro_amd64.s")
	if err != nil {
		panic(err)
	}
	all := make(map[string]*program)
	constants := make(map[string][]byte)
	var p *program
	data := regexp.MustCompile(`^DATA (\w+)<>\+(\d+)\(SB\)/(\d+), \$(0x[0-9a-f]+)`)
	for _, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "//")
		switch m := data.FindStringSubmatch(line); {
		case m != nil:
			off, _ := strconv.Atoi(m[2])
			size, _ := strconv.Atoi(m[3])
			x, _ := strconv.ParseUint(m[4], 0, 64)
			for range size {
				constants[m[1]] = append(constants[m[1]][:off:off], byte(x))
				off, x = off+1, x>>8
			}
		case strings.HasPrefix(line, "TEXT ·"):
			p = &program{labels: make(map[string]int), constants: constants}
			all[line[len("TEXT ·"):strings.Index(line, "(")]] = p
		case strings.HasPrefix(line, "\t") && p != nil:
			op, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			in := instruction{op: strings.TrimSuffix(op, ".BCST"), broadcast: strings.HasSuffix(op, ".BCST")}
			for _, a := range strings.Split(rest, ",") {
				if a = strings.TrimSpace(a); a != "" {
					in.args = append(in.args, a)
				}
			}
			p.code = append(p.code, in)
		case strings.HasSuffix(line, ":") && p != nil:
			p.labels[strings.TrimSuffix(line, ":")] = len(p.code)
		}
	}
	return all
})

// interpreted is the micro-kernel of that name, interpreted.
func interpreted[T Float](name string, rows, cols, panels int, c *counts) micro[T] {
	return micro[T]{rows: rows, cols: cols, panels: panels, run: func(b *block[T]) {
		m := &machine{gp: make(map[string]uint64), program: programs()[name], counts: c}
		squares := make([]byte, 32)
		for i, x := range b.sums.squares {
			binary.LittleEndian.PutUint64(squares[8*i:], math.Float64bits(x))
		}
		unchanged := binary.LittleEndian.AppendUint64(nil, uint64(b.sums.unchanged))
		var undecided []byte
		for _, x := range b.undecided {
			undecided = binary.LittleEndian.AppendUint64(undecided, x)
		}
		number := func(x T) {
			if len(m.args)%8 != 0 && sizeOf[T]() == 8 {
				panic("alignment")
			}
			m.args = append(m.args, bytesOf([]T{x})...)
		}
		integer := func(x uint64) {
			for len(m.args)%8 != 0 {
				m.args = append(m.args, 0)
			}
			m.args = binary.LittleEndian.AppendUint64(m.args, x)
		}
		pointer := func(x []byte) {
			m.memory = append(m.memory, x)
			integer(uint64(len(m.memory)) << 32)
		}
		pointer(b.w)
		integer(uint64(b.stride))
		pointer(bytesOf(b.l[:rows*b.rank]))
		pointer(bytesOf(b.r[:b.panels*b.rank*cols]))
		integer(uint64(b.rank))
		integer(uint64(b.panels))
		pointer(bytesOf(b.lBound[:rows]))
		pointer(bytesOf(b.rNorm[:b.panels*cols]))
		number(b.floor)
		number(b.scale)
		number(b.inverse)
		pointer(undecided)
		pointer(unchanged)
		pointer(squares)
		m.memory = append(m.memory, make([]byte, 1<<12))
		m.gp["SP"] = uint64(len(m.memory))<<32 + 8
		m.run()
		for i := range b.undecided {
			b.undecided[i] = binary.LittleEndian.Uint64(undecided[8*i:])
		}
		b.sums.unchanged = int64(binary.LittleEndian.Uint64(unchanged))
		for i := range b.sums.squares {
			b.sums.squares[i] = math.Float64frombits(binary.LittleEndian.Uint64(squares[8*i:]))
		}
	}}
}

func bytesOf[T Float](x []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), len(x)*sizeOf[T]())
}

func (m *machine) run() {
	p := m.program
	for pc := 0; p.code[pc].op != "RET"; pc++ {
		in := &p.code[pc]
		jump := false
		switch in.op {
		case "JMP":
			jump = true
		case "JZ", "JEQ":
			jump = m.zero
		case "JNZ", "JNE":
			jump = !m.zero
		default:
			m.do(in)
		}
		if jump {
			pc = p.labels[in.args[0]] - 1
		}
	}
}

var (
	inMemory   = regexp.MustCompile(`^([+-]?\d*)\((\w+)\)(?:\((\w+)\*(\d)\))?$`)
	isArgument = regexp.MustCompile(`^\w+\+(\d+)\(FP\)$`)
	isConstant = regexp.MustCompile(`^(\w+)<>\+(\d+)\(SB\)$`)
)

// place is an operand in memory: off beyond a constant, beyond the arguments, or beyond base + index·scale.
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

// at is n bytes of memory.
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

// width is the size of the vector register of that name, 0 if it is none.
func width(a string) int {
	if len(a) > 1 && a[1] >= '0' && a[1] <= '9' {
		return map[byte]int{'X': 16, 'Y': 32, 'Z': 64}[a[0]]
	}
	return 0
}

func index(a string) int { n, _ := strconv.Atoi(a[1:]); return n }

// source is an operand of n bytes: of a register, of memory, or one number of size bytes repeated.
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

// store writes the first n bytes of x to a register, of which the rest becomes zero, or to memory.
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

// do does one instruction: a scalar one, one on floating-point numbers, or one that moves bits.
func (m *machine) do(in *instruction) {
	if m.scalar(in) || m.float(in) || m.move(in) {
		return
	}
	panic("unknown instruction " + in.op + " " + strings.Join(in.args, ", "))
}

func (m *machine) scalar(in *instruction) bool {
	a := in.args
	size := 8
	if strings.HasSuffix(in.op, "L") {
		size = 4
	}
	result := func(x uint64) {
		m.set(a[len(a)-1], x, size)
		m.zero = x<<(64-8*size) == 0
	}
	switch op := in.op; op {
	case "PREFETCHT0", "VZEROUPPER":
	case "MOVQ", "MOVL", "KMOVD", "VMOVD", "VMOVQ":
		if op == "VMOVD" || op == "KMOVD" {
			size = 4
		}
		m.set(a[1], m.value(a[0], size), size)
	case "LEAQ":
		m.set(a[1], m.address(a[0]), 8)
	case "POPCNTL":
		result(uint64(bits.OnesCount64(m.value(a[0], size))))
	case "ADDQ":
		result(m.value(a[1], size) + m.value(a[0], size))
	case "SUBQ":
		result(m.value(a[1], size) - m.value(a[0], size))
	case "DECQ":
		result(m.value(a[0], size) - 1)
	case "SHLQ", "SHLL":
		result(m.value(a[1], size) << m.value(a[0], size))
	case "SHRQ":
		result(m.value(a[1], size) >> m.value(a[0], size))
	case "ANDQ":
		result(m.value(a[1], size) & m.value(a[0], size))
	case "ORL":
		result(m.value(a[1], size) | m.value(a[0], size))
	case "XORL", "XORQ":
		result(m.value(a[1], size) ^ m.value(a[0], size))
	case "TESTQ":
		m.zero = m.value(a[0], size)&m.value(a[1], size) == 0
	case "CMPQ", "CMPL":
		x, y := m.value(a[0], size), m.value(a[1], size)
		m.zero, m.less = uint32(x) == uint32(y) && (size == 4 || x == y), int64(x) < int64(y)
	case "CMOVQLT":
		if m.less {
			m.set(a[1], m.value(a[0], size), size)
		}
	case "KNOTD":
		m.set(a[1], uint64(^uint32(m.value(a[0], 8))), 8)
	case "KNOTW":
		m.set(a[1], uint64(^uint16(m.value(a[0], 8))), 8)
	case "KUNPCKWD":
		m.set(a[2], m.value(a[1], 8)&0xffff<<16|m.value(a[0], 8)&0xffff, 8)
	case "KUNPCKBW":
		m.set(a[2], m.value(a[1], 8)&0xff<<8|m.value(a[0], 8)&0xff, 8)
	default:
		return false
	}
	return true
}

// element is a lane as a number, and setElement writes one.
func number(v *[64]byte, i, size int) float64 {
	if size == 4 {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(v[4*i:])))
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(v[8*i:]))
}

func setNumber(v *[64]byte, i, size int, x float64) {
	if size == 4 {
		binary.LittleEndian.PutUint32(v[4*i:], math.Float32bits(float32(x)))
	} else {
		binary.LittleEndian.PutUint64(v[8*i:], math.Float64bits(x))
	}
}

// look counts a number of an operation.
func (m *machine) look(size int, xs ...float64) {
	least := 0x1p-126
	if size == 8 {
		least = 0x1p-1022
	}
	m.counts.operations++
	for _, x := range xs {
		if x != 0 && math.Abs(x) < least {
			m.counts.subnormal++
			return
		}
	}
}

// fused is x·y + z, rounded once.
func fused(x, y, z float64, size int) float64 {
	if size == 8 {
		return math.FMA(x, y, z)
	}
	p := x * y // exact, of float32 numbers
	s, e := twoSum(p, z)
	if e != 0 && isFinite(s) {
		s = toOdd(s, (e > 0) == (s > 0))
	}
	return float64(float32(s))
}

var floating = regexp.MustCompile(`^V(ADD|SUB|MUL|MIN|RANGE|FMADD213|FMADD231|CMP)(P|S)(S|D)$`)

func (m *machine) float(in *instruction) bool {
	if in.form == nil {
		in.form = append(floating.FindStringSubmatch(in.op), "")
	}
	x := in.form
	if len(x) == 1 {
		return m.convert(in)
	}
	a, imm := in.args, uint64(0)
	size := map[string]int{"S": 4, "D": 8}[x[3]]
	if a[0][0] == '$' {
		imm, a = m.value(a[0], 8), a[1:]
	}
	n := max(width(a[1]), width(a[0]))
	lanes := n / size
	if x[2] == "S" {
		lanes, n = 1, size
	}
	mask := uint64(math.MaxUint64)
	dst := a[len(a)-1]
	if len(a) == 4 {
		mask = m.k[index(a[2])]
	}
	p, q := m.source(in, a[0], n, size), m.source(in, a[1], n, size)
	out, set := [64]byte{}, uint64(0)
	if width(dst) > 0 {
		out = m.v[index(dst)]
	}
	for i := range lanes {
		if mask>>i&1 == 0 {
			continue
		}
		p, q, r := number(&p, i, size), number(&q, i, size), number(&out, i, size)
		result := 0.0
		switch x[1] {
		case "ADD":
			result = q + p
			m.look(size, p, q, round(result, size))
		case "SUB":
			result = q - p
			m.look(size, p, q, round(result, size))
		case "MUL":
			result = q * p
			m.look(size, p, q, round(result, size))
		case "FMADD213":
			result = fused(q, r, p, size)
			m.look(size, p, q, r, result)
		case "FMADD231":
			result = fused(p, q, r, size)
			m.look(size, p, q, r, result)
		case "MIN":
			if result = p; q < p {
				result = q
			}
		case "RANGE": // 0x0a: the smaller magnitude, with the sign cleared; the quiet one of two NaN
			if imm != 0x0a {
				panic("VRANGE with another immediate")
			}
			switch result = math.Abs(p); {
			case p != p:
				result = math.Abs(q)
			case q == q:
				result = min(math.Abs(p), math.Abs(q))
			}
		case "CMP":
			if compare(imm, q, p) {
				set |= 1 << i
			}
			continue
		}
		setNumber(&out, i, size, result)
	}
	if x[1] != "CMP" {
		m.store(dst, &out, max(n, 16))
	} else if dst[0] == 'K' {
		m.k[index(dst)] = set
	} else {
		m.store(dst, spread(set, lanes, size), n)
	}
	return true
}

func round(x float64, size int) float64 {
	if size == 4 {
		return float64(float32(x))
	}
	return x
}

func compare(predicate uint64, x, y float64) bool {
	switch predicate {
	case 0x00:
		return x == y
	case 0x11:
		return x < y
	case 0x12:
		return x <= y
	case 0x1e:
		return x > y
	}
	panic("unknown predicate")
}

// spread makes lanes of ones where a bit is set.
func spread(set uint64, lanes, size int) *[64]byte {
	var v [64]byte
	for i := range lanes * size {
		if set>>(i/size)&1 == 1 {
			v[i] = 0xff
		}
	}
	return &v
}

func (m *machine) convert(in *instruction) bool {
	a := in.args
	if a[0][0] == '$' {
		a = a[1:]
	}
	var from, to int
	switch in.op {
	case "VCVTPS2PD":
		from, to = 4, 8
	case "VCVTPD2PS", "VCVTPD2PSY":
		from, to = 8, 4
	case "VCVTPH2PS":
		from, to = 2, 4
	case "VCVTPS2PH":
		from, to = 4, 2
	default:
		return false
	}
	lanes := width(a[1]) / to
	if from > to {
		lanes = width(a[0]) / from
	}
	src, out := m.source(in, a[0], lanes*from, from), [64]byte{}
	for i := range lanes {
		switch {
		case from == 2:
			setNumber(&out, i, 4, float64(dtype.F16ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))))
		case to == 2: // not counted: halves that are subnormal are ordinary data
			binary.LittleEndian.PutUint16(out[2*i:], dtype.F16FromFloat32(float32(number(&src, i, 4))))
		default:
			x := number(&src, i, from)
			setNumber(&out, i, to, x)
			m.look(4, round(x, 4))
		}
	}
	m.store(a[1], &out, max(lanes*to, 16))
	return true
}

// move does what moves, picks and combines bits.
func (m *machine) move(in *instruction) bool {
	a, dst := in.args, in.args[len(in.args)-1]
	op := in.op
	get := func(a string, n int) [64]byte { return m.source(in, a, n, 4) }
	put := func(x *[64]byte, n int) { m.store(dst, x, n) }
	word := func(v *[64]byte, i, size int) uint64 {
		var b [8]byte
		copy(b[:], v[i*size:(i+1)*size])
		return binary.LittleEndian.Uint64(b[:])
	}
	setWord := func(v *[64]byte, i, size int, x uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], x)
		copy(v[i*size:(i+1)*size], b[:])
	}
	n := width(dst)
	if n == 0 && len(a) > 1 {
		n = max(width(a[0]), width(a[1]))
	}
	var out [64]byte
	lanewise := func(size int, f func(x, y uint64) uint64) {
		in := &instruction{broadcast: in.broadcast}
		x, y := m.source(in, a[0], n, size), m.source(in, a[1], n, size)
		mask := uint64(math.MaxUint64)
		if len(a) == 4 {
			mask, out = m.k[index(a[2])], m.v[index(dst)]
		}
		for i := range n / size {
			if mask>>i&1 == 1 {
				setWord(&out, i, size, f(word(&x, i, size), word(&y, i, size)))
			}
		}
		put(&out, n)
	}
	switch op {
	case "VMOVUPS", "VMOVUPD", "VMOVAPS", "VMOVAPD", "VMOVDQU", "VMOVDQU16", "VMOVDQU32", "VMOVDQA32":
		size := 4
		if op == "VMOVDQU16" {
			size = 2
		}
		out = get(a[0], n)
		if len(a) == 3 {
			old := m.v[index(dst)]
			for i := range n / size {
				if m.k[index(a[1])]>>i&1 == 0 {
					copy(out[i*size:(i+1)*size], old[i*size:])
				}
			}
		}
		put(&out, n)
	case "VMOVSD":
		out = get(a[0], 8)
		if width(dst) > 0 {
			panic("a load by VMOVSD")
		}
		put(&out, 8)
	case "VBROADCASTSS", "VBROADCASTSD", "VPBROADCASTD":
		size := 4
		if op == "VBROADCASTSD" {
			size = 8
		}
		out = m.source(&instruction{broadcast: true}, a[0], n, size)
		put(&out, n)
	case "VXORPS", "VPXORD":
		lanewise(8, func(x, y uint64) uint64 { return x ^ y })
	case "VANDPS", "VANDPD", "VPANDD":
		lanewise(4, func(x, y uint64) uint64 { return x & y })
	case "VORPS":
		lanewise(4, func(x, y uint64) uint64 { return x | y })
	case "VPADDD":
		lanewise(4, func(x, y uint64) uint64 { return y + x })
	case "VPADDQ":
		lanewise(8, func(x, y uint64) uint64 { return y + x })
	case "VPSUBD":
		lanewise(4, func(x, y uint64) uint64 { return y - x })
	case "VPSUBQ":
		lanewise(8, func(x, y uint64) uint64 { return y - x })
	case "VPTERNLOGD":
		x, y, z := get(a[1], n), get(a[2], n), m.v[index(dst)]
		table := m.value(a[0], 8)
		for i := range 8 * n {
			bit := func(v *[64]byte) int { return int(v[i/8]) >> (i % 8) & 1 }
			out[i/8] |= byte(table>>(bit(&z)<<2|bit(&y)<<1|bit(&x))&1) << (i % 8)
		}
		put(&out, n)
	case "VPCMPEQW", "VPCMPEQD":
		size := map[byte]int{'W': 2, 'D': 4}[op[len(op)-1]]
		n := width(a[0])
		x, y, set := get(a[0], n), get(a[1], n), uint64(0)
		for i := range n / size {
			if word(&x, i, size) == word(&y, i, size) {
				set |= 1 << i
			}
		}
		if dst[0] == 'K' {
			m.k[index(dst)] = set
		} else {
			put(spread(set, n/size, size), n)
		}
	case "VEXTRACTF128", "VEXTRACTI128", "VEXTRACTF64X4", "VEXTRACTI64X4":
		src := m.v[index(a[1])]
		copy(out[:], src[int(m.value(a[0], 8))*n:][:n])
		put(&out, n)
	case "VMOVMSKPS", "VMOVMSKPD":
		size := map[string]int{"S": 4, "D": 8}[op[8:]]
		x, set := m.v[index(a[0])], uint64(0)
		for i := range width(a[0]) / size {
			set |= uint64(x[(i+1)*size-1]>>7) << i
		}
		m.set(dst, set, 8)
	case "VBLENDVPS", "VPBLENDVB":
		size := map[string]int{"VBLENDVPS": 4, "VPBLENDVB": 1}[op]
		mask, x, y := get(a[0], n), get(a[1], n), get(a[2], n)
		for i := range n / size {
			from := &y
			if mask[(i+1)*size-1]>>7 == 1 {
				from = &x
			}
			copy(out[i*size:(i+1)*size], from[i*size:])
		}
		put(&out, n)
	case "VPSLLD", "VPSRLD":
		x, by := get(a[1], n), m.value(a[0], 8)
		for i := range n / 4 {
			if op == "VPSLLD" {
				setWord(&out, i, 4, word(&x, i, 4)<<by)
			} else {
				setWord(&out, i, 4, word(&x, i, 4)>>by)
			}
		}
		put(&out, n)
	case "VPMOVZXWD", "VPMOVSXWD", "VPMOVSXDQ":
		size := map[string]int{"WD": 2, "DQ": 4}[op[7:]]
		x := get(a[0], n/2)
		for i := range n / 2 / size {
			w := word(&x, i, size)
			if op[5] == 'S' {
				w = uint64(int64(w<<(64-8*size)) >> (64 - 8*size))
			}
			setWord(&out, i, 2*size, w)
		}
		put(&out, n)
	case "VPSHUFD":
		x, by := get(a[1], n), m.value(a[0], 8)
		for i := range 4 {
			setWord(&out, i, 4, word(&x, int(by>>(2*i)&3), 4))
		}
		put(&out, n)
	case "VPERMQ":
		x, by := get(a[1], n), m.value(a[0], 8)
		for i := range 4 {
			setWord(&out, i, 8, word(&x, int(by>>(2*i)&3), 8))
		}
		put(&out, n)
	case "VSHUFPS":
		x, y, by := get(a[1], n), get(a[2], n), m.value(a[0], 8)
		for i := range 4 {
			from := &y
			if i >= 2 {
				from = &x
			}
			setWord(&out, i, 4, word(from, int(by>>(2*i)&3), 4))
		}
		put(&out, n)
	case "VUNPCKHPD":
		x, y := get(a[0], n), get(a[1], n)
		setWord(&out, 0, 8, word(&y, 1, 8))
		setWord(&out, 1, 8, word(&x, 1, 8))
		put(&out, n)
	case "VPACKUSDW", "VPACKSSDW":
		x, y := get(a[0], n), get(a[1], n)
		for i := range n / 2 {
			lane, k := i/8, i%8
			from := &y
			if k >= 4 {
				from, k = &x, k-4
			}
			w := int64(int32(word(from, 4*lane+k, 4)))
			if op == "VPACKUSDW" {
				w = min(max(w, 0), 0xffff)
			} else {
				w = min(max(w, math.MinInt16), math.MaxInt16)
			}
			setWord(&out, i, 2, uint64(w))
		}
		put(&out, n)
	case "VPERMW.Z":
		x, at := get(a[0], n), get(a[1], n)
		for i := range n / 2 {
			if m.k[index(a[2])]>>i&1 == 1 {
				setWord(&out, i, 2, word(&x, int(word(&at, i, 2)&31), 2))
			}
		}
		put(&out, n)
	case "VPERMT2W":
		x, at, old := get(a[0], n), get(a[1], n), m.v[index(dst)]
		for i := range n / 2 {
			from, k := &old, word(&at, i, 2)
			if k&32 != 0 {
				from = &x
			}
			setWord(&out, i, 2, word(from, int(k&31), 2))
		}
		put(&out, n)
	default:
		return false
	}
	return true
}
