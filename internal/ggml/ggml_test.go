package ggml

import "testing"

// The sizes are written as ggml-common.h defines the structs of the blocks.
func TestBlocksHaveTheSizesOfGGML(t *testing.T) {
	const half, float = 2, 4
	for name, want := range map[string][2]int64{
		"Q4_0": {32, half + 16}, "Q4_1": {32, 2*half + 16}, "Q5_0": {32, half + 4 + 16},
		"Q5_1": {32, 2*half + 4 + 16}, "Q8_0": {32, half + 32}, "Q8_1": {32, 2*half + 32},
		"Q2_K": {256, 2*half + 16 + 64}, "Q3_K": {256, half + 64 + 32 + 12},
		"Q4_K": {256, 2*half + 12 + 128}, "Q5_K": {256, 2*half + 12 + 128 + 32},
		"Q6_K": {256, half + 16 + 192}, "Q8_K": {256, float + 256 + 32}, "IQ2_XXS": {256, half + 64},
		"IQ2_XS": {256, half + 64 + 8}, "IQ3_XXS": {256, half + 96}, "IQ1_S": {256, half + 32 + 16},
		"IQ4_NL": {32, half + 16}, "IQ3_S": {256, half + 13*8 + 4}, "IQ2_S": {256, half + 64 + 16},
		"IQ4_XS": {256, half + 2 + 4 + 128}, "IQ1_M": {256, 32 + 16 + 8}, "TQ1_0": {256, half + 52},
		"TQ2_0": {256, half + 64}, "MXFP4": {32, 1 + 16}, "NVFP4": {64, 4 + 32},
		"Q1_0": {128, half + 16}, "Q2_0": {64, half + 16},
		"F32": {1, 4}, "F16": {1, 2}, "BF16": {1, 2}, "F64": {1, 8},
		"I8": {1, 1}, "I16": {1, 2}, "I32": {1, 4}, "I64": {1, 8},
	} {
		found := false
		for i, l := range layouts {
			if l.name == name {
				found = true
				if n, b := Type(i).Block(); n != want[0] || b != want[1] {
					t.Errorf("%s: Block = %d, %d, want %d", name, n, b, want)
				}
			}
		}
		if !found {
			t.Errorf("no type is called %s", name)
		}
	}
}
