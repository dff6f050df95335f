package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

var ymm = []VecPhysical{Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8, Y9, Y10, Y11, Y12, Y13, Y14, Y15}

var narrow = tile{isa: "AVX2", rows: 4, vectors: 2, bytes: 32, spare: 64,
	v:    func(i int) VecPhysical { return ymm[i] },
	zero: func(y VecPhysical) { VXORPS(y, y, y) },
}

// ySums stay in registers from tile to tile; products use the registers below: w², δ², d², (d−δ)².
var ySums = [4]VecPhysical{Y12, Y13, Y14, Y15}

// repeated returns the memory of an argument repeated over a vector, since registers are scarce.
func (p pointers) repeated(i int) Mem { return p.spare.Offset(32 * i) }

const scale, inverse = 0, 1

func constants256(b base, p pointers) {
	for i, name := range []string{"scale", "inverse"} {
		b.op(VBROADCASTSS, VBROADCASTSD)(param(name), Y0)
		b.op(VMOVUPS, VMOVUPD)(Y0, p.repeated(i))
	}
	for _, y := range ySums {
		VXORPS(y, y, y)
	}
}

func avx2(b base, records bool) {
	t := narrow
	if records {
		t.spare += 64
	}
	p := begin(b, t, records)
	count := GP64()
	XORQ(count, count)
	constants256(b, p)
	Label("tile")
	products(b, t, p)

	w, bound, n := GP64(), GP64(), GP64()
	Load(Param("lBound"), bound)
	MOVQ(p.w, w)
	MOVQ(I32(t.rows), n)
	b.op(VBROADCASTSS, VBROADCASTSD)(param("floor"), Y11)
	rows(b, p, func(label string, isScaled bool) {
		stride := GP64()
		MOVQ(param("stride"), stride)
		PREFETCHT0(Mem{Base: w, Index: stride, Scale: uint8(t.rows)}) // the next tile's below
		b.op(VBROADCASTSS, VBROADCASTSD)(Mem{Base: bound}, Y10)
		row256(b, w, p, Y10, Y11, count, isScaled)
		ADDQ(I8(b.size), bound)
		ADDQ(param("stride"), w)
		ADDQ(I32(t.vectors*t.bytes), p.delta)
		ADDQ(I8(8), p.undecided)
		DECQ(n)
		JNZ(LabelRef(label))
	})

	SUBQ(I32(t.rows*t.vectors*t.bytes), p.delta)
	ADDQ(I32(t.vectors*t.bytes/b.size*b.bytes), p.w)
	ADDQ(I32(t.vectors*t.bytes), p.rNorm)
	p.nextTile(t, 2)
	DECQ(p.panels)
	JNZ(LabelRef("tile"))

	unchanged, squares := Load(Param("unchanged"), GP64()), Load(Param("squares"), GP64())
	ADDQ(count, Mem{Base: unchanged})
	for i, y := range ySums {
		if b.size == 4 {
			VCVTPS2PD(y.AsX(), Y0)
			VEXTRACTF128(U8(1), y, X1)
			VCVTPS2PD(X1, Y1)
			VADDPD(Y1, Y0, Y0)
		} else {
			VMOVAPD(y, Y0)
		}
		flush256(i, squares)
	}
	VZEROUPPER()
	RET()
}

