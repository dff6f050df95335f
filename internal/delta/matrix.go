package delta

import (
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// Matrix is a factor, or a product of factors, that takes the place of a number in a form. Full,
// Product and Tucker make one.
type Matrix interface {
	size() (rows, cols int)
	// row writes row i to dst.
	row(dst []float64, i int) Bound
	element(i, j int) value
}

// full is a matrix as an adapter stores it.
type full struct {
	rows, cols int
	dtype      dtype.Type
	raw        []byte
}

// Full is a matrix of rows×cols floats in raw, row by row. It keeps raw.
func Full(rows, cols int, d dtype.Type, raw []byte) Matrix {
	if len(raw) != rows*cols*d.Size() {
		panic("delta: not a matrix")
	}
	return &full{rows, cols, d, raw}
}

func (m *full) size() (rows, cols int) { return m.rows, m.cols }

func (m *full) row(dst []float64, i int) Bound {
	line := m.cols * m.dtype.Size()
	dtype.Widen64(dst, m.dtype, m.raw[i*line:(i+1)*line])
	return Bound{Most: largest(dst)}
}

func (m *full) element(i, j int) value {
	return numberOf(dtype.Load(m.dtype, m.raw, i*m.cols+j))
}

// thin is X·Y, with X m×r and Y r×n.
type thin struct {
	rows, rank, cols int
	x, y             []float64
	most             []float64 // the largest magnitude in each row of Y, by the exact values
	error            float64   // of a row's element, in units of Σ |x|·most
	core             *core     // if Y is computed from these, else nil
}

// core is the part T and B of X·(T·B): Y[p, j·k+κ] = Σ_q T[p, q, κ]·B[q, j].
type core struct {
	t, b         []float64
	rank, inputs int
	kernel       int
}

// Product is X·Y, with X rows×rank and Y rank×cols. It keeps both.
func Product(rows, rank, cols int, x, y []float64) Matrix {
	m := newThin(rows, rank, cols, x, y)
	for p := range m.most {
		m.most[p] = largest(y[p*cols : (p+1)*cols])
	}
	return m
}

func newThin(rows, rank, cols int, x, y []float64) *thin {
	if len(x) != rows*rank || len(y) != rank*cols {
		panic("delta: not two factors")
	}
	return &thin{
		rows: rows, rank: rank, cols: cols, x: x, y: y, most: make([]float64, rank),
		error: float64(rank+2) * unit,
	}
}

// Tucker is Σ_pq X[i, p]·T[p, q, κ]·B[q, j] at row i, column j·kernel + κ, with X rows×rank, T
// rank×rank×kernel and B rank×inputs. It keeps X, T and B, and multiplies T by B once.
func Tucker(rows, rank, inputs, kernel int, x, t, b []float64) Matrix {
	if len(t) != rank*rank*kernel || len(b) != rank*inputs {
		panic("delta: not a core and its factor")
	}
	cols := inputs * kernel
	y := make([]float64, rank*cols)
	m := newThin(rows, rank, cols, x, y)
	m.core = &core{t: t, b: b, rank: rank, inputs: inputs, kernel: kernel}
	m.error += float64(rank+2) * unit
	for p := range rank {
		line := y[p*cols : (p+1)*cols]
		for q := range rank {
			from, side := b[q*inputs:(q+1)*inputs], t[(p*rank+q)*kernel:(p*rank+q+1)*kernel]
			for j, v := range from {
				for k, c := range side {
					line[j*kernel+k] += float64(c * v)
				}
			}
			m.most[p] += atMost(largest(side), largest(from))
		}
		m.most[p] *= slack
	}
	return m
}

// atMost returns x·y, but not 0 if only the product is too small for a float64.
func atMost(x, y float64) float64 {
	p := x * y
	if x > 0 && y > 0 {
		p += floor
	}
	return p
}

func (m *thin) size() (rows, cols int) { return m.rows, m.cols }

// row adds four products at a time. The conversions prevent fused multiply-adds.
func (m *thin) row(dst []float64, i int) Bound {
	clear(dst)
	x := m.x[i*m.rank : (i+1)*m.rank]
	p := 0
	for ; p+4 <= len(x); p += 4 {
		x0, x1, x2, x3 := x[p], x[p+1], x[p+2], x[p+3]
		y0, y1, y2, y3 := m.y[p*m.cols:][:len(dst)], m.y[(p+1)*m.cols:][:len(dst)],
			m.y[(p+2)*m.cols:][:len(dst)], m.y[(p+3)*m.cols:][:len(dst)]
		for j := range dst {
			dst[j] += (float64(x0*y0[j]) + float64(x1*y1[j])) +
				(float64(x2*y2[j]) + float64(x3*y3[j]))
		}
	}
	for ; p < len(x); p++ {
		c, y := x[p], m.y[p*m.cols:][:len(dst)]
		for j := range dst {
			dst[j] += float64(c * y[j])
		}
	}
	return m.bound(x)
}

// bound returns the bound of a row. Every product and sum of it rounds once, and an element of Y
// from a core has as many roundings before, all of them relative to Σ |x|·most.
func (m *thin) bound(x []float64) Bound {
	var most, left float64
	for p, c := range x {
		c = math.Abs(c)
		most += atMost(c, m.most[p])
		left += c
	}
	if most == 0 {
		return Bound{Most: most}
	}
	most *= slack
	return Bound{Most: most, Err: slack*2*m.error*most + floor*(1+left)}
}

func (m *thin) element(i, j int) (sum value) {
	for p, x := range m.x[i*m.rank : (i+1)*m.rank] {
		sum = sum.plus(numberOf(x).times(m.right(p, j)))
	}
	return sum
}

// right returns an element of Y.
func (m *thin) right(p, j int) (sum value) {
	if m.core == nil {
		return numberOf(m.y[p*m.cols+j])
	}
	c := m.core
	for q := range c.rank {
		t := c.t[(p*c.rank+q)*c.kernel+j%c.kernel]
		sum = sum.plus(numberOf(t).times(numberOf(c.b[q*c.inputs+j/c.kernel])))
	}
	return sum
}
