package kernel

// The kernel replaces the portable one unless Variable forces that.
func init() {
	if k, err := Selected(); err == nil && k.name != "portable" {
		thin8x8 = func(dst *[64]float32, d []float32, next, apart int, x []float32, xNext, n int) {
			// The furthest elements that the kernel reads have to be there.
			_, _ = d[(n-1)*next+7*apart], x[(n-1)*xNext+7]
			thin8x8NEON(&dst[0], &d[0], uintptr(4*next), uintptr(4*apart), &x[0], uintptr(4*xNext),
				n)
		}
	}
}
