package kernel

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// Rescaled is the update of DoRA (Liu et al., arXiv:2402.09353) of one matrix. With v = w + Σ_t S_t · Σ_k l_ik·r_kj,
//
//	out = RN_D( m_g · v / ‖v_g‖₂ )
//
// where g is the row of the element, or its column. It is evaluated in float64, for an F64 matrix in double-double, and rounded
// once: at most 1 ulp from RN of the exact value, and equal to it but for a few elements in a million. It can be used by any
// number of goroutines at a time; the result does not depend on how rows are grouped into calls.
type Rescaled struct {
	d          dtype.Type
	rows, cols int
	terms      []Term[float64]
	magnitude  []float64   // m, one per row or column
	norms      ColumnNorms // where magnitudes belong to columns
}

// RescaleScratch is the memory of one worker. The zero value is ready.
type RescaleScratch struct{ w, v, low, delta, out []float64 }

// PrepareRescaled makes an update of a rows×cols matrix of dtype d. A magnitude of as many elements as there are rows, with no
// norms, belongs to the rows; with norms, from ColumnNorms, to the columns. It keeps its arguments.
func PrepareRescaled(d dtype.Type, rows, cols int, terms []Term[float64], magnitude []float64, norms ColumnNorms) *Rescaled {
	for i := range terms {
		if t := &terms[i]; len(t.L) != rows*t.Rank || len(t.R) != t.Rank*cols {
			panic(fmt.Sprintf("kernel: a term of rank %d of a %d×%d matrix has factors of %d and %d elements", t.Rank, rows, cols, len(t.L), len(t.R)))
		}
	}
	return &Rescaled{d: d, rows: rows, cols: cols, terms: terms, magnitude: magnitude, norms: norms}
}

// ColumnNorms are ‖v_j‖₂ of every column.
type ColumnNorms []double

// ColumnSquares are Σ v² over some rows, for every column.
type ColumnSquares []double

// AddSquares adds Σ v² over rows of w, the first of which is row row0, to the sum of each column.
func (u *Rescaled) AddSquares(sums ColumnSquares, w []byte, row0 int, s *RescaleScratch) {
	line := u.cols * u.d.Size()
	for i := range len(w) / line {
		u.row(w[i*line:(i+1)*line], row0+i, s)
		for j, v := range s.v {
			sums[j] = sums[j].plusSquare(v, s.low[j])
		}
	}
}

// Norms adds up the sums of all rows, in their order, and returns the norms.
func Norms(parts []ColumnSquares) ColumnNorms {
	norms := make(ColumnNorms, len(parts[0]))
	for j := range norms {
		for _, p := range parts {
			norms[j] = norms[j].plus(p[j])
		}
		norms[j] = norms[j].sqrt()
	}
	return norms
}

// Merge updates whole rows of the matrix in place, the first of which is row row0.
func (u *Rescaled) Merge(w []byte, row0 int, st *Stats, s *RescaleScratch) {
	line := u.cols * u.d.Size()
	if line == 0 {
		return
	}
	nRows := len(w) / line
	if len(w)%line != 0 || row0 < 0 || row0+nRows > u.rows {
		panic("kernel: not rows of the matrix")
	}
	st.Elements += int64(len(w) / u.d.Size())
	for i := range nRows {
		w := w[i*line : (i+1)*line]
		u.row(w, row0+i, s)
		var norm double
		if u.norms == nil {
			for j, v := range s.v {
				norm = norm.plusSquare(v, s.low[j])
			}
			norm = norm.sqrt()
		}
		for j, v := range s.v {
			m, n := 0.0, norm
			if u.norms == nil {
				m = u.magnitude[row0+i]
			} else {
				m, n = u.magnitude[j], u.norms[j]
			}
			out := m / n.hi * v
			if u.d == dtype.F64 {
				out = rescaleDouble(m, double{v, s.low[j]}, n, out)
			}
			s.out[j] = out
			dtype.Store(u.d, w, j, out)
		}
		stored := s.delta
		dtype.Widen64(stored, u.d, w)
		for j, before := range s.w {
			account(st, before, s.out[j]-before, stored[j])
		}
	}
}

// row computes a row of v, and in s.low what it lacks in float64 if the matrix is F64, else zeros.
func (u *Rescaled) row(w []byte, i int, s *RescaleScratch) {
	if len(s.v) != u.cols {
		for _, line := range []*[]float64{&s.w, &s.v, &s.low, &s.delta, &s.out} {
			*line = make([]float64, u.cols)
		}
	}
	dtype.Widen64(s.w, u.d, w)
	if u.d == dtype.F64 {
		u.rowDouble(i, s)
		return
	}
	clear(s.low)
	delta := s.delta
	clear(delta)
	// The conversions keep products from being fused with sums, so that every processor gives the same bytes.
	for t := range u.terms {
		term := &u.terms[t]
		l := term.L[i*term.Rank : (i+1)*term.Rank]
		k := 0
		for ; k+4 <= len(l); k += 4 {
			c0, c1, c2, c3 := term.S*l[k], term.S*l[k+1], term.S*l[k+2], term.S*l[k+3]
			r0, r1, r2, r3 := term.R[k*u.cols:][:len(delta)], term.R[(k+1)*u.cols:][:len(delta)], term.R[(k+2)*u.cols:][:len(delta)], term.R[(k+3)*u.cols:][:len(delta)]
			for j := range delta {
				delta[j] += (float64(c0*r0[j]) + float64(c1*r1[j])) + (float64(c2*r2[j]) + float64(c3*r3[j]))
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

// rescaleDouble is m·v/n; where that is not finite it is plain, the value in float64.
func rescaleDouble(m float64, v, n double, plain float64) float64 {
	p := v.times(m)
	q := p.hi / n.hi
	rest := p.plus(n.times(-q))
	if out := q + rest.hi/n.hi; isFinite(out) {
		return out
	}
	return plain
}

// double is the unevaluated sum of two float64, of which the first is the sum rounded (Dekker, 1971).
type double struct{ hi, lo float64 }

func (a double) plus(b double) double {
	s, e := twoSum(a.hi, b.hi)
	if !isFinite(s) {
		return double{s, 0}
	}
	return normalised(s, e+(a.lo+b.lo))
}

func (a double) times(x float64) double {
	p, e := twoProduct(a.hi, x)
	if !isFinite(p) {
		return double{p, 0}
	}
	return normalised(p, e+a.lo*x)
}

// plusSquare adds (hi + lo)², without the square of lo.
func (a double) plusSquare(hi, lo float64) double {
	p, e := twoProduct(hi, hi)
	return a.plus(double{p, e + 2*hi*lo})
}

func (a double) sqrt() double {
	r := math.Sqrt(a.hi)
	if !isFinite(r) || r == 0 {
		return double{r, 0}
	}
	p, e := twoProduct(r, r)
	return normalised(r, ((a.hi-p)-e+a.lo)/(2*r))
}

// normalised is s + e, |e| at most about an ulp of s.
func normalised(s, e float64) double {
	hi := s + e
	return double{hi, e - (hi - s)}
}
