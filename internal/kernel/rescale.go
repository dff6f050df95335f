package kernel

import (
	"context"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// Rescaled is the DoRA update (Liu et al., arXiv:2402.09353) of one matrix. With v = w + Σ_t S_t ·
// Σ_k l_ik·r_kj,
//
//	out = RN_D( m_g · v / ‖v_g‖₂ )      over the reals, rounded once to nearest even
//
// where g is the element's row or column. A pass in float64, or in double-double for an F64 matrix,
// decides nearly all elements by a bound on its error; the rest is decided exactly. The file
// merge/proof.go proves the bound. Any number of goroutines may use a Rescaled; the result does not
// depend on how calls group the rows.
type Rescaled struct {
	d          dtype.Type
	rows, cols int
	terms      []Term[float64]
	magnitude  []float64    // m, per row or column
	norms      *ColumnNorms // nil for magnitudes of rows
	quotients  []quotient   // per column, for magnitudes of columns

	lNorm, rNorm   []float64 // ‖S·l_i‖ and ‖r_j‖, rounded up; 0 for zeros
	lTotal, rTotal float64   // their norms
	unit           float64   // error of v relative to ‖S·l_i‖·‖r_j‖ + |w|
	floor          float64   // error of v from underflow
}

// RescaleScratch holds a worker's buffers. The zero value is ready to use.
type RescaleScratch struct{ w, v, low, delta []float64 }

// PrepareRescaled prepares an update of a rows×cols matrix of dtype d. Without norms, magnitude has
// one element per row; with norms, from NewColumnNorms, one per column. It keeps its arguments. The
// only error is that of a context that has ended.
func PrepareRescaled(
	ctx context.Context, d dtype.Type, rows, cols int, terms []Term[float64], magnitude []float64,
	norms *ColumnNorms,
) (*Rescaled, error) {
	u := &Rescaled{d: d, rows: rows, cols: cols, terms: terms, magnitude: magnitude, norms: norms}
	u.lNorm, u.rNorm = make([]float64, rows), make([]float64, cols)
	rank, scales := 0, 1.0
	for i := range terms {
		t := &terms[i]
		if len(t.L) != rows*t.Rank || len(t.R) != t.Rank*cols {
			t.panicSize(rows, cols)
		}
		for k, x := range t.L {
			if k%askElements == 0 && ctx.Err() != nil {
				return nil, ctx.Err()
			}
			u.lNorm[k/t.Rank] += square(t.S * x)
		}
		for k := range t.Rank {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			for j, x := range t.R[k*cols : (k+1)*cols] {
				u.rNorm[j] += square(x)
			}
		}
		rank += t.Rank
		scales += math.Abs(t.S)
	}
	u.lTotal, u.rTotal = rootsAbove(u.lNorm), rootsAbove(u.rNorm)
	u.unit = 1.01 * float64(rank/4+3*len(terms)+6) * 0x1p-53
	if u.isWide() {
		u.unit = 1.01 * float64(16*rank+32*len(terms)+64) * 0x1p-106
	}
	u.floor = max(0x1p-1022, float64(rank+4)*(scales+u.rTotal)*0x1p-1070)
	if norms != nil {
		u.quotients = make([]quotient, cols)
		for j := range u.quotients {
			u.quotients[j] = u.quotientOf(magnitude[j], norms.norms[j], u.lTotal*u.rNorm[j], rows)
		}
	}
	return u, nil
}

// isWide reports whether v is computed in double-double.
func (u *Rescaled) isWide() bool { return u.d == dtype.F64 }

// square returns x² for a bound, rounded up to a positive number if x² underflows.
func square(x float64) float64 {
	if x == 0 {
		return 0
	}
	return max(x*x, 0x1p-1022)
}

// rootsAbove replaces sums of squares by their roots, rounded up, and returns the norm of the
// roots.
func rootsAbove(sums []float64) float64 {
	total := 0.0
	for i, sum := range sums {
		total += sum
		sums[i] = math.Sqrt(sum) * (1 + 0x1p-20)
	}
	return math.Sqrt(total) * (1 + 0x1p-20)
}

// Merge updates whole rows of the matrix in place, beginning with row row0. Only the column reader
// can fail, and a context that ends; then w may be half updated.
func (u *Rescaled) Merge(
	ctx context.Context, w []byte, row0 int, st *Stats, s *RescaleScratch,
) error {
	line := u.cols * u.d.Size()
	if line == 0 {
		return ctx.Err()
	}
	nRows := len(w) / line
	if len(w)%line != 0 || row0 < 0 || row0+nRows > u.rows {
		panic("kernel: not rows of the matrix")
	}
	st.Elements += int64(len(w) / u.d.Size())
	for i := range nRows {
		if err := u.mergeRow(ctx, w[i*line:(i+1)*line], row0+i, st, s); err != nil {
			return err
		}
	}
	return nil
}

// mergeRow rescales one row: it computes v with its error, tries one rounding that settles the
// whole interval, then both ends of the interval, and at last exact arithmetic.
func (u *Rescaled) mergeRow(
	ctx context.Context, w []byte, i int, st *Stats, s *RescaleScratch,
) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	u.row(w, i, s)
	exact := exactRescale{u: u, row: i, w: s.w}
	var q *quotient
	if u.norms == nil {
		ofRow := u.quotientOf(u.magnitude[i], u.rowNorm(s), u.lNorm[i]*u.rTotal, u.cols)
		q = &ofRow
	}
	size, narrow := u.d.Size(), narrowingOf(u.d)
	for j, v := range s.v {
		if u.norms != nil {
			q = &u.quotients[j]
		}
		before, x := s.w[j], q.factor*v
		e := 0.0
		if g := u.lNorm[i] * u.rNorm[j]; g != 0 {
			e = u.unit*(g+math.Abs(before)) + u.floor
		}
		out := w[j*size : (j+1)*size]
		if narrow != nil {
			if after, bits, ok := narrow.round(x, q.spread*e+q.share*math.Abs(x)); ok {
				narrow.put(out, bits)
				account(st, before, x-before, after)
				continue
			}
		}
		if !u.decide(out, q, double{v, s.low[j]}, e) {
			st.Slow++
			st.Exact++
			if err := exact.decide(ctx, out, j); err != nil {
				return err
			}
			x = dtype.Load(u.d, out, 0)
		}
		account(st, before, x-before, dtype.Load(u.d, out, 0))
	}
	return nil
}

