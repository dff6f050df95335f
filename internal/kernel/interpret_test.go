package kernel

import (
	"encoding/binary"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unsafe"
)

// These files interpret micro_amd64.s on any machine. Thus kernels whose instructions this
// processor lacks are tested too, and subnormal operands and results are counted: these cost some
// 150 cycles per vector on many processors, and no result shows them. The interpreter follows the
// Intel manual for the instructions that the generator uses. It stops at any other instruction, and
// at any access to memory outside the arguments. This file has the program and its control flow;
// operands, scalar instructions, floating-point instructions, and bit moves have a file each.

// machine is the state of a processor and the memory that a kernel may access.
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

type program struct {
	code      []instruction
	labels    map[string]int
	constants map[string][]byte
}

type instruction struct {
	op        string
	args      []string
	broadcast bool
	form      []string // the parts of a floating-point instruction's name, split by floating
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
			in := instruction{op: strings.TrimSuffix(op, ".BCST"),
				broadcast: strings.HasSuffix(op, ".BCST")}
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

// interpreted returns the named micro-kernel, interpreted.
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
		if b.z != nil {
			pointer(b.z)
			pointer(unsafe.Slice((*byte)(unsafe.Pointer(&b.differs[0])), len(b.differs)*lineWords*8))
		}
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

// do executes one instruction.
func (m *machine) do(in *instruction) {
	if m.scalar(in) || m.float(in) || m.move(in) {
		return
	}
	panic("unknown instruction " + in.op + " " + strings.Join(in.args, ", "))
}
