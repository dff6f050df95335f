package kernel

import "golang.org/x/sys/cpu"

// available lists the kernels whose vector registers both the processor and the system support.
func available() (all []*Kernel) {
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL {
		all = append(all, &Kernel{
			name: "avx512",
			bf16: assembled(8, 32, 8, bf16AVX512),
			f16:  assembled(8, 32, 8, f16AVX512),
			f32:  assembled(8, 16, 8, f32AVX512),

			bf16Widened: assembled(8, 32, 8, bf16WidenedAVX512),
			f16Widened:  assembled(8, 32, 8, f16WidenedAVX512),
			f32Widened:  assembled(8, 16, 8, f32WidenedAVX512),

			bf16Recording: recording(8, 32, 8, bf16RecordingAVX512),

			dot: dot32,
		})
	}
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasF16C && cpu.X86.HasPOPCNT {
		all = append(all, &Kernel{
			name: "avx2",
			bf16: assembled(4, 16, 16, bf16AVX2),
			f16:  assembled(4, 16, 16, f16AVX2),
			f32:  assembled(4, 8, 16, f32AVX2),

			bf16Widened: assembled(4, 16, 16, bf16WidenedAVX2),
			f16Widened:  assembled(4, 16, 16, f16WidenedAVX2),
			f32Widened:  assembled(4, 8, 16, f32WidenedAVX2),

			bf16Recording: recording(4, 16, 16, bf16RecordingAVX2),

			dot: dot32,
		})
	}
	return all
}
