package kernel

import (
	"context"
	"math"
	"math/big"

	"github.com/loratool/loratool/format/dtype"
)

// Rescaled is the DoRA update (Liu et al., arXiv:2402.09353) of one matrix. With v = w + Σ_t S_t ·
// Σ_k l_ik·r_kj + Σ_t Δ_t,
//
//	out = RN_D( m_g · v / ‖v_g‖₂ )      over the reals, rounded once to nearest even
//
// where g is the element's row, or its group of neighbouring columns. Without magnitudes m, out is
// RN_D(v). A pass in float64, or in double-double for an F64 matrix, decides nearly all elements by
// a bound on its error; the rest is decided exactly. The file merge/proof.go proves the bound. Any
// number of goroutines may use a Rescaled; the result does not depend on how calls group the rows.
type Rescaled struct {
	d          dtype.Type
	rows, cols int
	Sum
	magnitude []float64    // m, per row or group of columns; nil does not rescale
	norms     *ColumnNorms // nil for magnitudes of rows
	source    dtype.Type   // of the base's values: d, or F64 after Widened
	group     int          // columns of a group, for magnitudes of columns
	quotients []quotient   // per group

	lNorm, rNorm   []float64 // ‖S·l_i‖ and ‖r_j‖, rounded up; 0 for zeros
	lTotal, rTotal float64   // their norms
	unit           float64   // error of v relative to ‖S·l_i‖·‖r_j‖ + |w|
	floor          float64   // error of v from underflow
}

// Sum is the Σ that an update adds to a matrix.
type Sum struct {
	Terms []Term[float64]
	Dense []Dense
}

// Dense is a Δ that is no product of two thin factors. Any number of goroutines may use it.
type Dense interface {
	// AddRow adds row i to dst, and returns the largest magnitude that an element of the row can
	// have, and the largest difference to the exact element. The additions to dst round once more.
	// w is row i of the matrix; buf keeps memory between the calls of one goroutine.
	AddRow(dst, w []float64, i int, buf *[]float64) (most, err float64)
	// AddExact adds element (i, j) to sum, or returns it in special if it is NaN or infinite. w is
	// the matrix's element.
	AddExact(sum *big.Float, w float64, i, j int) (special float64)
}

// RescaleScratch holds a worker's buffers. The zero value is ready to use.
type RescaleScratch struct {
	w, v, low, delta, buf []float64
	most, err             float64 // of the row's elements of Dense: magnitude and error
}

// PrepareRescaled prepares an update of a rows×cols matrix of dtype d. Without norms, magnitude has
// one element per row, or none to add without rescaling; with norms, from NewColumnNorms, one per
// group of neighbouring columns. It keeps its arguments. The only error is that of a context that
// has ended.
func PrepareRescaled(
	ctx context.Context, d dtype.Type, rows, cols int, sum Sum, magnitude []float64,
	norms *ColumnNorms,
) (*Rescaled, error) {
	u := &Rescaled{d: d, source: d, rows: rows, cols: cols, Sum: sum, magnitude: magnitude, norms: norms}
	terms := sum.Terms
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
	u.unit = 1.01 * float64(rank/4+3*len(terms)+len(sum.Dense)+6) * 0x1p-53
	if u.isWide() {
		u.unit = 1.01 * float64(16*rank+32*len(terms)+64) * 0x1p-106
	}
	u.floor = max(0x1p-1022, float64(rank+4)*(scales+u.rTotal)*0x1p-1070)
	if norms != nil {
		u.group = cols / len(magnitude)
		u.quotients = make([]quotient, len(magnitude))
		for g := range u.quotients {
			e := norms.dense * math.Sqrt(float64(u.group))
			u.quotients[g] = u.quotientOf(magnitude[g], norms.norms[g], u.lTotal*u.rNormOf(g), e, rows*u.group)
		}
	}
	return u, nil
}

// rNormOf returns the norm of the columns of R in a group.
func (u *Rescaled) rNormOf(g int) float64 {
	if u.group == 1 {
		return u.rNorm[g]
	}
	sum := 0.0
	for _, x := range u.rNorm[g*u.group : (g+1)*u.group] {
		sum += square(x)
	}
	return math.Sqrt(sum) * (1 + 0x1p-20)
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
	nRows := u.checkRows(len(w), line, row0)
	st.Elements += int64(nRows * u.cols)
	for i := range nRows {
		row := w[i*line : (i+1)*line]
		s.load(u, row)
		if err := u.mergeRow(ctx, row, row0+i, st, s); err != nil {
			return err
		}
	}
	return nil
}

// checkRows returns how many rows a length holds.
func (u *Rescaled) checkRows(length, line, row0 int) (nRows int) {
	nRows = length / line
	if length%line != 0 || row0 < 0 || row0+nRows > u.rows {
		panic("kernel: not rows of the matrix")
	}
	return nRows
}

// Widened returns the same update of a base whose values D may not hold, for MergeFrom.
func (u *Rescaled) Widened() *Rescaled {
	v := *u
	v.source = dtype.F64
	return &v
}

// MergeFrom is Merge of an update from Widened. w holds the base's values and out receives the
// results, also of elements without an update: these are RN_D(w).
func (u *Rescaled) MergeFrom(
	ctx context.Context, out []byte, w []float64, row0 int, st *Stats, s *RescaleScratch,
) error {
	line := u.cols * u.d.Size()
	if line == 0 {
		return ctx.Err()
	}
	nRows := u.checkRows(len(out), line, row0)
	st.Elements += int64(nRows * u.cols)
	for i := range nRows {
		s.grow(u.cols)
		copy(s.w, w[i*u.cols:(i+1)*u.cols])
		if err := u.mergeRow(ctx, out[i*line:(i+1)*line], row0+i, st, s); err != nil {
			return err
		}
	}
	return nil
}

