package kernel

// dotFor returns the kernel's dot.
func dotFor[T Float](k *Kernel) func(l, r []T, stride int) float64 {
	if f, ok := any(k.dot).(func(l, r []T, stride int) float64); ok && f != nil {
		return f
	}
	return dot[T]
}

// dot returns the sum of l_k·r_k, with r_k = r[k·stride]. Its four partial sums do not wait for
// each other.
func dot[T Float](l, r []T, stride int) float64 {
	var s0, s1, s2, s3 float64
	for len(l) > 4 {
		s0 += float64(l[0]) * float64(r[0])
		s1 += float64(l[1]) * float64(r[stride])
		s2 += float64(l[2]) * float64(r[2*stride])
		s3 += float64(l[3]) * float64(r[3*stride])
		l, r = l[4:], r[4*stride:]
	}
	for k, x := range l {
		s0 += float64(x) * float64(r[k*stride])
	}
	return (s0 + s1) + (s2 + s3)
}
