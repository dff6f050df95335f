#include "textflag.h"

// func dotAVX2(l, r *float32, stride, n int) float64
//
//	Σ_{k<n} l[k] · r[k·stride],   stride in bytes
//
// Eight products a step, in float64, in two sums of four lanes; the rest one at a time. Nothing
// beyond the elements named is read.
TEXT ·dotAVX2(SB), NOSPLIT, $0-40
	MOVQ l+0(FP), SI
	MOVQ r+8(FP), DI
	MOVQ stride+16(FP), R8
	MOVQ n+24(FP), CX
	LEAQ (R8)(R8*2), R9 // 3·stride
	VXORPD X0, X0, X0
	VXORPD X1, X1, X1
	VXORPD X2, X2, X2
	SUBQ $8, CX
	JLT  rest

eight:
	LEAQ (DI)(R8*4), DX
	VMOVSS (DI), X3
	VMOVSS (DX), X4
	VINSERTPS $0x10, (DI)(R8*1), X3, X3
	VINSERTPS $0x10, (DX)(R8*1), X4, X4
	VINSERTPS $0x20, (DI)(R8*2), X3, X3
	VINSERTPS $0x20, (DX)(R8*2), X4, X4
	VINSERTPS $0x30, (DI)(R9*1), X3, X3
	VINSERTPS $0x30, (DX)(R9*1), X4, X4
	VCVTPS2PD X3, Y3
	VCVTPS2PD X4, Y4
	VCVTPS2PD (SI), Y5
	VCVTPS2PD 16(SI), Y6
	VFMADD231PD Y3, Y5, Y0
	VFMADD231PD Y4, Y6, Y1
	ADDQ $32, SI
	LEAQ (DX)(R8*4), DI
	SUBQ $8, CX
	JGE  eight

rest:
	ADDQ $8, CX
	JLE  done

one:
	VCVTSS2SD (SI), X2, X3
	VCVTSS2SD (DI), X2, X4
	VFMADD231SD X3, X4, X2
	ADDQ $4, SI
	ADDQ R8, DI
	DECQ CX
	JNZ  one

done:
	VADDPD Y1, Y0, Y0
	VEXTRACTF128 $1, Y0, X1
	VADDPD X1, X0, X0
	VUNPCKHPD X0, X0, X1
	VADDSD X1, X0, X0
	VADDSD X2, X0, X0
	VMOVSD X0, ret+32(FP)
	VZEROUPPER
	RET