// quotient is m/‖v‖ of a row or column. The exact m·v/‖v‖ differs from factor·v by at most spread·e
// + share·|factor·v|, where e is the error of v.
type quotient struct {
	m, factor     float64
	norm          double
	spread, share float64 // NaN if unknown
}

// quotientOf divides m by the computed norm of n values whose update has norm g.
func (u *Rescaled) quotientOf(m float64, norm double, g float64, n int) quotient {
	q := quotient{m: m, factor: m / norm.hi, norm: norm}
	e := 1.01 * float64(n+16) * 0x1p-103 * norm.hi
	if g != 0 {
		e += 1.01*u.unit*(2*g+norm.hi) + math.Sqrt(float64(n))*u.floor
	}
	f := math.Abs(q.factor)
	// Outside these ranges squares or quotients may have vanished or overflowed.
	isSafe := norm.hi > 0x1p-400 && norm.hi < 0x1p400 && (f > 0x1p-400 && f < 0x1p400 || m == 0)
	if !isSafe || e > norm.hi/4 {
		q.spread = math.NaN()
		if norm.hi == 0 && e == 0 {
			q.spread = 0
		}
		return q
	}
	rho := 1.01 * e / (norm.hi - e)
	q.spread, q.share = 1.01*f*(1+rho), rho+0x1p-50
	if u.isWide() {
		q.share = rho + 0x1p-100
	}
	return q
}