// row256 processes a row of a tile: two vectors of δ. Undecided elements are rare, so a branch
// keeps them out of the sums.
func row256(b base, at Register, p pointers, c, floor VecPhysical, count GPVirtual, isScaled bool) {
	var (
		mov   = b.op(VMOVAPS, VMOVAPD)
		sub   = b.op(VSUBPS, VSUBPD)
		and   = b.op(VANDPS, VANDPD)
		fma   = b.op(VFMADD231PS, VFMADD231PD)
		cmp   = b.op(VCMPPS, VCMPPD)
		lanes = 32 / b.size
		half  = lanes * b.bytes // bytes of W in one vector
		full  = 1<<lanes - 1
		out   = [2]VecPhysical{Y8, Y9}
		open  = GP32()
		signs = VMOVMSKPS
	)
	if b.size == 8 {
		signs = VMOVMSKPD
	}
	if b != bf16 {
		out[1] = out[0]
	}
	for j := range 2 {
		w, d, t, abs, e, m, near, ok := Y0, Y1, out[j], Y3, Y4, Y5, Y6, Y7
		here := Mem{Base: at, Disp: half * j}
		switch b {
		case bf16:
			VPMOVZXWD(here, w)
			VPSLLD(U8(16), w, w)
		case f16:
			VCVTPH2PS(here, w)
		case f32:
			VCVTPS2PD(here, w)
		default:
			b.op(VMOVUPS, VMOVUPD)(here, w)
		}
		mov(Mem{Base: p.delta, Disp: 32 * j}, d)
		if isScaled {
			b.op(VMOVUPS, VMOVUPD)(p.repeated(scale), t)
			b.op(VFMADD213PS, VFMADD213PD)(w, d, t)
		} else {
			b.op(VADDPS, VADDPD)(d, w, t)
		}
		b.op(VMOVUPS, VMOVUPD)(Mem{Base: p.rNorm, Disp: 32 * j}, e)
		b.op(VFMADD213PS, VFMADD213PD)(floor, c, e)
		and(b.absMask(), t, abs)
		fma(b.slack(), abs, e)
		if b.dtype == bf16.dtype {
			midpoint256(t, abs, e, m, near, ok)
		} else {
			bothEnds256(b, t, abs, e, m, near, ok)
		}
		bits := GP32()
		signs(ok, bits)
		if j == 0 {
			MOVL(bits, open)
		}
		moved, lost := m, near
		sub(w, t, moved)
		if isScaled {
			b.op(VMULPS, VMULPD)(p.repeated(inverse), moved, moved)
		}
		sub(d, moved, lost)
		same := abs
		cmp(U8(equal), w, t, same)
		CMPL(bits, U32(full))
		all := fmt.Sprintf("all%d%t", j, isScaled)
		JEQ(LabelRef(all))
		keep256(b, here, t, w, e, ok)
		for _, x := range []VecPhysical{w, d, moved, lost, same} {
			and(ok, x, x)
		}
		Label(all)
		for i, x := range []VecPhysical{w, d, moved, lost} {
			fma(x, x, ySums[i])
		}
		equals := GP32()
		signs(same, equals)
		POPCNTL(equals, equals)
		ADDQ(equals.As64(), count)
		switch {
		case b.isWidened():
			b.op(VMOVUPS, VMOVUPD)(t, here)
		case b != bf16:
			VMOVUPS(e.AsX(), here)
		}
		if j == 1 {
			SHLL(U8(lanes), bits)
			ORL(bits, open)
		}
		if p.records {
			predict256(b, p, j, d, t, c, floor)
		}
	}
	if p.records {
		VMOVDQU(Mem{Base: at}, Y0)
	}
	if b == bf16 {
		VPSRLD(U8(16), out[0], out[0])
		VPSRLD(U8(16), out[1], out[1])
		VPACKUSDW(out[1], out[0], out[0])
		VPERMQ(U8(0xd8), out[0], out[0])
		VMOVDQU(out[0], Mem{Base: at})
	}
	XORL(U32(1<<(2*lanes)-1), open)
	if p.records {
		residuals256(at, p, open)
	}
	MOVQ(open.As64(), Mem{Base: p.undecided})
}

// predict256 decides t − δ, with t the results of vector j of a row, and keeps the prediction as
// float32 and the vector of bits of decided elements: of the first vector in memory, of the second
// in Y5 and Y2.
func predict256(b base, p pointers, j int, d, t, c, floor VecPhysical) {
	q, abs, e, m, near, ok := Y5, Y3, Y4, Y6, Y7, Y2
	VSUBPS(d, t, q)
	VMOVUPS(Mem{Base: p.rNorm, Disp: 32 * j}, e)
	VFMADD213PS(floor, c, e)
	VANDPS(b.absMask(), q, abs)
	VFMADD231PS(b.slack(), abs, e)
	midpoint256(q, abs, e, m, near, ok)
	if j == 0 {
		VMOVUPS(q, p.repeated(2))
		VMOVUPS(ok, p.repeated(3))
	}
}

