package main

import "fmt"

// v is a vector register.
type v int

// An arrangement is the division of a vector into lanes of 1<<size bytes.
type arrangement struct {
	name string // of all 128 bits
	half string // of the low 64 bits
	size uint32
}

var (
	b16 = arrangement{"16b", "8b", 0}
	h8  = arrangement{"8h", "4h", 1}
	s4  = arrangement{"4s", "2s", 2}
	d2  = arrangement{"2d", "1d", 3}
)

// wider returns the arrangement with lanes twice as long.
func (a arrangement) wider() arrangement { return []arrangement{b16, h8, s4, d2}[a.size+1] }

// The encodings below are from the Arm Architecture Reference Manual (DDI 0487), C7.2, for 128-bit
// vectors. An instruction is its fixed bits and the numbers of its registers; the comment beside
// each one is its assembler text.

// word writes an instruction.
func (g *generator) word(code uint32, format string, args ...any) {
	g.line("WORD $0x%08X // %s", code, fmt.Sprintf(format, args...))
}

func (g *generator) three(name string, code uint32, a arrangement, d, n, m v) {
	g.word(code|1<<30|uint32(m)<<16|uint32(n)<<5|uint32(d), "%s v%d.%s, v%d.%s, v%d.%s", name, d, a.name, n, a.name, m, a.name)
}

// float writes an instruction on two vectors of floating-point numbers. Bit 22 gives their length.
func (g *generator) float(name string, code uint32, a arrangement, d, n, m v) {
	g.three(name, code|(a.size-2)<<22, a, d, n, m)
}

func (g *generator) fadd(a arrangement, d, n, m v)  { g.float("fadd", 0x0E20D400, a, d, n, m) }
func (g *generator) fsub(a arrangement, d, n, m v)  { g.float("fsub", 0x0EA0D400, a, d, n, m) }
func (g *generator) fmul(a arrangement, d, n, m v)  { g.float("fmul", 0x2E20DC00, a, d, n, m) }
func (g *generator) fmin(a arrangement, d, n, m v)  { g.float("fmin", 0x0EA0F400, a, d, n, m) }
func (g *generator) fabd(a arrangement, d, n, m v)  { g.float("fabd", 0x2EA0D400, a, d, n, m) }
func (g *generator) fmla(a arrangement, d, n, m v)  { g.float("fmla", 0x0E20CC00, a, d, n, m) }
func (g *generator) fcmeq(a arrangement, d, n, m v) { g.float("fcmeq", 0x0E20E400, a, d, n, m) }
func (g *generator) fcmge(a arrangement, d, n, m v) { g.float("fcmge", 0x2E20E400, a, d, n, m) }
func (g *generator) fcmgt(a arrangement, d, n, m v) { g.float("fcmgt", 0x2EA0E400, a, d, n, m) }

func (g *generator) and(d, n, m v) { g.three("and", 0x0E201C00, b16, d, n, m) }
func (g *generator) orr(d, n, m v) { g.three("orr", 0x0EA01C00, b16, d, n, m) }
func (g *generator) eor(d, n, m v) { g.three("eor", 0x2E201C00, b16, d, n, m) }

// bit copies n into d where m is set, bif where it is not.
func (g *generator) bit(d, n, m v) { g.three("bit", 0x2EA01C00, b16, d, n, m) }
func (g *generator) bif(d, n, m v) { g.three("bif", 0x2EE01C00, b16, d, n, m) }

func (g *generator) integer(name string, code uint32, a arrangement, d, n, m v) {
	g.three(name, code|a.size<<22, a, d, n, m)
}

func (g *generator) add(a arrangement, d, n, m v)  { g.integer("add", 0x0E208400, a, d, n, m) }
func (g *generator) sub(a arrangement, d, n, m v)  { g.integer("sub", 0x2E208400, a, d, n, m) }
func (g *generator) cmeq(a arrangement, d, n, m v) { g.integer("cmeq", 0x2E208C00, a, d, n, m) }
func (g *generator) addp(a arrangement, d, n, m v) { g.integer("addp", 0x0E20BC00, a, d, n, m) }
func (g *generator) zip1(a arrangement, d, n, m v) { g.integer("zip1", 0x0E003800, a, d, n, m) }
func (g *generator) zip2(a arrangement, d, n, m v) { g.integer("zip2", 0x0E007800, a, d, n, m) }
func (g *generator) uzp1(a arrangement, d, n, m v) { g.integer("uzp1", 0x0E001800, a, d, n, m) }
func (g *generator) uzp2(a arrangement, d, n, m v) { g.integer("uzp2", 0x0E005800, a, d, n, m) }

