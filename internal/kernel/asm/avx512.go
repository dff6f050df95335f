package main

import (
	"math"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

var zmm = []VecPhysical{Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15,
	Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31}

var wide = tile{isa: "AVX512", rows: 8, vectors: 2, bytes: 64,
	v:    func(i int) VecPhysical { return zmm[i] },
	zero: func(z VecPhysical) { VPXORD(z, z, z) },
}

// What lives in registers from tile to tile; products use those below 20.
var (
	zExpand = [2]VecPhysical{Z20, Z21} // the words of a vector, to the high halves of double words
	zShrink = Z22                      // and back
	zAbs    = Z23
	zHigh   = Z24
	zMid    = Z25
	zFloor  = Z26
	zCount  = Z27
	zSums   = [4]VecPhysical{Z28, Z29, Z30, Z31} // w², δ², (out−w)², (out−w−δ)²
)

func avx512(b base) {
	p := begin(b, wide)
	t := wide
	constants512(b)
	Label("tile")
	products(b, t, p)

	// The rows of the tile.
	stride, w, bound, n := GP64(), GP64(), GP64(), GP64()
	Load(Param("stride"), stride)
	Load(Param("lBound"), bound)
	MOVQ(p.w, w)
	MOVQ(I32(t.rows), n)
	norm := [2]VecPhysical{Z16, Z17}
	for j := range norm {
		VMOVUPS(Mem{Base: p.rNorm, Disp: 64 * j}, norm[j])
	}
	Label("row")
	PREFETCHT0(Mem{Base: w, Index: stride, Scale: uint8(t.rows)})
	c := Z18
	VBROADCASTSS(Mem{Base: bound}, c)
	decideBF16(w, p, c, norm)
	ADDQ(I8(b.size), bound)
	ADDQ(stride, w)
	ADDQ(I32(t.vectors*t.bytes), p.delta)
	ADDQ(I8(8), p.undecided)
	DECQ(n)
	JNZ(LabelRef("row"))

	SUBQ(I32(t.rows*t.vectors*t.bytes), p.delta)
	ADDQ(I32(t.vectors*t.bytes/b.size*b.bytes), p.w)
	ADDQ(I32(t.vectors*t.bytes), p.rNorm)
	DECQ(p.panels)
	JNZ(LabelRef("tile"))
	flush512(b)
	VZEROUPPER()
	RET()
}

func constants512(b base) {
	var expand [2][32]uint16
	var shrink [32]uint16
	for i := range 16 {
		expand[0][2*i+1], expand[1][2*i+1] = uint16(i), uint16(16+i)
		shrink[i], shrink[16+i] = uint16(2*i+1), uint16(32+2*i+1)
	}
	VMOVDQU32(words("expandLow", expand[0]), zExpand[0])
	VMOVDQU32(words("expandHigh", expand[1]), zExpand[1])
	VMOVDQU32(words("shrink", shrink), zShrink)
	VPBROADCASTD(number("abs", 0x7fffffff), zAbs)
	VPBROADCASTD(number("high", 0xffff0000), zHigh)
	VPBROADCASTD(number("mid", 0x8000), zMid)
	floor, err := Param("floor").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(floor.Addr, zFloor)
	for _, z := range append(zSums[:], zCount) {
		VPXORD(z, z, z)
	}
	odd := GP32()
	MOVL(U32(0xaaaaaaaa), odd)
	KMOVD(odd, K1)
}

// decideBF16 does 32 elements of a row: m is t with its low half replaced by the midpoint's, and e < min(|t−m|, 2⁻¹⁰·|t|)
// decides; t + half an ulp, cut, is the result. See merge/doc.go.
func decideBF16(at Register, p pointers, c VecPhysical, norm [2]VecPhysical) {
	raw := Z19
	VMOVDQU16(Mem{Base: at}, raw)
	var w [2]VecPhysical
	for j := range 2 {
		z := func(i int) VecPhysical { return zmm[8*j+i] }
		d, t, abs, e, m := z(1), z(2), z(3), z(4), z(5)
		w[j] = z(0)
		ok, same := [2]OpmaskPhysical{K2, K3}[j], K4
		VPERMW_Z(raw, zExpand[j], K1, w[j])
		VMOVAPS(Mem{Base: p.delta, Disp: 64 * j}, d)
		VADDPS(d, w[j], t)
		VMOVAPS(c, e)
		VFMADD213PS(zFloor, norm[j], e)
		VPANDD(zAbs, t, abs)
		VFMADD231PS_BCST(number("slack", bits(0x1.004p-23)), abs, e)
		VMOVDQA32(zHigh, m)
		VPTERNLOGD(U8(0xea), zMid, t, m) // (m & t) | mid
		VSUBPS(m, t, m)
		q := z(6)
		VMULPS_BCST(number("near", bits(0x1p-10)), t, q)
		VRANGEPS(U8(2<<2|2), m, q, q) // the smaller magnitude
		VCMPPS(U8(30), e, q, ok)      // q > e
		VCMPPS_BCST(U8(17), number("limit", bits(0x1p44)), abs, ok, ok)

		out, moved, lost := t, z(5), z(6)
		VPADDD(zMid, t, out)
		VPANDD(zHigh, out, out)
		VSUBPS(w[j], out, moved)
		VSUBPS(d, moved, lost)
		VFMADD231PS(w[j], w[j], ok, zSums[0])
		VFMADD231PS(d, d, ok, zSums[1])
		VFMADD231PS(moved, moved, ok, zSums[2])
		VFMADD231PS(lost, lost, ok, zSums[3])
		VPTESTNMD(moved, moved, ok, same)
		VPADDD_BCST(number("one", 1), zCount, same, zCount)
		VMOVDQA32(out, ok, w[j])
	}
	VPERMT2W(w[1], zShrink, w[0])
	VMOVDQU16(w[0], Mem{Base: at})
	KUNPCKWD(K2, K3, K4)
	KNOTD(K4, K4)
	mask := GP32()
	KMOVD(K4, mask)
	MOVQ(mask.As64(), Mem{Base: p.undecided})
}

// flush512 adds the sums of the lanes to s.
func flush512(b base) {
	unchanged, squares := Load(Param("unchanged"), GP64()), Load(Param("squares"), GP64())
	VEXTRACTI64X4(U8(1), zCount, Y0)
	VPADDD(Y0, zCount.AsY(), Y0)
	VEXTRACTI128(U8(1), Y0, X1)
	VPADDD(X1, X0, X0)
	VPSHUFD(U8(0x4e), X0, X1)
	VPADDD(X1, X0, X0)
	VPSHUFD(U8(0xb1), X0, X1)
	VPADDD(X1, X0, X0)
	n := GP32()
	VMOVD(X0, n)
	ADDQ(n.As64(), Mem{Base: unchanged})
	for i, z := range zSums {
		VCVTPS2PD(z.AsY(), Z0)
		VEXTRACTF64X4(U8(1), z, Y1)
		VCVTPS2PD(Y1, Z1)
		VADDPD(Z1, Z0, Z0)
		VEXTRACTF64X4(U8(1), Z0, Y1)
		VADDPD(Y1, Y0, Y0)
		VEXTRACTF128(U8(1), Y0, X1)
		VADDPD(X1, X0, X0)
		VUNPCKHPD(X0, X0, X1)
		VADDSD(X1, X0, X0)
		at := Mem{Base: squares, Disp: 8 * i}
		VADDSD(at, X0, X0)
		VMOVSD(X0, at)
	}
}

func bits(x float32) uint32 { return math.Float32bits(x) }

var known = map[string]Mem{}

// number is a constant in memory.
func number(name string, x uint32) Mem {
	if _, ok := known[name]; !ok {
		known[name] = ConstData(name, U32(x))
	}
	return known[name]
}

// words are 32 constants in memory.
func words(name string, x [32]uint16) Mem {
	if m, ok := known[name]; ok {
		return m
	}
	m := GLOBL(name, attr.RODATA|attr.NOPTR)
	for i, x := range x {
		DATA(2*i, U16(x))
	}
	known[name] = m
	return m
}
