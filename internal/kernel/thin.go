package kernel

// The products of a matrix with a thin one, for decompositions. They are portable Go; sums run in float32 over runs of
// thinRun elements and in float64 over the runs, so that the error does not grow with the length.
const thinRun = 64

// thinWidth is the number of columns of the thin matrix that one sweep handles.
const thinWidth = 8

// MulThin writes D·X to dst: D is m×n, X n×b, dst m×b, all row-major and contiguous.
//
//	dst_ic = Σ_j d_ij·x_jc
func MulThin(dst, d, x []float32, m, n, b int) {
	for c0 := 0; c0 < b; c0 += thinWidth {
		if b-c0 < thinWidth {
			mulThinTail(dst, d, x, m, n, b, c0)
			return
		}
		for i := range m {
			row := d[i*n : (i+1)*n]
			var total [thinWidth]float64
			for j0 := 0; j0 < n; j0 += thinRun {
				j1 := min(j0+thinRun, n)
				var s0, s1, s2, s3, s4, s5, s6, s7 float32
				for j := j0; j < j1; j++ {
					v := row[j]
					p := x[j*b+c0:][:thinWidth:thinWidth]
					s0 += v * p[0]
					s1 += v * p[1]
					s2 += v * p[2]
					s3 += v * p[3]
					s4 += v * p[4]
					s5 += v * p[5]
					s6 += v * p[6]
					s7 += v * p[7]
				}
				total[0] += float64(s0)
				total[1] += float64(s1)
				total[2] += float64(s2)
				total[3] += float64(s3)
				total[4] += float64(s4)
				total[5] += float64(s5)
				total[6] += float64(s6)
				total[7] += float64(s7)
			}
			for c, t := range total {
				dst[i*b+c0+c] = float32(t)
			}
		}
	}
}

func mulThinTail(dst, d, x []float32, m, n, b, c0 int) {
	for i := range m {
		row := d[i*n : (i+1)*n]
		for c := c0; c < b; c++ {
			var total float64
			for j0 := 0; j0 < n; j0 += thinRun {
				var s float32
				for j := j0; j < min(j0+thinRun, n); j++ {
					s += row[j] * x[j*b+c]
				}
				total += float64(s)
			}
			dst[i*b+c] = float32(total)
		}
	}
}

// MulThinT writes Dᵀ·Y to dst: D has m rows of n elements, stride apart; Y is m×b, dst n×b.
//
//	dst_jc = Σ_i d_ij·y_ic
func MulThinT(dst, d, y []float32, m, n, stride, b int) {
	total := make([]float64, n*b)
	part := make([]float32, n*b)
	for i0 := 0; i0 < m; i0 += thinRun {
		clear(part)
		i := i0
		end := min(i0+thinRun, m)
		for ; i+2 <= end; i += 2 {
			row0, row1 := d[i*stride:][:n], d[(i+1)*stride:][:n]
			y0, y1 := y[i*b:(i+1)*b], y[(i+1)*b:(i+2)*b]
			for j, v0 := range row0 {
				v1 := row1[j]
				p := part[j*b:][:len(y0)]
				for c := range p {
					p[c] += v0*y0[c] + v1*y1[c]
				}
			}
		}
		for ; i < end; i++ {
			row, yi := d[i*stride:][:n], y[i*b:(i+1)*b]
			for j, v := range row {
				p := part[j*b:][:len(yi)]
				for c := range p {
					p[c] += v * yi[c]
				}
			}
		}
		for k, v := range part {
			total[k] += float64(v)
		}
	}
	for k, t := range total {
		dst[k] = float32(t)
	}
}

// ResidualSquares is Σ_ij (d_ij − Σ_k b_ik·a_kj)², in float64 sums of float32 differences: D is m×n, B m×r, A r×n.
func ResidualSquares(d, b, a []float32, m, n, r int) float64 {
	var sum float64
	var acc [chunk]float32
	for j0 := 0; j0 < n; j0 += chunk {
		w := min(chunk, n-j0)
		for i := range m {
			p := acc[:w]
			clear(p)
			for k, v := range b[i*r : (i+1)*r] {
				row := a[k*n+j0:][:w]
				for j := range p {
					p[j] += v * row[j]
				}
			}
			row := d[i*n+j0:][:w]
			for j := range p {
				e := float64(row[j] - p[j])
				sum += e * e
			}
		}
	}
	return sum
}
