package kernel

import "golang.org/x/sys/cpu"

// available lists the kernels for this processor. Go requires ARMv8.0, which has all vector
// instructions that they use.
func available() []*Kernel {
	if !cpu.ARM64.HasASIMD {
		return nil
	}
	return []*Kernel{{
		name: "neon",
		bf16: assembled(4, 16, 8, bf16NEON),
		f16:  assembled(4, 16, 8, f16NEON),
		f32:  assembled(4, 8, 16, f32NEON),
	}}
}
