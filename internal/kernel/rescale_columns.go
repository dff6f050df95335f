package kernel

import (
	"context"
	"math"
	"math/big"
	"sync"

	"github.com/loratool/loratool/format/dtype"
)

// ColumnSquares holds Σ v² over some rows, per group of neighbouring columns.
type ColumnSquares struct {
	sums  []double
	dense float64 // Σ of the squares of the errors that Dense adds to a row
}

// NewColumnSquares returns the sums of no rows.
func NewColumnSquares(groups int) *ColumnSquares {
	return &ColumnSquares{sums: make([]double, groups)}
}

// AddSquares adds Σ v² over the rows of w, beginning with row row0, to each group's sum. The only
// error is that of a context that has ended.
func (u *Rescaled) AddSquares(
	ctx context.Context, to *ColumnSquares, w []byte, row0 int, s *RescaleScratch,
) error {
	line, group := u.cols*u.source.Size(), u.cols/len(to.sums)
	for i := range len(w) / line {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.load(u, w[i*line:(i+1)*line])
		u.row(row0+i, s)
		to.dense += square(u.denseError(s))
		if group == 1 {
			for j, v := range s.v {
				to.sums[j] = to.sums[j].plusSquare(v, s.low[j])
			}
			continue
		}
		for j, v := range s.v {
			g := j / group
			to.sums[g] = to.sums[g].plusSquare(v, s.low[j])
		}
	}
	return nil
}

// ColumnReader passes the base's values of n columns, from column j on, to yield.
type ColumnReader func(j, n int, yield func(row, j int, w float64)) error

// ColumnNorms holds ‖v_g‖₂ of every group of columns in double-double, and exactly for groups with
// an element that double-double cannot decide. Any number of goroutines may use it.
type ColumnNorms struct {
	norms []double
	dense float64 // norm of the errors that Dense adds to a column
	read  ColumnReader
	lock  sync.Mutex
	exact map[int]*exactGroup
}

// NewColumnNorms adds up the sums over all rows. It rereads the few columns that need an exact
// norm.
func NewColumnNorms(parts []*ColumnSquares, read ColumnReader) *ColumnNorms {
	n := &ColumnNorms{norms: make([]double, len(parts[0].sums)), read: read,
		exact: make(map[int]*exactGroup)}
	for j := range n.norms {
		var sum double
		for _, p := range parts {
			sum = sum.plus(p.sums[j])
		}
		n.norms[j] = sum.sqrt()
	}
	for _, p := range parts {
		n.dense += p.dense
	}
	n.dense = math.Sqrt(n.dense) * (1 + 0x1p-20)
	return n
}

// group returns the exact sum of group g.
func (n *ColumnNorms) group(ctx context.Context, u *Rescaled, g int) (*exactGroup, error) {
	n.lock.Lock()
	defer n.lock.Unlock()
	if all, known := n.exact[g]; known {
		return all, nil
	}
	all, ended := newExactGroup(), false
	err := n.read(g*u.group, u.group, func(row, j int, w float64) {
		if ended = ended || ctx.Err() != nil; !ended {
			all.add(u.exactValue(row, j, w))
		}
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	n.exact[g] = all
	return all, nil
}

// exactGroup is Σ v² of a row or column. odd is the NaN or infinity among the values, else 0; NaN
// goes before infinity.
type exactGroup struct {
	sum *big.Float
	odd float64
}

func newExactGroup() *exactGroup { return &exactGroup{sum: newExact()} }

func (g *exactGroup) add(v *big.Float, odd float64) {
	if odd != 0 { // also NaN
		g.odd += math.Abs(odd)
		return
	}
	g.sum.Add(g.sum, newExact().Mul(v, v))
}

// exactRescale decides elements of one row exactly.
type exactRescale struct {
	u   *Rescaled
	row int
	w   []float64
	all *exactGroup // of the row, for magnitudes of rows; nil until it is needed
}

// decide stores element j.
func (x *exactRescale) decide(ctx context.Context, out []byte, j int) (err error) {
	if x.u.magnitude == nil {
		x.decideSum(out, j)
		return ctx.Err()
	}
	g, m := x.all, x.u.magnitude
	at := x.row
	if norms := x.u.norms; norms != nil {
		at = j / x.u.group
		g, err = norms.group(ctx, x.u, at)
	} else if g == nil {
		g = x.ofRow(ctx)
	}
	if err == nil {
		err = ctx.Err() // the sum may be incomplete
	}
	if err != nil {
		return err
	}
	x.all = g
	v, odd := x.u.exactValue(x.row, j, x.w[j])
	if special, is := g.special(m[at], v, odd); is {
		dtype.Store(x.u.d, out, 0, special)
		return nil
	}
	storeQuotient(x.u.d, out, newExact().Mul(v, newExact().SetFloat64(m[at])), g.sum)
	return nil
}

// decideSum stores element j of a sum that nothing rescales, as Update.decideExact does.
func (x *exactRescale) decideSum(out []byte, j int) {
	w := x.w[j]
	if w != w {
		return // a NaN stays as it is
	}
	delta := newExact()
	special := x.u.addDelta(delta, x.row, j, w)
	switch {
	case special != 0: // also NaN
		dtype.Store(x.u.d, out, 0, w+special)
	case math.IsInf(w, 0) || delta.Sign() == 0:
	case delta.Add(delta, big.NewFloat(w)).Sign() == 0:
		dtype.Store(x.u.d, out, 0, 0)
	default:
		storeExact(x.u.d, out, delta)
	}
}

// special returns m·v/‖v‖ where it is zero, NaN or infinite, whatever the sizes: by section 6.5 of
// spec/APPLY.md. odd is the value of v if that is NaN or infinite.
func (g *exactGroup) special(m float64, v *big.Float, odd float64) (x float64, is bool) {
	sign := math.Copysign(1, m)
	if odd == 0 && v.Sign() < 0 {
		sign = -sign
	}
	isZero := odd == 0 && v.Sign() == 0
	isNone := g.odd == 0 && g.sum.Sign() == 0 // a norm of zero
	switch {
	case m != m || g.odd != g.odd || odd != 0 || isNone:
		return math.NaN(), true
	case math.IsInf(m, 0):
		if isZero || g.odd != 0 {
			return math.NaN(), true
		}
		return math.Inf(int(sign)), true
	case g.odd != 0 || isZero || m == 0:
		return math.Copysign(0, sign), true
	}
	return 0, false
}

// ofRow adds up the row.
func (x *exactRescale) ofRow(ctx context.Context) *exactGroup {
	g := newExactGroup()
	for j, w := range x.w {
		if ctx.Err() != nil {
			break
		}
		g.add(x.u.exactValue(x.row, j, w))
	}
	return g
}

// exactValue returns v, or in odd its NaN or infinity.
func (u *Rescaled) exactValue(i, j int, w float64) (v *big.Float, odd float64) {
	sum := newExact()
	if isFinite(w) {
		sum.SetFloat64(w)
	} else {
		odd = w
	}
	return sum, odd + u.addDelta(sum, i, j, w)
}

// addDelta adds Δ to a sum, and returns the sum of its NaN and infinite parts.
func (u *Rescaled) addDelta(sum *big.Float, i, j int, w float64) (special float64) {
	for t := range u.Terms {
		term := &u.Terms[t]
		special += addExact(sum, term, i, term.R[j:], u.cols)
	}
	for _, d := range u.Dense {
		special += d.AddExact(sum, w, i, j)
	}
	return special
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