func (g *generator) fabs(a arrangement, d, n v) {
	g.word(0x4EA0F800|(a.size-2)<<22|uint32(n)<<5|uint32(d), "fabs v%d.%s, v%d.%s", d, a.name, n, a.name)
}

// fmlaLane adds n times one lane of m; fmulLane writes the product.
func (g *generator) fmlaLane(a arrangement, d, n, m v, lane int) {
	g.byLane("fmla", 0x4F801000, a, d, n, m, lane)
}
func (g *generator) fmulLane(a arrangement, d, n, m v, lane int) {
	g.byLane("fmul", 0x4F809000, a, d, n, m, lane)
}

func (g *generator) byLane(name string, code uint32, a arrangement, d, n, m v, lane int) {
	at := uint32(lane&1)<<21 | uint32(lane>>1)<<11 // H:L
	if a == d2 {
		at = uint32(lane) << 11
	}
	g.word(code|(a.size-2)<<22|at|uint32(m)<<16|uint32(n)<<5|uint32(d), "%s v%d.%s, v%d.%s, v%d.%s[%d]",
		name, d, a.name, n, a.name, m, a.name[1:], lane)
}

// fcvtl widens floating-point numbers to a from the low half of n, fcvtl2 from the high half; fcvtn
// and fcvtn2 round back.
func (g *generator) fcvtl(a arrangement, d, n v)  { g.convert("fcvtl", 0x0E217800, 0, a, d, n) }
func (g *generator) fcvtl2(a arrangement, d, n v) { g.convert("fcvtl2", 0x0E217800, 1, a, d, n) }
func (g *generator) fcvtn(a arrangement, d, n v)  { g.convert("fcvtn", 0x0E216800, 0, a, d, n) }
func (g *generator) fcvtn2(a arrangement, d, n v) { g.convert("fcvtn2", 0x0E216800, 1, a, d, n) }

func (g *generator) convert(name string, code, high uint32, a arrangement, d, n v) {
	short := map[arrangement]arrangement{s4: h8, d2: s4}[a]
	text := short.half
	if high == 1 {
		text = short.name
	}
	code |= high<<30 | (a.size-2)<<22 | uint32(n)<<5 | uint32(d)
	if name[4] == 'l' {
		g.word(code, "%s v%d.%s, v%d.%s", name, d, a.name, n, text)
	} else {
		g.word(code, "%s v%d.%s, v%d.%s", name, d, text, n, a.name)
	}
}

// sxtl widens signed integers of arrangement a from the low half of n, sxtl2 from the high half.
func (g *generator) sxtl(a arrangement, d, n v) {
	g.word(0x0F00A400|8<<a.size<<16|uint32(n)<<5|uint32(d), "sxtl v%d.%s, v%d.%s", d, a.wider().name, n, a.half)
}

func (g *generator) sxtl2(a arrangement, d, n v) {
	g.word(0x4F00A400|8<<a.size<<16|uint32(n)<<5|uint32(d), "sxtl2 v%d.%s, v%d.%s", d, a.wider().name, n, a.name)
}

// addv sums integers across a vector, addpD two integers and faddpD two floating-point numbers of
// 64 bits.
func (g *generator) addv(a arrangement, d, n v) {
	g.word(0x4E31B800|a.size<<22|uint32(n)<<5|uint32(d), "addv %s%d, v%d.%s", a.name[1:], d, n, a.name)
}

func (g *generator) addpD(d, n v) {
	g.word(0x5EF1B800|uint32(n)<<5|uint32(d), "addp d%d, v%d.2d", d, n)
}
func (g *generator) faddpD(d, n v) {
	g.word(0x7E70D800|uint32(n)<<5|uint32(d), "faddp d%d, v%d.2d", d, n)
}
