package kernel

// Products of a matrix with a thin one, for decompositions. Runs of thinRun elements are summed in
// float32, and the runs in float64, so the error does not grow with the length. Both products use
// one kernel of 8×8 sums, with plain loops at the edges.
const (
	thinRun  = 64
	thinSide = 8
)

// thin8x8 is the kernel
//
//	dst[q*8+c] = Σ_{k<n} d[k·next + q·apart] · x[k·xNext + c],   q, c = 0 … 7
//
// for n ≥ 1; next, apart and xNext count elements. Processors with wide registers replace it at the
// start of the program.
var thin8x8 = thin8x8Portable

func thin8x8Portable(dst *[64]float32, d []float32, next, apart int, x []float32, xNext, n int) {
	for q := range thinSide {
		var s0, s1, s2, s3, s4, s5, s6, s7 float32
		for k := range n {
			v := d[k*next+q*apart]
			p := x[k*xNext:][:thinSide:thinSide]
			s0 += v * p[0]
			s1 += v * p[1]
			s2 += v * p[2]
			s3 += v * p[3]
			s4 += v * p[4]
			s5 += v * p[5]
			s6 += v * p[6]
			s7 += v * p[7]
		}
		copy(dst[q*thinSide:], []float32{s0, s1, s2, s3, s4, s5, s6, s7})
	}
}

// MulThin writes D·X to dst: D is m×n, X n×b, dst m×b, all row-major and contiguous.
//
//	dst_ic = Σ_j d_ij·x_jc
func MulThin(dst, d, x []float32, m, n, b int) {
	thin(dst, d, x, m, n, b, 1, n)
}

// MulThinT writes Dᵀ·Y to dst: D has m rows of n elements, stride apart; Y is m×b, dst n×b.
//
//	dst_jc = Σ_i d_ij·y_ic
func MulThinT(dst, d, y []float32, m, n, stride, b int) {
	thin(dst, d, y, n, m, b, stride, 1)
}

// thin writes rows×b sums over length terms. Element k of row q of the matrix is d[k·next +
// q·apart].
func thin(dst, d, x []float32, rows, length, b, next, apart int) {
	full := rows / thinSide * thinSide
	if apart == 1 && next > 1 {
		thinCopied(dst, d, x, full, length, b, next)
	} else {
		thinInPlace(dst, d, x, full, length, b, next, apart)
	}
	edge := func(q, c int) {
		var sum float64
		for k0 := 0; k0 < length; k0 += thinRun {
			var s float32
			for k := k0; k < min(k0+thinRun, length); k++ {
				s += d[k*next+q*apart] * x[k*b+c]
			}
			sum += float64(s)
		}
		dst[q*b+c] = float32(sum)
	}
	for q := range rows {
		first := b / thinSide * thinSide
		if q >= full {
			first = 0
		}
		for c := first; c < b; c++ {
			edge(q, c)
		}
	}
}

// thinInPlace is thin for a multiple of thinSide rows, and columns of x.
func thinInPlace(dst, d, x []float32, rows, length, b, next, apart int) {
	var total [thinSide * thinSide]float64
	var part [thinSide * thinSide]float32
	for c := 0; c+thinSide <= b; c += thinSide {
		for q := 0; q < rows; q += thinSide {
			clear(total[:])
			for k := 0; k < length; k += thinRun {
				thin8x8(&part, d[k*next+q*apart:], next, apart, x[k*b+c:], b, min(thinRun, length-k))
				addTo(total[:], &part)
			}
			storeThin(dst[q*b+c:], total[:], b)
		}
	}
}

// Rows of a matrix in memory are mostly some power of two of bytes apart. Then the lines of many
// rows share one set of the first-level cache, which holds eight of them. A copy of a run of rows
// has one line between them.
const (
	copiedCols = 512
	copiedNext = copiedCols + 2*thinSide
)

// thinCopied is thinInPlace where apart is 1.
func thinCopied(dst, d, x []float32, rows, length, b, next int) {
	most, nBlocks := min(copiedCols, rows), b/thinSide
	copied := make([]float32, min(thinRun, length)*copiedNext)
	totals := make([]float64, most*thinSide*nBlocks)
	var part [thinSide * thinSide]float32
	for first := 0; first < rows; first += copiedCols {
		n := min(copiedCols, rows-first)
		clear(totals)
		for k := 0; k < length; k += thinRun {
			run := min(thinRun, length-k)
			for i := range run {
				copy(copied[i*copiedNext:][:n], d[(k+i)*next+first:])
			}
			for q := 0; q < n; q += thinSide {
				for c := range nBlocks {
					thin8x8(&part, copied[q:], copiedNext, 1, x[k*b+c*thinSide:], b, run)
					addTo(totals[(q*nBlocks+c*thinSide)*thinSide:], &part)
				}
			}
		}
		for q := 0; q < n; q += thinSide {
			for c := range nBlocks {
				storeThin(dst[(first+q)*b+c*thinSide:], totals[(q*nBlocks+c*thinSide)*thinSide:], b)
			}
		}
	}
}

func addTo(totals []float64, part *[thinSide * thinSide]float32) {
	totals = totals[:len(part)]
	for i, v := range part {
		totals[i] += float64(v)
	}
}

// storeThin writes 8×8 sums to rows of b numbers.
func storeThin(dst []float32, totals []float64, b int) {
	for i, v := range totals[:thinSide*thinSide] {
		dst[i/thinSide*b+i%thinSide] = float32(v)
	}
}

// ResidualSquares returns Σ_ij (d_ij − Σ_k b_ik·a_kj)², in float64 sums of float32 differences: D
// is m×n, B m×r, A r×n.
func ResidualSquares(d, b, a []float32, m, n, r int) float64 {
	var sum float64
	var part [thinSide * thinSide]float32
	fullM, fullN := m/thinSide*thinSide, n/thinSide*thinSide
	for i := 0; i < fullM; i += thinSide {
		for j := 0; j < fullN; j += thinSide {
			thin8x8(&part, b[i*r:], 1, r, a[j:], n, r)
			for q := range thinSide {
				row := d[(i+q)*n+j:][:thinSide]
				p := part[q*thinSide:][:thinSide]
				for c, v := range row {
					e := float64(v - p[c])
					sum += e * e
				}
			}
		}
	}
	for i := range m {
		first := fullN
		if i >= fullM {
			first = 0
		}
		for j := first; j < n; j++ {
			var p float32
			for k := range r {
				p += b[i*r+k] * a[k*n+j]
			}
			e := float64(d[i*n+j] - p)
			sum += e * e
		}
	}
	return sum
}
