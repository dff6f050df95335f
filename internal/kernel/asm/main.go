// Command asm generates the amd64 micro-kernels of package kernel. Their contract is at type micro
// there. Run go generate in that package.
package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("amd64")
	for _, b := range []base{bf16, f16, f32, bf16.widened(), f16.widened(), f32.widened()} {
		avx512(b, false)
		avx2(b, false)
	}
	avx512(bf16, true)
	avx2(bf16, true)
	Generate()
}

// base is a dtype of results and its arithmetic. W has the same dtype, or is widened: in numbers of
// the arithmetic.
type base struct {
	dtype string
	bytes int // of an element of W
	float string
	size  int // of a number of the arithmetic
}

var (
	bf16 = base{"bf16", 2, "float32", 4}
	f16  = base{"f16", 2, "float32", 4}
	f32  = base{"f32", 4, "float64", 8}
)

func (b base) widened() base {
	b.bytes = b.size
	return b
}

func (b base) isWidened() bool { return b.bytes == b.size }

func (b base) name() string {
	if b.isWidened() {
		return b.dtype + "Widened"
	}
	return b.dtype
}

// of returns the dtype of W.
func (b base) of() string {
	if b.isWidened() {
		return b.float
	}
	return b.dtype
}

// op returns an instruction's form for the arithmetic.
func (b base) op(ps, pd func(...Op)) func(...Op) {
	if b.size == 4 {
		return ps
	}
	return pd
}

// chunk is the number of products in a partial sum.
const chunk = 16

// tile is the shape of a tile in registers: rows × vectors of bytes bytes each.
type tile struct {
	isa                  string
	rows, vectors, bytes int
	spare                int // bytes of memory on the stack
	v                    func(i int) reg.VecPhysical
	zero                 func(reg.VecPhysical)
}

// pointers are the arguments of a micro-kernel that move from tile to tile, and values for all
// tiles.
type pointers struct {
	w, l, r, rNorm, undecided, panels reg.Register

	line  reg.Register // bytes between rows of L
	delta reg.Register // δ of the tile, row-major, aligned
	spare Mem          // stack memory, if the tile wants some

	records bool
	// for recording, in stack memory: bytes from w to z, and where the bits of the next row go
	toZ, differs Mem
}

// begin starts a micro-kernel.
func begin(b base, t tile, records bool) pointers {
	name, more, kind := b.name()+t.isa, "", fmt.Sprintf("micro-kernel for W in %s and results in %s", b.of(), b.dtype)
	if records {
		name, more, kind = b.name()+"Recording"+t.isa, ", z *byte, differs *uint64", "recording micro-kernel for "+b.dtype
	}
	TEXT(name, 0, fmt.Sprintf("func(w *byte, stride int, l, r *%[1]s, rank, panels int, lBound, rNorm *%[1]s, floor, scale, inverse %[1]s, undecided *uint64, unchanged *int64, squares *[4]float64%[2]s)", b.float, more))
	Pragma("noescape")
	Doc(fmt.Sprintf("%s is the %s: tiles of %d×%d.", name, kind, t.rows, t.vectors*t.bytes/b.size))
	p := pointers{
		w: Load(Param("w"), GP64()), l: Load(Param("l"), GP64()), r: Load(Param("r"), GP64()),
		rNorm: Load(Param("rNorm"), GP64()), undecided: Load(Param("undecided"), GP64()), panels: Load(Param("panels"), GP64()),
		line: Load(Param("rank"), GP64()), delta: GP64(),
	}
	SHLQ(U8(b.shift()), p.line)
	LEAQ(AllocLocal(t.rows*t.vectors*t.bytes+t.bytes), p.delta)
	ADDQ(I8(t.bytes-1), p.delta)
	ANDQ(I8(-t.bytes), p.delta)
	if t.spare > 0 {
		p.spare = AllocLocal(t.spare)
	}
	if p.records = records; records {
		p.toZ, p.differs = AllocLocal(8), AllocLocal(8)
		x := GP64()
		Load(Param("z"), x)
		SUBQ(p.w, x)
		MOVQ(x, p.toZ)
		Load(Param("differs"), x)
		MOVQ(x, p.differs)
	}
	return p
}

// lineBytes is the length of a row of differs.
const lineBytes = 32

// storeDiffers stores the bits of a row of a tile, n bytes, and goes to the next row.
func (p pointers) storeDiffers(bits reg.GPVirtual, n int) {
	at := GP64()
	MOVQ(p.differs, at)
	if n == 2 {
		MOVW(bits.As16(), Mem{Base: at})
	} else {
		MOVL(bits.As32(), Mem{Base: at})
	}
	ADDQ(I8(lineBytes), at)
	MOVQ(at, p.differs)
}

