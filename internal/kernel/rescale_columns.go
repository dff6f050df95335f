package kernel

import (
	"math/big"
	"sync"

	"github.com/loratool/loratool/format/dtype"
)

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

// ColumnReader passes the base's values of column j to yield, in the order of the rows.
type ColumnReader func(j int, yield func(row int, w float64)) error

// ColumnNorms are ‖v_j‖₂ of every column: in double-double, and exactly where an element of the
// column cannot be decided with these. It can be used by any number of goroutines at a time.
type ColumnNorms struct {
	norms []double
	read  ColumnReader
	lock  sync.Mutex
	exact map[int]*big.Float // Σ v², or nil where it is not finite
}

// NewColumnNorms adds up the sums over all rows. It reads a column again, and keeps the exact norm,
// only for the few columns that need it.
func NewColumnNorms(parts []ColumnSquares, read ColumnReader) *ColumnNorms {
	n := &ColumnNorms{norms: make([]double, len(parts[0])), read: read,
		exact: make(map[int]*big.Float)}
	for j := range n.norms {
		var sum double
		for _, p := range parts {
			sum = sum.plus(p[j])
		}
		n.norms[j] = sum.sqrt()
	}
	return n
}

// squares is Σ v² of column j of u, exactly; nil where a value is not finite.
func (n *ColumnNorms) squares(u *Rescaled, j int) (*big.Float, error) {
	n.lock.Lock()
	defer n.lock.Unlock()
	if sum, known := n.exact[j]; known {
		return sum, nil
	}
	sum := newExact()
	err := n.read(j, func(row int, w float64) {
		if sum != nil && !addSquare(sum, u.exactValue(row, j, w)) {
			sum = nil
		}
	})
	if err != nil {
		return nil, err
	}
	n.exact[j] = sum
	return sum, nil
}

// exactRescale decides elements of one row exactly.
type exactRescale struct {
	u     *Rescaled
	row   int
	w     []float64
	known bool
	sum   *big.Float // Σ v² of the row, where magnitudes belong to rows
}

// decide stores element j, and the value in float64 where the exact one is not finite.
func (x *exactRescale) decide(out []byte, j int, plain float64) error {
	v := x.u.exactValue(x.row, j, x.w[j])
	var squares *big.Float
	var m float64
	if norms := x.u.norms; norms == nil {
		squares, m = x.squares(), x.u.magnitude[x.row]
	} else {
		var err error
		if squares, err = norms.squares(x.u, j); err != nil {
			return err
		}
		m = x.u.magnitude[j]
	}
	if v == nil || squares == nil || squares.Sign() == 0 {
		dtype.Store(x.u.d, out, 0, plain)
		return nil
	}
	storeQuotient(x.u.d, out, newExact().Mul(v, newExact().SetFloat64(m)), squares)
	return nil
}

// squares is Σ v² of the row, computed once; nil where a value is not finite.
func (x *exactRescale) squares() *big.Float {
	if x.known {
		return x.sum
	}
	x.known, x.sum = true, newExact()
	for j, w := range x.w {
		if !addSquare(x.sum, x.u.exactValue(x.row, j, w)) {
			x.sum = nil
			break
		}
	}
	return x.sum
}

// exactValue is v, or nil where it is not finite.
func (u *Rescaled) exactValue(i, j int, w float64) *big.Float {
	if !isFinite(w) {
		return nil
	}
	sum := newExact().SetFloat64(w)
	for t := range u.terms {
		term := &u.terms[t]
		if addExact(sum, term, i, term.R[j:], u.cols) != 0 {
			return nil
		}
	}
	return sum
}

// addSquare adds v² to a sum, and reports whether there is a v.
func addSquare(sum, v *big.Float) bool {
	if v == nil {
		return false
	}
	sum.Add(sum, newExact().Mul(v, v))
	return true
}

// storeQuotient stores RN_D(p/√squares). The quotient to 256 bits decides, unless a number at which
// the rounding changes is as near as that. Such a number has at most 54 bits, so that the quotient
// rounded to 64 is it, and its square tells on which side the quotient lies.
func storeQuotient(d dtype.Type, out []byte, p, squares *big.Float) {
	const bits, slack = 256, 240
	root := new(big.Float).SetPrec(bits).Sqrt(squares)
	t := new(big.Float).SetPrec(bits).Quo(p, root)
	edge := new(big.Float).SetPrec(64).Set(t)
	if apart := new(big.Float).SetPrec(bits).Sub(t, edge); apart.Sign() != 0 &&
		apart.MantExp(nil) > t.MantExp(nil)-slack {
		storeExact(d, out, t)
		return
	}
	left := newExact().Mul(edge, edge)
	left.Mul(left, squares)
	step := new(big.Float).SetPrec(bits).SetMantExp(edge, -slack+40)
	moved := new(big.Float).SetPrec(bits).Set(edge)
	switch left.Cmp(newExact().Mul(p, p)) { // of the magnitudes
	case -1:
		moved.Add(moved, step)
	case 1:
		moved.Sub(moved, step)
	}
	storeExact(d, out, moved)
}
