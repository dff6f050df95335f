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
	var total [thinSide * thinSide]float64
	for q := 0; q < full; q += thinSide {
		for c := 0; c+thinSide <= b; c += thinSide {
			clear(total[:])
			for k := 0; k < length; k += thinRun {
				addThin(total[:], thinSide, d[k*next+q*apart:], next, apart, x[k*b+c:], b,
					min(thinRun, length-k))
			}
			for i, v := range total {
				dst[(q+i/thinSide)*b+c+i%thinSide] = float32(v)
			}
		}
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

// addThin adds the sums of thin8x8 to 8×8 others, whose rows are sumsNext apart.
var addThin = addThinPortable

func addThinPortable(
	sums []float64, sumsNext int, d []float32, next, apart int, x []float32, xNext, n int,
) {
	var part [thinSide * thinSide]float32
	thin8x8(&part, d, next, apart, x, xNext, n)
	for q := range thinSide {
		row := sums[q*sumsNext:][:thinSide:thinSide]
		for c, v := range part[q*thinSide:][:thinSide] {
			row[c] += float64(v)
		}
	}
}

// ResidualSquares returns Σ_ij (d_ij − Σ_k b_ik·a_kj)², in float64 sums of float32 differences: D
// is m×n, B m×r, A r×n with rows aNext apart.
func ResidualSquares(d, b, a []float32, aNext, m, n, r int) float64 {
	var sums [lanes]float64
	fullM, fullN := m/thinSide*thinSide, n/thinSide*thinSide
	if r == 0 {
		fullM = 0
	}
	for i := 0; i < fullM; i += thinSide {
		for j := 0; j < fullN; j += thinSide {
			addResidual(&sums, d[i*n+j:], n, b[i*r:], a[j:], aNext, r)
		}
	}
	sum := total(sums)
	for i := range m {
		first := fullN
		if i >= fullM {
			first = 0
		}
		for j := first; j < n; j++ {
			var p float32
			for k := range r {
				p += b[i*r+k] * a[k*aNext+j]
			}
			e := float64(d[i*n+j] - p)
			sum += e * e
		}
	}
	return sum
}

// addResidual adds the squares of eight rows of eight elements of D − B·A. The rows of D are dNext
// apart, and those of A aNext; those of B have r elements.
var addResidual = addResidualPortable

func addResidualPortable(
	sums *[lanes]float64, d []float32, dNext int, b, a []float32, aNext, r int,
) {
	var part [thinSide * thinSide]float32
	thin8x8(&part, b, 1, r, a, aNext, r)
	for q := range thinSide {
		row := d[q*dNext:][:thinSide]
		for c, v := range part[q*thinSide:][:thinSide] {
			e := float64(row[c] - v)
			sums[c%lanes] += e * e
		}
	}
}
