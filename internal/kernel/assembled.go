package kernel

//go:generate go run -C asm . -out ../micro_amd64.s -stubs ../micro_amd64.go -pkg kernel
//go:generate go run -C asm ./neon -out ../micro_arm64.s -stubs ../micro_arm64.go

// assembled wraps an assembly function as a micro-kernel; its arguments are the fields of block.
// Assembly accesses exactly the memory that these describe, at any alignment. It also prefetches
// rows below w, which touches nothing.
func assembled[T Float](rows, cols, panels int,
	f func(w *byte, stride int, l, r *T, rank, panels int, lBound, rNorm *T, floor, scale,
		inverse T, undecided *uint64, unchanged *int64, squares *[4]float64)) micro[T] {
	return micro[T]{rows: rows, cols: cols, panels: panels, fuses: true, run: func(b *block[T]) {
		f(&b.w[0], b.stride, &b.l[:rows*b.rank][0], &b.r[:b.panels*b.rank*cols][0], b.rank,
			b.panels,
			&b.lBound[:rows][0], &b.rNorm[:b.panels*cols][0], b.floor, b.scale, b.inverse,
			&b.undecided[:b.panels*rows][0], &b.sums.unchanged, &b.sums.squares)
	}}
}

// recording wraps an assembly function as a recording micro-kernel.
func recording(rows, cols, panels int,
	f func(w *byte, stride int, l, r *float32, rank, panels int, lBound, rNorm *float32, floor, scale,
		inverse float32, undecided *uint64, unchanged *int64, squares *[4]float64, z *byte, differs *uint64)) micro[float32] {
	return micro[float32]{rows: rows, cols: cols, panels: panels, fuses: true, run: func(b *block[float32]) {
		f(&b.w[0], b.stride, &b.l[:rows*b.rank][0], &b.r[:b.panels*b.rank*cols][0], b.rank,
			b.panels,
			&b.lBound[:rows][0], &b.rNorm[:b.panels*cols][0], b.floor, b.scale, b.inverse,
			&b.undecided[:b.panels*rows][0], &b.sums.unchanged, &b.sums.squares,
			&b.z[:len(b.w)][0], &b.differs[:rows][0][0])
	}}
}
