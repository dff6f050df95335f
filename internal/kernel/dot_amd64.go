package kernel

//go:noescape
func dotAVX2(l, r *float32, stride, n int) float64

// dot32 is dot in assembly.
func dot32(l, r []float32, stride int) float64 {
	if len(l) == 0 {
		return 0
	}
	_ = r[(len(l)-1)*stride] // the furthest element that the assembly reads
	return dotAVX2(&l[0], &r[0], 4*stride, len(l))
}
