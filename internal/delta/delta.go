// Package delta computes the ΔW of layers whose ΔW is no product of two thin factors, row by row:
// Hadamard products (LoHa), Kronecker products (LoKr), products with a core between them (Tucker),
// whole differences, and scalings of the weight itself (IA³).
//
// ΔW is a matrix of m rows and N columns. A convolution's weight has N = n·K of them, with K the
// elements of its kernel. No ΔW is ever formed: the factors stay as they are, and a row takes the
// time and memory of a row.
//
// Every row comes with a bound on its rounding errors, and every element can be had exactly, so a
// caller can round ΔW, or a sum with it, correctly. The order of operations is the same on every
// processor; nothing is fused.
package delta

import (
	"math/big"
)

// Delta is the ΔW of a layer. Any number of goroutines may use it.
type Delta struct {
	form
	rows, cols int
	scale      float64
	nonFinite  int
}

// form is one way to make ΔW/s of factors.
type form interface {
	// addRow adds s times row i to dst. See Delta.AddRow.
	addRow(dst, w []float64, i int, s float64, buf *[]float64) Bound
	// element returns an element, without s.
	element(w float64, i, j int) value
}

// Bound says how far the computed elements of a row can be from the exact ones.
type Bound struct {
	Most float64 // the largest magnitude that an element can have
	Err  float64 // the largest difference between an element added and the exact one
}

// isZero reports whether all elements of the row are exactly 0.
func (b Bound) isZero() bool { return b.Most == 0 && b.Err == 0 }

// Rows returns m.
func (d *Delta) Rows() int { return d.rows }

// NonFinite returns the number of NaN and infinite values in the factors, if Read or ReadWhole has
// read them; otherwise 0.
func (d *Delta) NonFinite() int { return d.nonFinite }

// Cols returns N.
func (d *Delta) Cols() int { return d.cols }

// AddRow adds row i of ΔW to the N elements of dst, in float64. w is row i of the weight, which
// only scalings read; it may be nil for all others. buf keeps memory between calls of one
// goroutine.
//
// The bound is for the elements of ΔW; each addition to dst rounds once more. It is NaN or infinite
// if factors are. A row of zeros leaves dst alone, even its negative zeros.
func (d *Delta) AddRow(dst, w []float64, i int, buf *[]float64) (most, err float64) {
	b := d.addRow(dst, w, i, d.scale, buf)
	return b.Most, b.Err
}

// AddExact adds ΔW[i, j] to sum, which must have the precision to hold it. w is W[i, j]. If a
// factor is NaN or infinite and so is the element, AddExact returns that in special, and adds
// nothing.
func (d *Delta) AddExact(sum *big.Float, w float64, i, j int) (special float64) {
	v := d.element(w, i, j).times(numberOf(d.scale))
	if v.special == 0 && v.number != nil {
		sum.Add(sum, v.number)
	}
	return v.special
}

// Sum is s·M for a matrix: a whole difference, or a product with a core.
func Sum(m Matrix, s float64) *Delta {
	rows, cols := m.size()
	return &Delta{form: &single{m}, rows: rows, cols: cols, scale: s}
}

// Hadamard is s·(P∘Q), element by element. P and Q have the same size.
func Hadamard(p, q Matrix, s float64) *Delta {
	rows, cols := p.size()
	return &Delta{form: &hadamard{p, q}, rows: rows, cols: cols, scale: s}
}

// Kronecker is s·(P⊗Q): with P o1×i1 and Q o2×n2, row a·o2 + b, column c·n2 + d is
// s·P[a, c]·Q[b, d].
func Kronecker(p, q Matrix, s float64) *Delta {
	o1, i1 := p.size()
	o2, n2 := q.size()
	return &Delta{form: &kronecker{p, q, i1, o2, n2}, rows: o1 * o2, cols: i1 * n2, scale: s}
}

// ScaledRows is s·v_i·W[i, j]: one value for every output.
func ScaledRows(v []float64, cols int, s float64) *Delta {
	return &Delta{form: &scaling{v: v, ofRows: true}, rows: len(v), cols: cols, scale: s}
}

// ScaledInputs is s·v_⌊j/kernel⌋·W[i, j]: one value for every input, which kernel columns read.
func ScaledInputs(v []float64, rows, kernel int, s float64) *Delta {
	return &Delta{form: &scaling{v: v, kernel: kernel}, rows: rows, cols: len(v) * kernel, scale: s}
}
