package kernel

import (
	"context"
	"math/big"
	"sync"

	"github.com/loratool/loratool/format/dtype"
)

// ColumnSquares holds Σ v² over some rows, per column.
type ColumnSquares []double

// AddSquares adds Σ v² over the rows of w, beginning with row row0, to each column's sum. The only
// error is that of a context that has ended.
func (u *Rescaled) AddSquares(
	ctx context.Context, sums ColumnSquares, w []byte, row0 int, s *RescaleScratch,
) error {
	line := u.cols * u.d.Size()
	for i := range len(w) / line {
		if err := ctx.Err(); err != nil {
			return err
		}
		u.row(w[i*line:(i+1)*line], row0+i, s)
		for j, v := range s.v {
			sums[j] = sums[j].plusSquare(v, s.low[j])
		}
	}
	return nil
}

// ColumnReader passes the base's values of column j to yield, in the order of the rows.
type ColumnReader func(j int, yield func(row int, w float64)) error

// ColumnNorms holds ‖v_j‖₂ of every column in double-double, and exactly for columns with an
// element that double-double cannot decide. Any number of goroutines may use it.
type ColumnNorms struct {
	norms []double
	read  ColumnReader
	lock  sync.Mutex
	exact map[int]*big.Float // Σ v², or nil if it is not finite
}

// NewColumnNorms adds up the sums over all rows. It rereads the few columns that need an exact
// norm.
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

// squares returns the exact Σ v² of column j, or nil if a value is not finite.
func (n *ColumnNorms) squares(ctx context.Context, u *Rescaled, j int) (*big.Float, error) {
	n.lock.Lock()
	defer n.lock.Unlock()
	if sum, known := n.exact[j]; known {
		return sum, nil
	}
	sum := newExact()
	err := n.read(j, func(row int, w float64) {
		if sum != nil && (ctx.Err() != nil || !addSquare(sum, u.exactValue(row, j, w))) {
			sum = nil
		}
	})
	if err == nil {
		err = ctx.Err()
	}
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
	sum   *big.Float // Σ v² of the row, for magnitudes of rows
}

// decide stores element j, or the float64 value plain if the exact value is not finite.
func (x *exactRescale) decide(ctx context.Context, out []byte, j int, plain float64) error {
	v := x.u.exactValue(x.row, j, x.w[j])
	var squares *big.Float
	var m float64
	if norms := x.u.norms; norms == nil {
		squares, m = x.squares(ctx), x.u.magnitude[x.row]
	} else {
		var err error
		if squares, err = norms.squares(ctx, x.u, j); err != nil {
			return err
		}
		m = x.u.magnitude[j]
	}
	if err := ctx.Err(); err != nil {
		return err // the sum may be incomplete
	}
	if v == nil || squares == nil || squares.Sign() == 0 {
		dtype.Store(x.u.d, out, 0, plain)
		return nil
	}
	storeQuotient(x.u.d, out, newExact().Mul(v, newExact().SetFloat64(m)), squares)
	return nil
}

// squares returns Σ v² of the row, computed once; nil if a value is not finite.
func (x *exactRescale) squares(ctx context.Context) *big.Float {
	if x.known {
		return x.sum
	}
	x.known, x.sum = true, newExact()
	for j, w := range x.w {
		if ctx.Err() != nil || !addSquare(x.sum, x.u.exactValue(x.row, j, w)) {
			x.sum = nil
			break
		}
	}
	return x.sum
}

// exactValue returns v, or nil if it is not finite.
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

// addSquare adds v² to a sum. It returns false for a nil v.
func addSquare(sum, v *big.Float) bool {
	if v == nil {
		return false
	}
	sum.Add(sum, newExact().Mul(v, v))
	return true
}

// storeQuotient stores RN_D(p/√squares). The quotient to 256 bits decides, unless it is too near to
// a number at which the rounding changes. Such a number has at most 54 bits, so it is the quotient
// rounded to 64 bits, and the comparison of squares tells on which side the quotient lies.
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
	switch left.Cmp(newExact().Mul(p, p)) { // compares magnitudes
	case -1:
		moved.Add(moved, step)
	case 1:
		moved.Sub(moved, step)
	}
	storeExact(d, out, moved)
}