// nextTile goes from the end of a tile to the beginning of the next, n bytes on.
func (p pointers) nextTile(t tile, n int) {
	if !p.records {
		return
	}
	at := GP64()
	MOVQ(p.differs, at)
	SUBQ(I32(t.rows*lineBytes-n), at)
	MOVQ(at, p.differs)
}

func (b base) shift() uint64 { return map[int]uint64{4: 2, 8: 3}[b.size] }

// products computes δ of a tile: chunks of 16 products per element in registers, added up in
// memory. It leaves l at the tile's rows and r at the next panel.
func products(b base, t tile, p pointers) {
	n, rest := GP64(), GP64()
	MOVQ(p.line, rest)
	SHRQ(U8(b.shift()), rest)

	mov, add := b.op(VMOVUPS, VMOVUPD), b.op(VADDPS, VADDPD)
	sum(b, t, p, n, rest, "first")
	for i := range t.rows * t.vectors {
		mov(t.v(i), Mem{Base: p.delta, Disp: i * t.bytes})
	}
	TESTQ(rest, rest)
	JZ(LabelRef("summed"))
	Label("chunks")
	sum(b, t, p, n, rest, "further")
	for i := range t.rows * t.vectors {
		at := Mem{Base: p.delta, Disp: i * t.bytes}
		add(at, t.v(i), t.v(i))
		mov(t.v(i), at)
	}
	TESTQ(rest, rest)
	JNZ(LabelRef("chunks"))
	Label("summed")
	SUBQ(p.line, p.l)
}

// sum adds up the next chunk of products, or the rest of the rank. Registers hold the sums, then
// one vector of a row of R per vector of the tile, then two elements of L.
func sum(b base, t tile, p pointers, n, rest reg.GPVirtual, name string) {
	fma, broadcast, mov := b.op(VFMADD231PS, VFMADD231PD), b.op(VBROADCASTSS, VBROADCASTSD), b.op(VMOVUPS, VMOVUPD)
	MOVQ(I32(chunk), n)
	CMPQ(rest, n)
	CMOVQLT(rest, n)
	SUBQ(n, rest)
	for i := range t.rows * t.vectors {
		t.zero(t.v(i))
	}
	rows := lines(p.l, p.line, t.rows)
	Label(name)
	for j := range t.vectors {
		mov(Mem{Base: p.r, Disp: j * t.bytes}, t.v((t.rows)*t.vectors+j))
	}
	for i, l := range rows {
		x := t.v((t.rows+1)*t.vectors + i%2)
		broadcast(l, x)
		for j := range t.vectors {
			fma(x, t.v(t.rows*t.vectors+j), t.v(i*t.vectors+j))
		}
	}
	ADDQ(I8(b.size), p.l)
	ADDQ(I32(t.vectors*t.bytes), p.r)
	DECQ(n)
	JNZ(LabelRef(name))
}

// rows writes the loop over the rows of a tile twice: without the scale, which is 1 for ordinary
// factors, and with it.
func rows(b base, p pointers, loop func(label string, isScaled bool)) {
	if p.records {
		Label("row")
		loop("row", false)
		return
	}
	if b.size == 4 {
		CMPL(param("scale"), U32(math.Float32bits(1)))
	} else {
		one := GP64()
		MOVQ(U64(math.Float64bits(1)), one)
		CMPQ(one, param("scale"))
	}
	JNE(LabelRef("rowScaled"))
	Label("row")
	loop("row", false)
	JMP(LabelRef("next"))
	Label("rowScaled")
	loop("rowScaled", true)
	Label("next")
}

// lines addresses up to eight rows that are line bytes apart.
func lines(base, line reg.Register, n int) (rows []Mem) {
	multiple := map[int]reg.Register{1: line}
	times := func(odd, of int, scale uint8) {
		if n > odd {
			multiple[odd] = GP64()
			LEAQ(Mem{Base: multiple[of], Index: line, Scale: scale}, multiple[odd])
		}
	}
	times(3, 1, 2)
	times(5, 1, 4)
	times(7, 3, 4)
	for i := range n {
		at := Mem{Base: base}
		if i > 0 {
			odd, scale := i, 1
			for odd%2 == 0 {
				odd, scale = odd/2, 2*scale
			}
			at.Index, at.Scale = multiple[odd], uint8(scale)
		}
		rows = append(rows, at)
	}
	return rows
}
