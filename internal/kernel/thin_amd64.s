#include "textflag.h"

// SUM8X8 leaves the sums of eight rows in Y0 … Y7. SI d, R8 next, R9 apart, DX x, R10 xNext, CX n. One row of x is
// loaded and eight elements of d are broadcast per step; eight accumulators hide the latency of the multiply-add.
// Nothing beyond the elements named is read.
#define SUM8X8 \
	LEAQ (R9)(R9*2), R11 \
	LEAQ (SI)(R9*4), BX \
	VXORPS Y0, Y0, Y0 \
	VXORPS Y1, Y1, Y1 \
	VXORPS Y2, Y2, Y2 \
	VXORPS Y3, Y3, Y3 \
	VXORPS Y4, Y4, Y4 \
	VXORPS Y5, Y5, Y5 \
	VXORPS Y6, Y6, Y6 \
	VXORPS Y7, Y7, Y7 \
loop: \
	VMOVUPS (DX), Y8 \
	VBROADCASTSS (SI), Y9 \
	VBROADCASTSS (SI)(R9*1), Y10 \
	VBROADCASTSS (SI)(R9*2), Y11 \
	VBROADCASTSS (SI)(R11*1), Y12 \
	VFMADD231PS Y9, Y8, Y0 \
	VFMADD231PS Y10, Y8, Y1 \
	VFMADD231PS Y11, Y8, Y2 \
	VFMADD231PS Y12, Y8, Y3 \
	VBROADCASTSS (BX), Y9 \
	VBROADCASTSS (BX)(R9*1), Y10 \
	VBROADCASTSS (BX)(R9*2), Y11 \
	VBROADCASTSS (BX)(R11*1), Y12 \
	VFMADD231PS Y9, Y8, Y4 \
	VFMADD231PS Y10, Y8, Y5 \
	VFMADD231PS Y11, Y8, Y6 \
	VFMADD231PS Y12, Y8, Y7 \
	ADDQ R8, SI \
	ADDQ R8, BX \
	ADDQ R10, DX \
	DECQ CX \
	JNZ  loop

// func addThinAVX2(sums *float64, sumsNext uintptr, d *float32, next uintptr, apart uintptr, x *float32, xNext uintptr, n int)
//
//	sums[q*sumsNext+c] += Σ_{k<n} d[k·next + q·apart] · x[k·xNext + c],   q, c = 0 … 7, strides in bytes
TEXT ·addThinAVX2(SB), NOSPLIT, $0-64
	MOVQ sums+0(FP), DI
	MOVQ sumsNext+8(FP), R12
	MOVQ d+16(FP), SI
	MOVQ next+24(FP), R8
	MOVQ apart+32(FP), R9
	MOVQ x+40(FP), DX
	MOVQ xNext+48(FP), R10
	MOVQ n+56(FP), CX
	SUM8X8

#define ADD(row, rowX) \
	VCVTPS2PD rowX, Y8 \
	VEXTRACTF128 $1, row, X9 \
	VCVTPS2PD X9, Y9 \
	VADDPD (DI), Y8, Y8 \
	VADDPD 32(DI), Y9, Y9 \
	VMOVUPD Y8, (DI) \
	VMOVUPD Y9, 32(DI) \
	ADDQ R12, DI

	ADD(Y0, X0)
	ADD(Y1, X1)
	ADD(Y2, X2)
	ADD(Y3, X3)
	ADD(Y4, X4)
	ADD(Y5, X5)
	ADD(Y6, X6)
	ADD(Y7, X7)
	VZEROUPPER
	RET

// func addResidualAVX2(sums *float64, d *float32, dNext uintptr, b *float32, next uintptr, apart uintptr, a *float32, aNext uintptr, n int)
//
//	sums[c%4] += Σ_{q,c} (d[q·dNext + c] − Σ_{k<n} b[k·next + q·apart] · a[k·aNext + c])²,   q, c = 0 … 7, strides in bytes
TEXT ·addResidualAVX2(SB), NOSPLIT, $0-72
	MOVQ b+24(FP), SI
	MOVQ next+32(FP), R8
	MOVQ apart+40(FP), R9
	MOVQ a+48(FP), DX
	MOVQ aNext+56(FP), R10
	MOVQ n+64(FP), CX
	SUM8X8
	MOVQ sums+0(FP), DI
	MOVQ d+8(FP), SI
	MOVQ dNext+16(FP), R12
	VMOVUPD (DI), Y10
	VXORPD Y11, Y11, Y11

#define SUBTRACT(row) \
	VMOVUPS (SI), Y8 \
	VSUBPS row, Y8, Y8 \
	VCVTPS2PD X8, Y9 \
	VEXTRACTF128 $1, Y8, X8 \
	VCVTPS2PD X8, Y8 \
	VFMADD231PD Y9, Y9, Y10 \
	VFMADD231PD Y8, Y8, Y11 \
	ADDQ R12, SI

	SUBTRACT(Y0)
	SUBTRACT(Y1)
	SUBTRACT(Y2)
	SUBTRACT(Y3)
	SUBTRACT(Y4)
	SUBTRACT(Y5)
	SUBTRACT(Y6)
	SUBTRACT(Y7)
	VADDPD Y11, Y10, Y10
	VMOVUPD Y10, (DI)
	VZEROUPPER
	RET
