package kernel

import "golang.org/x/sys/cpu"

//go:noescape
func addThinAVX2(sums *float64, sumsNext uintptr, d *float32, next, apart uintptr, x *float32, xNext uintptr, n int)

//go:noescape
func addResidualAVX2(sums *float64, d *float32, dNext uintptr, b *float32, next, apart uintptr, a *float32, aNext uintptr, n int)

// The kernels replace the portable ones unless Variable forces that. The furthest elements that
// they read have to be there.
func init() {
	if k, err := Selected(); err != nil || k.name == "portable" || !cpu.X86.HasAVX2 ||
		!cpu.X86.HasFMA {
		return
	}
	addThin = func(sums []float64, sumsNext int, d []float32, next, apart int, x []float32, xNext, n int) {
		_, _, _ = sums[7*sumsNext+7], d[(n-1)*next+7*apart], x[(n-1)*xNext+7]
		addThinAVX2(&sums[0], uintptr(8*sumsNext), &d[0], uintptr(4*next), uintptr(4*apart), &x[0], uintptr(4*xNext), n)
	}
	addResidual = func(sums *[lanes]float64, d []float32, dNext int, b []float32, a []float32, aNext, r int) {
		_, _, _ = d[7*dNext+7], b[8*r-1], a[(r-1)*aNext+7]
		addResidualAVX2(&sums[0], &d[0], uintptr(4*dNext), &b[0], 4, uintptr(4*r), &a[0], uintptr(4*aNext), r)
	}
}
