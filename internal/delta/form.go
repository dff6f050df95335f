package delta

import "math"

// unit is the relative error of one rounding, and floor exceeds the error of a product that
// underflows, times any number of them that fits in memory.
const (
	unit  = 0x1p-53
	floor = 0x1p-1020
)

// slack exceeds the roundings of the bounds themselves.
const slack = 1 + 0x1p-20

// product returns the bound for s·x·y, in this or another order but for s·y, computed in two
// roundings from two numbers with bounds.
func product(x, y Bound, s float64) Bound {
	a, b, s := x.Most+x.Err, y.Most+y.Err, math.Abs(s)
	if a == 0 || b == 0 || s == 0 {
		return zeroOr(x, y, s)
	}
	most := s * a * b * slack
	return Bound{
		Most: most + floor,
		Err:  slack*(s*(x.Err*b+a*y.Err)+3*unit*most) + floor*(1+s+b),
	}
}

// zeroOr returns the bound of a product with a zero: 0, or NaN where another factor is not finite.
func zeroOr(x, y Bound, s float64) Bound {
	zero := (x.Most + x.Err) * (y.Most + y.Err) * s
	return Bound{zero, zero}
}

// single is one matrix.
type single struct{ m Matrix }

func (f *single) addRow(dst, _ []float64, i int, s float64, buf *[]float64) Bound {
	line := grow(buf, len(dst))
	b := product(f.m.row(line, i), Bound{Most: 1}, s)
	if b.isZero() {
		return b
	}
	for j, x := range line {
		dst[j] += float64(s * x)
	}
	return b
}

func (f *single) element(_ float64, i, j int) value { return f.m.element(i, j) }

// hadamard is P∘Q.
type hadamard struct{ p, q Matrix }

func (f *hadamard) addRow(dst, _ []float64, i int, s float64, buf *[]float64) Bound {
	lines := grow(buf, 2*len(dst))
	p, q := lines[:len(dst)], lines[len(dst):]
	b := product(f.p.row(p, i), f.q.row(q, i), s)
	if b.isZero() {
		return b
	}
	for j, x := range p {
		dst[j] += float64(s * float64(x*q[j]))
	}
	return b
}

func (f *hadamard) element(_ float64, i, j int) value {
	return f.p.element(i, j).times(f.q.element(i, j))
}

// kronecker is P⊗Q.
type kronecker struct {
	p, q       Matrix
	i1, o2, n2 int
}

func (f *kronecker) addRow(dst, _ []float64, i int, s float64, buf *[]float64) Bound {
	lines := grow(buf, f.i1+f.n2)
	p, q := lines[:f.i1], lines[f.i1:]
	b := product(f.p.row(p, i/f.o2), f.q.row(q, i%f.o2), s)
	if b.isZero() {
		return b
	}
	for c, x := range p {
		x *= s
		to := dst[c*f.n2:][:len(q)]
		for d, y := range q {
			to[d] += float64(x * y)
		}
	}
	return b
}

func (f *kronecker) element(_ float64, i, j int) value {
	return f.p.element(i/f.o2, j/f.n2).times(f.q.element(i%f.o2, j%f.n2))
}

// scaling is v times the weight.
type scaling struct {
	v      []float64
	ofRows bool
	kernel int // columns of an input
}

func (f *scaling) addRow(dst, w []float64, i int, s float64, _ *[]float64) Bound {
	values := f.v
	if f.ofRows {
		values = f.v[i : i+1]
	}
	b := product(Bound{Most: largest(values)}, Bound{Most: largest(w)}, s)
	if b.isZero() {
		return b
	}
	if f.ofRows {
		c := s * f.v[i]
		for j, x := range w {
			dst[j] += float64(c * x)
		}
		return b
	}
	for c, x := range f.v {
		x *= s
		for j := c * f.kernel; j < (c+1)*f.kernel; j++ {
			dst[j] += float64(x * w[j])
		}
	}
	return b
}

func (f *scaling) element(w float64, i, j int) value {
	at := i
	if !f.ofRows {
		at = j / f.kernel
	}
	return numberOf(f.v[at]).times(numberOf(w))
}

// largest returns the largest magnitude, or NaN if a number is NaN.
func largest(x []float64) (most float64) {
	for _, v := range x {
		if v = math.Abs(v); !(v <= most) {
			most = v
			if v != v {
				return v
			}
		}
	}
	return most
}

// grow returns n elements of a buffer, with any values.
func grow(buf *[]float64, n int) []float64 {
	if cap(*buf) < n {
		*buf = make([]float64, n)
	}
	return (*buf)[:n]
}