// residuals256 stores the residuals of a row of a tile, and adds open predictions to open: Y0 holds
// the words of W before the merge.
func residuals256(at Register, p pointers, open GPVirtual) {
	w, predicted, ok, z, sign := Y0, Y1, Y3, Y4, Y6
	VMOVUPS(p.repeated(2), predicted)
	VPSRLD(U8(16), predicted, predicted)
	VPSRLD(U8(16), Y5, Y5)
	VPACKUSDW(Y5, predicted, predicted)
	VPERMQ(U8(0xd8), predicted, predicted)
	VMOVUPS(p.repeated(3), ok)
	VPACKSSDW(Y2, ok, ok)
	VPERMQ(U8(0xd8), ok, ok)

	order256(w, z)
	order256(predicted, sign)
	VPSUBW(sign, z, z) // d = ord(w) − ord(p)
	VPSRAW(U8(15), z, sign)
	VPADDW(z, z, z)
	VPXOR(sign, z, z)
	VPBLENDVB(ok, z, w, z)
	to := GP64()
	MOVQ(p.toZ, to)
	VMOVDQU(z, Mem{Base: at, Index: to, Scale: 1})

	VPXOR(sign, sign, sign)
	VPCMPEQW(sign, z, sign)
	VPACKSSWB(ok, sign, sign)
	VPERMQ(U8(0xd8), sign, sign)
	bits := GP32()
	VPMOVMSKB(sign, bits)
	NOTL(bits)
	p.storeDiffers(bits, 2)
	SHRL(U8(16), bits)
	SHLQ(U8(32), bits.As64())
	ORQ(bits.As64(), open.As64())
}

// order256 maps BF16 words to integers of the same order.
func order256(x, order VecPhysical) {
	VPSRAW(U8(15), x, order)
	VPOR(integer("signs", 0x80008000), order, order)
	VPXOR(x, order, order)
}

// midpoint256 is midpoint512 with a vector of bits for ok.
func midpoint256(t, abs, e, m, near, ok VecPhysical) {
	VANDPS(integer("high", 0xffff0000), t, m)
	VORPS(integer("mid", 0x8000), m, m)
	VSUBPS(m, t, m)
	VANDPS(bf16.absMask(), m, m)
	VMULPS(single("near", 0x1p-10), abs, near)
	VMINPS(m, near, near)
	VCMPPS(U8(greater), e, near, ok)
	VCMPPS(U8(less), single("limit", 0x1p44), abs, near)
	VANDPS(near, ok, ok)
	VPADDD(integer("mid", 0x8000), t, t)
	VANDPS(integer("high", 0xffff0000), t, t)
}

// bothEnds256 is bothEnds512 with a vector of bits for ok.
func bothEnds256(b base, t, abs, e, low, high, ok VecPhysical) {
	b.op(VSUBPS, VSUBPD)(e, t, low)
	b.op(VADDPS, VADDPD)(e, t, high)
	b.op(VADDPS, VADDPD)(e, abs, abs)
	if b.dtype == f16.dtype {
		VCVTPS2PH(U8(0), low, e.AsX())
		VCVTPS2PH(U8(0), high, high.AsX())
		VPCMPEQW(high.AsX(), e.AsX(), ok.AsX())
		VPMOVSXWD(ok.AsX(), ok)
		VCMPPS(U8(atMost), single("maxF16", 65504), abs, abs)
		VANDPS(abs, ok, ok)
		VCVTPH2PS(e.AsX(), t)
	} else {
		VCVTPD2PSY(low, e.AsX())
		VCVTPD2PSY(high, high.AsX())
		VPCMPEQD(high.AsX(), e.AsX(), ok.AsX())
		VPMOVSXDQ(ok.AsX(), ok)
		VCMPPD(U8(atMost), double("maxF32", math.MaxFloat32), abs, abs)
		VANDPD(abs, ok, ok)
		VCVTPS2PD(e.AsX(), t)
	}
}

// keep256 restores the bits of W for undecided elements: into t for BF16 and if W is widened, else
// into the rounded values in e.
func keep256(b base, here Mem, t, w, e, ok VecPhysical) {
	bits, old := Y2, Y9
	switch b {
	case bf16:
		VBLENDVPS(ok, t, w, t)
	case f16:
		VEXTRACTI128(U8(1), ok, bits.AsX())
		VPACKSSDW(bits.AsX(), ok.AsX(), bits.AsX())
		VMOVUPS(here, old.AsX())
		VPBLENDVB(bits.AsX(), e.AsX(), old.AsX(), e.AsX())
	case f32:
		VEXTRACTF128(U8(1), ok, bits.AsX())
		VSHUFPS(U8(0x88), bits.AsX(), ok.AsX(), bits.AsX())
		VMOVUPS(here, old.AsX())
		VBLENDVPS(bits.AsX(), e.AsX(), old.AsX(), e.AsX())
	default:
		b.op(func(o ...Op) { VBLENDVPS(o[0], o[1], o[2], o[3]) }, func(o ...Op) { VBLENDVPD(o[0], o[1], o[2], o[3]) })(ok, t, w, t)
	}
}
