package delta

import "math"

// Thin is ΔW/s as a product B·A of thin factors. They can be those of the Delta itself: the caller
// must not change them.
type Thin struct {
	Rank int
	B    []float64 // rows×Rank
	A    []float64 // Rank×cols
	// IsExact says that B·A is ΔW/s without any error. Otherwise single elements of the factors
	// were rounded to float64.
	IsExact bool
}

// ThinRank returns the rank of the product that Thin makes, 0 if there is none: a scaling needs the
// weight.
func (d *Delta) ThinRank() int {
	switch f := d.form.(type) {
	case *single:
		return rankOf(f.m)
	case *hadamard:
		return rankOf(f.p) * rankOf(f.q)
	case *kronecker:
		return rankOf(f.p) * rankOf(f.q)
	}
	return 0
}

// Thin forms factors by an identity, or returns nil if there is none:
//
//	(a·b) ⊗ (c·d) = (a⊗c)·(b⊗d)
//	(a·b) ∘ (c·d) = (a∗c)·(b∗d)    ∗ multiplies each row of a, or each column of b, by all of the other
//
// A whole matrix is the product of itself and the identity on its shorter side. Every element of
// the factors is a product of two numbers of the adapter, or one of them, except behind a core.
func (d *Delta) Thin() *Thin {
	switch f := d.form.(type) {
	case *single:
		p := halvesOf(f.m)
		return &Thin{p.rank, p.left, p.right, p.isExact}
	case *hadamard:
		return d.pair(halvesOf(f.p), halvesOf(f.q), func(i int) (int, int) { return i, i }, func(j int) (int, int) { return j, j })
	case *kronecker:
		return d.pair(halvesOf(f.p), halvesOf(f.q),
			func(i int) (int, int) { return i / f.o2, i % f.o2 }, func(j int) (int, int) { return j / f.n2, j % f.n2 })
	}
	return nil
}

// pair multiplies every column of p's left factor by every one of q's, and every row of the right
// ones. Row i of the product takes the rows that rows says, and column j the columns that cols
// says.
func (d *Delta) pair(p, q halves, rows, cols func(int) (int, int)) *Thin {
	r := p.rank * q.rank
	t := &Thin{Rank: r, B: make([]float64, d.rows*r), A: make([]float64, r*d.cols), IsExact: p.isExact && q.isExact}
	times := func(x, y float64) float64 {
		z := x * y
		t.IsExact = t.IsExact && isExactProduct(x, y, z)
		return z
	}
	for i := range d.rows {
		k, l := rows(i)
		for a := range p.rank {
			for b := range q.rank {
				t.B[i*r+a*q.rank+b] = times(p.left[k*p.rank+a], q.left[l*q.rank+b])
			}
		}
	}
	for a := range p.rank {
		for b := range q.rank {
			line := t.A[(a*q.rank+b)*d.cols:][:d.cols]
			for j := range line {
				k, l := cols(j)
				line[j] = times(p.right[a*p.cols+k], q.right[b*q.cols+l])
			}
		}
	}
	return t
}

// isExactProduct reports whether z is x·y, without rounding or underflow.
func isExactProduct(x, y, z float64) bool {
	return math.FMA(x, y, -z) == 0 && (math.Abs(z) > 0x1p-900 || x == 0 || y == 0)
}

// halves is a matrix as a product of left, rows×rank, and right, rank×cols.
type halves struct {
	rank, cols  int
	left, right []float64
	isExact     bool
}

func rankOf(m Matrix) int {
	if t, ok := m.(*thin); ok {
		return t.rank
	}
	rows, cols := m.size()
	return min(rows, cols)
}

func halvesOf(m Matrix) halves {
	if t, ok := m.(*thin); ok {
		return halves{t.rank, t.cols, t.x, t.y, t.core == nil}
	}
	rows, cols := m.size()
	whole := make([]float64, rows*cols)
	for i := range rows {
		m.row(whole[i*cols:(i+1)*cols], i)
	}
	if rows <= cols {
		return halves{rows, cols, identity(rows), whole, true}
	}
	return halves{cols, cols, whole, identity(cols), true}
}

func identity(n int) []float64 {
	x := make([]float64, n*n)
	for i := range n {
		x[i*n+i] = 1
	}
	return x
}
