package kernel

import (
	"golang.org/x/sys/cpu"

	"github.com/loratool/loratool/format/dtype"
)

//go:noescape
func differencesBF16(s *differenceSums, dst *float32, tuned, base *byte, n int, least uint32)

//go:noescape
func differencesF16(s *differenceSums, dst *float32, tuned, base *byte, n int, least uint32)

//go:noescape
func differencesF32(s *differenceSums, dst *float32, tuned, base *byte, n int, least uint32)

// The kernels replace the portable one unless Variable forces that.
func init() {
	if k, err := Selected(); err != nil || k.name == "portable" || !cpu.X86.HasAVX2 ||
		!cpu.X86.HasFMA || !cpu.X86.HasF16C {
		return
	}
	by := map[dtype.Type]func(*differenceSums, *float32, *byte, *byte, int, uint32){
		dtype.BF16: differencesBF16, dtype.F16: differencesF16, dtype.F32: differencesF32,
	}
	differences = func(s *differenceSums, dst []float32, t dtype.Type, tuned, base []byte) int {
		const step = 8
		n := len(dst) / step * step
		if n == 0 {
			return 0
		}
		last := n*t.Size() - 1
		_, _ = tuned[last], base[last]
		by[t](s, &dst[0], &tuned[0], &base[0], n, leastPower(t))
		return n
	}
}
