package main

import (
	"math"

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

// These registers keep their values from tile to tile; products use those below 20.
var (
	zExpand = [2]VecPhysical{Z20, Z21} // BF16: the words of a vector, to the high halves of double words
	zShrink = Z22                      // and back
	zHigh   = Z24
	zMid    = Z25
	zAbs    = Z23
	zFloor  = Z26
	zCount  = Z27
	zSums   = [4]VecPhysical{Z28, Z29, Z30, Z31} // w², δ², (out−w)², (out−w−δ)²
)

func avx512(b base, records bool) {
	p := begin(b, wide, records)
	t := wide
	constants512(b)
	Label("tile")
	products(b, t, p)

	stride, w, bound, n := GP64(), GP64(), GP64(), GP64()
	Load(Param("stride"), stride)
	Load(Param("lBound"), bound)
	MOVQ(p.w, w)
	MOVQ(I32(t.rows), n)
	norm, scale, inverse := [2]VecPhysical{Z16, Z17}, Z7, Z15
	for j := range norm {
		b.op(VMOVUPS, VMOVUPD)(Mem{Base: p.rNorm, Disp: 64 * j}, norm[j])
	}
	b.op(VBROADCASTSS, VBROADCASTSD)(param("scale"), scale)
	b.op(VBROADCASTSS, VBROADCASTSD)(param("inverse"), inverse)
	rows(b, p, func(label string, isScaled bool) {
		PREFETCHT0(Mem{Base: w, Index: stride, Scale: uint8(t.rows)}) // the next tile's below
		row512(b, w, bound, p, scale, inverse, norm, isScaled)
		ADDQ(I8(b.size), bound)
		ADDQ(stride, w)
		ADDQ(I32(t.vectors*t.bytes), p.delta)
		ADDQ(I8(8), p.undecided)
		DECQ(n)
		JNZ(LabelRef(label))
	})

	SUBQ(I32(t.rows*t.vectors*t.bytes), p.delta)
	ADDQ(I32(t.vectors*t.bytes/b.size*b.bytes), p.w)
	ADDQ(I32(t.vectors*t.bytes), p.rNorm)
	p.nextTile(t, 4)
	DECQ(p.panels)
	JNZ(LabelRef("tile"))
	flush512(b)
	VZEROUPPER()
	RET()
}

func constants512(b base) {
	if b.dtype == bf16.dtype {
		VPBROADCASTD(integer("high", 0xffff0000), zHigh)
		VPBROADCASTD(integer("mid", 0x8000), zMid)
	}
	if b == bf16 {
		var expand [2][32]uint16
		var shrink [32]uint16
		for i := range 16 {
			expand[0][2*i+1], expand[1][2*i+1] = uint16(i), uint16(16+i)
			shrink[i], shrink[16+i] = uint16(2*i+1), uint16(32+2*i+1)
		}
		VMOVDQU32(words("expandLow", expand[0]), zExpand[0])
		VMOVDQU32(words("expandHigh", expand[1]), zExpand[1])
		VMOVDQU32(words("shrink", shrink), zShrink)
		odd := GP32()
		MOVL(U32(0xaaaaaaaa), odd)
		KMOVD(odd, K1)
	}
	b.op(VBROADCASTSS, VBROADCASTSD)(b.absMask(), zAbs)
	b.op(VBROADCASTSS, VBROADCASTSD)(param("floor"), zFloor)
	for _, z := range append(zSums[:], zCount) {
		VPXORD(z, z, z)
	}
}

// row512 processes a row of a tile: two vectors of δ.
func row512(b base, at, bound Register, p pointers, scale, inverse VecPhysical, norm [2]VecPhysical, isScaled bool) {
	var (
		mov        = b.op(VMOVAPS, VMOVAPD)
		sub        = b.op(VSUBPS, VSUBPD)
		and        = b.op(VANDPS, VANDPD)
		fma, round = b.op(VFMADD231PS, VFMADD231PD), b.op(VFMADD231PS_BCST, VFMADD231PD_BCST)
		ok         = [2]OpmaskPhysical{K2, K3}
		same       = K4
		raw        = Z19
		half       = 64 / b.size * b.bytes // bytes of W in one vector
		w          [2]VecPhysical
	)
	if b == bf16 {
		VMOVDQU16(Mem{Base: at}, raw)
	}
	for j := range 2 {
		z := func(i int) VecPhysical { return zmm[8*j+i] }
		d, t, abs, e := z(1), z(2), z(3), z(4)
		w[j] = z(0)
		here := Mem{Base: at, Disp: half * j}
		switch b {
		case bf16:
			VPERMW_Z(raw, zExpand[j], K1, w[j])
		case f16:
			VCVTPH2PS(here, w[j])
		case f32:
			VCVTPS2PD(here, w[j])
		default:
			b.op(VMOVUPS, VMOVUPD)(here, w[j])
		}
		mov(Mem{Base: p.delta, Disp: 64 * j}, d)
		if isScaled {
			mov(w[j], t)
			fma(scale, d, t)
		} else {
			b.op(VADDPS, VADDPD)(d, w[j], t)
		}
		mov(zFloor, e)
		round(Mem{Base: bound}, norm[j], e)
		and(zAbs, t, abs)
		round(b.slack(), abs, e)

		var out VecPhysical
		if b.dtype == bf16.dtype {
			out = midpoint512(t, abs, e, z(5), z(6), ok[j])
		} else {
			out = bothEnds512(b, t, abs, e, z(5), z(6), ok[j])
		}
		moved, lost := z(5), z(6)
		b.op(VCMPPS, VCMPPD)(U8(equal), w[j], out, ok[j], same)
		sub(w[j], out, moved)
		if isScaled {
			b.op(VMULPS, VMULPD)(inverse, moved, moved)
		}
		sub(d, moved, lost)
		fma(w[j], w[j], ok[j], zSums[0])
		fma(d, d, ok[j], zSums[1])
		fma(moved, moved, ok[j], zSums[2])
		fma(lost, lost, ok[j], zSums[3])
		b.op(VPADDD_BCST, VPADDQ_BCST)(b.one(), zCount, same, zCount)
		switch b {
		case bf16:
			VMOVDQA32(out, ok[j], w[j])
			if p.records {
				predict512(b, bound, j, d, w[j], norm[j])
			}
		case f16:
			VMOVDQU16(here, t.AsY())
			VMOVDQU16(e.AsY(), ok[j], t.AsY())
			VMOVDQU16(t.AsY(), here)
		case f32:
			VMOVUPS(here, t.AsY())
			VMOVAPS(e.AsY(), ok[j], t.AsY())
			VMOVUPS(t.AsY(), here)
		default:
			b.op(VMOVUPS, VMOVUPD)(out, ok[j], here)
		}
	}
	if b == bf16 {
		VPERMT2W(w[1], zShrink, w[0])
		VMOVDQU16(w[0], Mem{Base: at})
	}
	if b.size == 4 {
		KUNPCKWD(ok[0], ok[1], same)
		KNOTD(same, same)
	} else {
		KUNPCKBW(ok[0], ok[1], same)
		KNOTW(same, same)
	}
	mask := GP32()
	KMOVD(same, mask)
	if p.records {
		residuals512(at, p, raw, mask)
	}
	MOVQ(mask.As64(), Mem{Base: p.undecided})
}

// predict512 decides t − δ, with t the results of vector j of a row. The prediction as float32 is
// in Z5 or Z13, the mask of decided elements in K5 or K6.
func predict512(b base, bound Register, j int, d, t, norm VecPhysical) {
	z := func(i int) VecPhysical { return zmm[8*j+i] }
	q, abs, e := z(5), z(3), z(4)
	VSUBPS(d, t, q)
	VMOVAPS(zFloor, e)
	VFMADD231PS_BCST(Mem{Base: bound}, norm, e)
	VANDPS(zAbs, q, abs)
	VFMADD231PS_BCST(b.slack(), abs, e)
	midpoint512(q, abs, e, z(6), z(2), [2]OpmaskPhysical{K5, K6}[j])
}

// residuals512 stores the residuals of a row of a tile, and adds open predictions to mask. w has
// the words of W before the merge.
func residuals512(at Register, p pointers, w VecPhysical, mask GPVirtual) {
	predicted, z, sign := Z5, Z1, Z2
	VPERMT2W(Z13, zShrink, predicted)
	order512(w, z)
	order512(predicted, sign)
	VPSUBW(sign, z, z) // d = ord(w) − ord(p)
	VPSRAW(U8(15), z, sign)
	VPADDW(z, z, z)
	VPXORD(sign, z, z)
	KUNPCKWD(K5, K6, K7)
	VMOVDQU16(z, K7, w)
	to := GP64()
	MOVQ(p.toZ, to)
	VMOVDQU16(w, Mem{Base: at, Index: to, Scale: 1})

	VPTESTMW(w, w, K5)
	KNOTD(K7, K7)
	differs, open := GP32(), GP32()
	KMOVD(K5, differs)
	p.storeDiffers(differs, 4)
	KMOVD(K7, open)
	SHLQ(U8(32), open.As64())
	ORQ(open.As64(), mask.As64())
}

// order512 maps BF16 words to integers of the same order.
func order512(x, order VecPhysical) {
	VPSRAW(U8(15), x, order)
	VPORD_BCST(integer("signs", 0x80008000), order, order)
	VPXORD(x, order, order)
}

// midpoint512 tests a vector for BF16. m is t with the midpoint's low half, and e < min(|t−m|,
// 2⁻¹⁰·|t|) decides: see merge/proof.go. The result, in t, is t plus half an ulp, truncated.
func midpoint512(t, abs, e, m, near VecPhysical, ok OpmaskPhysical) (out VecPhysical) {
	VMOVDQA32(zHigh, m)
	VPTERNLOGD(U8(0xea), zMid, t, m) // (m & t) | mid
	VSUBPS(m, t, m)
	VMULPS_BCST(single("near", 0x1p-10), t, near)
	VRANGEPS(U8(2<<2|2), m, near, near) // the smaller magnitude
	VCMPPS(U8(greater), e, near, ok)
	VCMPPS_BCST(U8(less), single("limit", 0x1p44), abs, ok, ok)
	VPADDD(zMid, t, t)
	VPANDD(zHigh, t, t)
	return t
}

// bothEnds512 tests a vector. If t−e and t+e round to the same bits, and |t|+e is within the
// dtype's range, these bits are the result. It returns them in t, and rounded in the low half of e.
func bothEnds512(b base, t, abs, e, low, high VecPhysical, ok OpmaskPhysical) (out VecPhysical) {
	b.op(VSUBPS, VSUBPD)(e, t, low)
	b.op(VADDPS, VADDPD)(e, t, high)
	b.op(VADDPS, VADDPD)(e, abs, abs)
	if b.dtype == f16.dtype {
		VCVTPS2PH(U8(0), low, e.AsY())
		VCVTPS2PH(U8(0), high, high.AsY())
		VPCMPEQW(high.AsY(), e.AsY(), ok)
		VCMPPS_BCST(U8(atMost), single("maxF16", 65504), abs, ok, ok)
		VCVTPH2PS(e.AsY(), t)
	} else {
		VCVTPD2PS(low, e.AsY())
		VCVTPD2PS(high, high.AsY())
		VPCMPEQD(high.AsY(), e.AsY(), ok)
		VCMPPD_BCST(U8(atMost), double("maxF32", math.MaxFloat32), abs, ok, ok)
		VCVTPS2PD(e.AsY(), t)
	}
	return t
}

// Predicates of VCMP compare the second operand with the first, and are false for a NaN.
const (
	equal   = 0
	less    = 17
	atMost  = 18
	greater = 30
)

// flush512 adds the sums of the lanes to unchanged and squares.
func flush512(b base) {
	unchanged, squares := Load(Param("unchanged"), GP64()), Load(Param("squares"), GP64())
	add := b.op(VPADDD, VPADDQ)
	VEXTRACTI64X4(U8(1), zCount, Y0)
	add(Y0, zCount.AsY(), Y0)
	VEXTRACTI128(U8(1), Y0, X1)
	add(X1, X0, X0)
	VPSHUFD(U8(0x4e), X0, X1)
	add(X1, X0, X0)
	if b.size == 4 {
		VPSHUFD(U8(0xb1), X0, X1)
		add(X1, X0, X0)
	}
	n := GP32()
	VMOVD(X0, n)
	ADDQ(n.As64(), Mem{Base: unchanged})
	for i, z := range zSums {
		if b.size == 4 {
			VCVTPS2PD(z.AsY(), Z0)
			VEXTRACTF64X4(U8(1), z, Y1)
			VCVTPS2PD(Y1, Z1)
			VADDPD(Z1, Z0, Z0)
			z = Z0
		}
		VEXTRACTF64X4(U8(1), z, Y1)
		VADDPD(Y1, z.AsY(), Y0)
		flush256(i, squares)
	}
}

// flush256 adds the four float64 in Y0 to squares[i].
func flush256(i int, squares Register) {
	VEXTRACTF128(U8(1), Y0, X1)
	VADDPD(X1, X0, X0)
	VUNPCKHPD(X0, X0, X1)
	VADDSD(X1, X0, X0)
	at := Mem{Base: squares, Disp: 8 * i}
	VADDSD(at, X0, X0)
	VMOVSD(X0, at)
}
