#include "textflag.h"

// func thin8x8AVX2(dst *float32, d *float32, next uintptr, apart uintptr, x *float32, xNext uintptr, n int)
//
//	dst[q*8+c] = Σ_{k<n} d[k·next + q·apart] · x[k·xNext + c],   q, c = 0 … 7, strides in bytes
//
// One row of x is loaded and eight elements of d are broadcast per step; eight accumulators hide the latency of the
// multiply-add. Nothing beyond the elements named is read.
TEXT ·thin8x8AVX2(SB), NOSPLIT, $0-56
	MOVQ dst+0(FP), DI
	MOVQ d+8(FP), SI
	MOVQ next+16(FP), R8
	MOVQ apart+24(FP), R9
	MOVQ x+32(FP), DX
	MOVQ xNext+40(FP), R10
	MOVQ n+48(FP), CX
	LEAQ (R9)(R9*2), R11       // 3·apart
	LEAQ (SI)(R9*4), BX        // the fourth element
	VXORPS Y0, Y0, Y0
	VXORPS Y1, Y1, Y1
	VXORPS Y2, Y2, Y2
	VXORPS Y3, Y3, Y3
	VXORPS Y4, Y4, Y4
	VXORPS Y5, Y5, Y5
	VXORPS Y6, Y6, Y6
	VXORPS Y7, Y7, Y7
	TESTQ CX, CX
	JZ   done

loop:
	VMOVUPS (DX), Y8
	VBROADCASTSS (SI), Y9
	VBROADCASTSS (SI)(R9*1), Y10
	VBROADCASTSS (SI)(R9*2), Y11
	VBROADCASTSS (SI)(R11*1), Y12
	VFMADD231PS Y9, Y8, Y0
	VFMADD231PS Y10, Y8, Y1
	VFMADD231PS Y11, Y8, Y2
	VFMADD231PS Y12, Y8, Y3
	VBROADCASTSS (BX), Y9
	VBROADCASTSS (BX)(R9*1), Y10
	VBROADCASTSS (BX)(R9*2), Y11
	VBROADCASTSS (BX)(R11*1), Y12
	VFMADD231PS Y9, Y8, Y4
	VFMADD231PS Y10, Y8, Y5
	VFMADD231PS Y11, Y8, Y6
	VFMADD231PS Y12, Y8, Y7
	ADDQ R8, SI
	ADDQ R8, BX
	ADDQ R10, DX
	DECQ CX
	JNZ  loop

done:
	VMOVUPS Y0, (DI)
	VMOVUPS Y1, 32(DI)
	VMOVUPS Y2, 64(DI)
	VMOVUPS Y3, 96(DI)
	VMOVUPS Y4, 128(DI)
	VMOVUPS Y5, 160(DI)
	VMOVUPS Y6, 192(DI)
	VMOVUPS Y7, 224(DI)
	VZEROUPPER
	RET