// decide stores m·v/‖v‖ if every value within its error rounds to the same number. It leaves NaN
// and infinity to exact arithmetic: v and the norm can have left the range of float64 on the way. A
// group of zeros gives NaN.
func (u *Rescaled) decide(out []byte, q *quotient, v double, e float64) bool {
	x := q.factor * v.hi
	isKnown := q.spread == q.spread
	isZero := q.m == 0 || q.norm.hi == 0 || v.hi == 0 && e == 0
	if !isFinite(v.hi) || !isFinite(q.norm.hi) || !isFinite(q.m) {
		return false
	}
	if isKnown && isZero {
		dtype.Store(u.d, out, 0, x)
		return true
	}
	if !isKnown {
		return false
	}
	low := 0.0
	if u.isWide() {
		x, low = q.divide(v)
	}
	e = q.spread*e + q.share*math.Abs(x)
	if !(math.Abs(x)+e <= math.MaxFloat64) {
		return false
	}
	if u.isWide() && math.Abs(x) < 0x1p-900 {
		return false // the second half may have vanished
	}
	return storeBetween(u.d, out, x+(low-e), x+(low+e))
}

// divide returns m·v/‖v‖ in double-double.
func (q *quotient) divide(v double) (hi, lo float64) {
	p := v.times(q.m)
	hi = p.hi / q.norm.hi
	rest := p.plus(q.norm.times(-hi))
	return hi, rest.hi / q.norm.hi
}

// row computes a row of v. s.low receives the low halves for an F64 matrix, and zeros otherwise.
func (u *Rescaled) row(w []byte, i int, s *RescaleScratch) {
	if len(s.v) != u.cols {
		for _, line := range []*[]float64{&s.w, &s.v, &s.low, &s.delta} {
			*line = make([]float64, u.cols)
		}
	}
	dtype.Widen64(s.w, u.d, w)
	if u.isWide() {
		u.rowDouble(i, s)
		return
	}
	clear(s.low)
	delta := s.delta
	clear(delta)
	// The conversions prevent fused multiply-adds, so every processor leaves the same elements to
	// the exact pass.
	for t := range u.terms {
		term := &u.terms[t]
		l := term.L[i*term.Rank : (i+1)*term.Rank]
		k := 0
		for ; k+4 <= len(l); k += 4 {
			c0, c1, c2, c3 := term.S*l[k], term.S*l[k+1], term.S*l[k+2], term.S*l[k+3]
			r0, r1, r2, r3 := term.R[k*u.cols:][:len(delta)], term.R[(k+1)*u.cols:][:len(delta)],
				term.R[(k+2)*u.cols:][:len(delta)], term.R[(k+3)*u.cols:][:len(delta)]
			for j := range delta {
				delta[j] += (float64(c0*r0[j]) + float64(c1*r1[j])) +
					(float64(c2*r2[j]) + float64(c3*r3[j]))
			}
		}
		for ; k < len(l); k++ {
			c, r := term.S*l[k], term.R[k*u.cols:][:len(delta)]
			for j := range delta {
				delta[j] += float64(c * r[j])
			}
		}
	}
	for j := range delta {
		s.v[j] = s.w[j] + delta[j]
	}
}

// rowDouble is row in double-double arithmetic.
func (u *Rescaled) rowDouble(i int, s *RescaleScratch) {
	for j := range u.cols {
		v := double{s.w[j], 0}
		for t := range u.terms {
			term := &u.terms[t]
			var sum double
			for k, l := range term.L[i*term.Rank : (i+1)*term.Rank] {
				p, e := twoProduct(l, term.R[k*u.cols+j])
				sum = sum.plus(double{p, e})
			}
			v = v.plus(sum.times(term.S))
		}
		s.v[j], s.low[j] = v.hi, v.lo
	}
}

// rowNorm returns ‖v‖₂ of the row in s.
func (u *Rescaled) rowNorm(s *RescaleScratch) double {
	var sum double
	for j, v := range s.v {
		sum = sum.plusSquare(v, s.low[j])
	}
	return sum.sqrt()
}