// mergeRow updates the row in s.w: it computes v with its error, tries one rounding that settles
// the whole interval, then both ends of the interval, and at last exact arithmetic.
func (u *Rescaled) mergeRow(
	ctx context.Context, to []byte, i int, st *Stats, s *RescaleScratch,
) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	u.row(i, s)
	exact := exactRescale{u: u, row: i, w: s.w}
	q := &asItIs
	if u.magnitude != nil && u.norms == nil {
		dense := u.denseError(s) * math.Sqrt(float64(u.cols))
		ofRow := u.quotientOf(u.magnitude[i], u.rowNorm(s), u.lNorm[i]*u.rTotal, dense, u.cols)
		q = &ofRow
	}
	size, narrow := u.d.Size(), narrowingOf(u.d)
	next := u.group // the first column of the next group
	if u.norms != nil {
		q = &u.quotients[0]
	}
	for j, v := range s.v {
		if j == next && u.norms != nil {
			q, next = &u.quotients[j/u.group], next+u.group
		}
		before, x := s.w[j], q.factor*v
		e := 0.0
		if g := u.lNorm[i]*u.rNorm[j] + s.most; g != 0 {
			e = u.unit*(g+math.Abs(before)) + u.floor + s.err
		}
		out := to[j*size : (j+1)*size]
		if e == 0 && q == &asItIs {
			if u.source != u.d {
				dtype.Store(u.d, out, 0, before)
			}
			account(st, before, 0, dtype.Load(u.d, out, 0))
			continue
		}
		if narrow != nil {
			if after, bits, ok := narrow.round(x, q.spread*e+q.share*math.Abs(x)); ok {
				narrow.put(out, bits)
				account(st, before, x-before, after)
				continue
			}
		}
		if u.source != u.d { // the exact pass changes no element without an update
			dtype.Store(u.d, out, 0, before)
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

// denseError returns a bound on the error that Dense adds to an element of the row in s.
func (u *Rescaled) denseError(s *RescaleScratch) float64 { return 2*u.unit*s.most + s.err }

// asItIs is the quotient 1, for sums that nothing rescales.
var asItIs = quotient{m: 1, factor: 1, norm: double{1, 0}, spread: 1.01, share: 0x1p-100}

// quotient is m/‖v‖ of a row or column. The exact m·v/‖v‖ differs from factor·v by at most spread·e
// + share·|factor·v|, where e is the error of v.
type quotient struct {
	m, factor     float64
	norm          double
	spread, share float64 // NaN if unknown
}

// quotientOf divides m by the computed norm of n values. Their terms have norm g, and the errors
// that Dense adds have norm dense.
func (u *Rescaled) quotientOf(m float64, norm double, g, dense float64, n int) quotient {
	q := quotient{m: m, factor: m / norm.hi, norm: norm}
	e := 1.01 * float64(n+16) * 0x1p-103 * norm.hi
	if g != 0 || dense != 0 {
		e += 1.01*(u.unit*(2*g+norm.hi)+dense) + math.Sqrt(float64(n))*u.floor
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

// load puts a row of the matrix into s.
func (s *RescaleScratch) load(u *Rescaled, row []byte) {
	s.grow(u.cols)
	dtype.Widen64(s.w, u.source, row)
}

// grow gives every line the given length.
func (s *RescaleScratch) grow(cols int) {
	if len(s.v) == cols {
		return
	}
	for _, line := range []*[]float64{&s.w, &s.v, &s.low, &s.delta} {
		*line = make([]float64, cols)
	}
}

// row computes the row of v for that of the matrix in s.w. s.low receives the low halves for an F64
// matrix, and zeros otherwise.
func (u *Rescaled) row(i int, s *RescaleScratch) {
	s.most, s.err = 0, 0
	if u.isWide() {
		u.rowDouble(i, s)
		return
	}
	clear(s.low)
	delta := s.delta
	clear(delta)
	// The conversions prevent fused multiply-adds, so every processor leaves the same elements to
	// the exact pass.
	for t := range u.Terms {
		term := &u.Terms[t]
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
	u.addDense(i, s)
	for j := range delta {
		s.v[j] = s.w[j] + delta[j]
	}
}

// addDense adds the row of Dense to s.delta. Each addition rounds relative to all that has been
// added; the unit of the terms has this rounding for each Dense.
func (u *Rescaled) addDense(i int, s *RescaleScratch) {
	for _, d := range u.Dense {
		most, err := d.AddRow(s.delta, s.w, i, &s.buf)
		s.most += most
		s.err += err
	}
	if len(u.Dense) > 1 && u.isWide() {
		s.err += 1.01 * float64(len(u.Dense)) * 0x1p-53 * s.most
	}
}

// rowDouble is row in double-double arithmetic, with Dense in float64: nearly all elements that
// Dense changes are left to the exact pass.
func (u *Rescaled) rowDouble(i int, s *RescaleScratch) {
	clear(s.delta)
	u.addDense(i, s)
	for j := range u.cols {
		v := double{s.w[j], 0}
		for t := range u.Terms {
			term := &u.Terms[t]
			var sum double
			for k, l := range term.L[i*term.Rank : (i+1)*term.Rank] {
				p, e := twoProduct(l, term.R[k*u.cols+j])
				sum = sum.plus(double{p, e})
			}
			v = v.plus(sum.times(term.S))
		}
		if u.Dense != nil {
			v = v.plus(double{s.delta[j], 0})
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
