package main

import "fmt"

// thin writes the kernel of thin products: see thin8x8. It loads a row of x, and the elements of
// eight rows of d that multiply it; 16 sums hide the latency of the multiply-add. It reads exactly
// these elements. Registers: R0 dst, R2 bytes from one k to the next, R4 x, R5 bytes between its
// rows, R6 products left, R8–R15 rows of d.
func (g *generator) thin() {
	const side, firstD, x = 8, v(18), v(16)
	const signature = "thin8x8NEON(dst *float32, d *float32, next, apart uintptr, x *float32, xNext uintptr, n int)"
	doc := "thin8x8NEON is\n//\n//\tdst[q*8+c] = Σ_{k<n} d[k·next + q·apart] · x[k·xNext + c],   q, c = 0 … 7, strides in bytes"
	fmt.Fprintf(&g.stubs, "\n// %s\n//\n//go:noescape\nfunc %s\n", doc, signature)
	fmt.Fprintf(&g.text, "\n// func %s\nTEXT ·thin8x8NEON(SB), NOSPLIT, $0-56\n", signature)
	for _, arg := range []struct {
		name   string
		at, to int
	}{{"dst", 0, 0}, {"d", 8, 8}, {"next", 16, 2}, {"apart", 24, 3}, {"x", 32, 4}, {"xNext", 40, 5}, {"n", 48, 6}} {
		g.line("MOVD %s+%d(FP), R%d", arg.name, arg.at, arg.to)
	}
	for q := 1; q < side; q++ {
		g.line("ADD R3, R%d, R%d", 7+q, 8+q)
	}
	for i := range v(2 * side) {
		g.eor(i, i, i)
	}
	g.label("loop")
	g.line("VLD1 (R4), [V%d.S4, V%d.S4]", x, x+1)
	g.line("ADD R5, R4, R4")
	for q := range v(side) {
		g.line("FMOVS (R%d), F%d", 8+q, firstD+q)
		g.line("ADD R2, R%d, R%[1]d", 8+q)
	}
	for q := range v(side) {
		for c := range v(2) {
			g.fmlaLane(s4, 2*q+c, x+c, firstD+q, 0)
		}
	}
	g.line("SUBS $1, R6, R6")
	g.line("BNE loop")
	for i := v(0); i < 2*side; i += 4 {
		g.line("VST1.P [V%d.S4, V%d.S4, V%d.S4, V%d.S4], 64(R0)", i, i+1, i+2, i+3)
	}
	g.line("RET")
}
