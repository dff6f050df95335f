#include "textflag.h"

// Each of the functions
//
//	func differencesT(s *differenceSums, dst *float32, tuned, base *byte, n int, least uint32)
//
// writes n values of type T, tuned − base, to dst, and adds them to the sums; n is a multiple of 8, and
// at least 8. Each of the sums has four lanes, which take elements 0 … 3 and then 4 … 7 of eight.
//
// Y0 Σδ², Y1 Σw², Y2 Σu², Y3 tiny; Y4 mask of magnitudes, Y5 of exponents, Y6 least, Y7 LeastElement, Y15 zero;
// Y8 w′, Y9 w.
#define START \
	MOVQ s+0(FP), DX \
	MOVQ dst+8(FP), DI \
	MOVQ tuned+16(FP), SI \
	MOVQ base+24(FP), BX \
	MOVQ n+32(FP), CX \
	VPBROADCASTD least+40(FP), Y6 \
	VMOVUPD (DX), Y0 \
	VMOVUPD 32(DX), Y1 \
	VMOVUPD 64(DX), Y2 \
	VPXOR Y3, Y3, Y3 \
	VPXOR Y15, Y15, Y15 \
	VPCMPEQD Y4, Y4, Y4 \
	VPSRLD $1, Y4, Y4 \
	VPSRLD $23, Y4, Y5 \
	VPSLLD $23, Y5, Y5 \
	MOVL $0x21800000, AX \
	VMOVD AX, X7 \
	VPBROADCASTD X7, Y7

// SQUARES adds the squares of the eight numbers of a register to a sum.
#define SQUARES(from, fromX, sum) \
	VCVTPS2PD fromX, Y12 \
	VEXTRACTF128 $1, from, X13 \
	VCVTPS2PD X13, Y13 \
	VFMADD231PD Y12, Y12, sum \
	VFMADD231PD Y13, Y13, sum

#define STEP \
	VSUBPS Y9, Y8, Y10 \
	VMOVUPS Y10, (DI) \
	VPAND Y4, Y10, Y11 \
	VPCMPGTD Y15, Y11, Y12 \
	VPCMPGTD Y11, Y7, Y13 \
	VPAND Y12, Y13, Y12 \
	VPOR Y12, Y3, Y3 \
	VPAND Y5, Y8, Y11 \
	VPMAXSD Y6, Y11, Y11 \
	SQUARES(Y10, X10, Y0) \
	SQUARES(Y9, X9, Y1) \
	SQUARES(Y11, X11, Y2) \
	ADDQ $32, DI \
	SUBQ $8, CX

#define END \
	VMOVUPD Y0, (DX) \
	VMOVUPD Y1, 32(DX) \
	VMOVUPD Y2, 64(DX) \
	VPMOVMSKB Y3, AX \
	ORL AX, 96(DX) \
	VZEROUPPER \
	RET

// func differencesBF16(s *differenceSums, dst *float32, tuned, base *byte, n int, least uint32)
TEXT ·differencesBF16(SB), NOSPLIT, $0-44
	START
loop:
	VPMOVZXWD (SI), Y8
	VPMOVZXWD (BX), Y9
	VPSLLD $16, Y8, Y8
	VPSLLD $16, Y9, Y9
	ADDQ $16, SI
	ADDQ $16, BX
	STEP
	JNZ loop
	END

// func differencesF16(s *differenceSums, dst *float32, tuned, base *byte, n int, least uint32)
TEXT ·differencesF16(SB), NOSPLIT, $0-44
	START
loop:
	VCVTPH2PS (SI), Y8
	VCVTPH2PS (BX), Y9
	ADDQ $16, SI
	ADDQ $16, BX
	STEP
	JNZ loop
	END

// func differencesF32(s *differenceSums, dst *float32, tuned, base *byte, n int, least uint32)
TEXT ·differencesF32(SB), NOSPLIT, $0-44
	START
loop:
	VMOVUPS (SI), Y8
	VMOVUPS (BX), Y9
	ADDQ $32, SI
	ADDQ $32, BX
	STEP
	JNZ loop
	END
