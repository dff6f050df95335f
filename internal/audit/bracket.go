package audit

import (
	"math"
	"slices"

	"github.com/loratool/loratool/format/dtype"
)

// bracketing finds the weight of a single update from the rounding itself. An element M tells that
// W + c·U lies between the midpoints of M and its neighbours, which is an interval of weights c.
// The weight is where most intervals overlap. Least squares is biased where U is smaller than the
// step of the dtype: then most elements keep their value, and few move by a whole step.
type bracketing struct {
	step         int64 // of the elements that are looked at
	starts, ends []float64
}

func newBracketing(elements int64) *bracketing {
	const most = 1 << 18
	return &bracketing{step: min(elements, manyValues)/most | 1}
}

func (g *bracketing) add(b *block, n int) {
	d := b.e.merged.DType
	first := b.first * int64(b.nCols)
	for i := int((g.step - first%g.step) % g.step); i < n; i += int(g.step) {
		w, m, u := b.w[i], b.m[i], b.u[asStored][0][i]
		if u == 0 || w-w != 0 || m-m != 0 {
			continue
		}
		below, above := midpoints(d, m)
		p, q := (below-w)/u, (above-w)/u
		g.starts, g.ends = append(g.starts, min(p, q)), append(g.ends, max(p, q))
	}
}

// midpoints returns the middles between x and its neighbours in a dtype.
func midpoints(d dtype.Type, x float64) (below, above float64) {
	outer := ulp(d, x) / 2
	inner := outer
	if f, _ := math.Frexp(x); math.Abs(f) == 0.5 && ulp(d, x/2) < ulp(d, x) {
		inner /= 2
	}
	if x < 0 {
		return x - outer, x + inner
	}
	return x - inner, x + outer
}

// weight returns the weight, an error, and the share of the elements that allow it. The error
// covers all weights that nearly as many elements allow: other elements are left out by chance.
func (g *bracketing) weight() (c, err, share float64) {
	n := len(g.starts)
	if n == 0 {
		return math.NaN(), math.NaN(), 0
	}
	slices.Sort(g.starts)
	slices.Sort(g.ends)
	best := 0
	g.sweep(func(_ float64, count int) { best = max(best, count) })
	enough := best - int(2*math.Sqrt(float64(n-best)))
	lo, hi, isIn := math.Inf(1), math.Inf(-1), false
	g.sweep(func(x float64, count int) {
		if count >= enough {
			lo = min(lo, x)
		}
		if isIn {
			hi = x
		}
		isIn = count >= enough
	})
	return (lo + hi) / 2, (hi - lo) / 2, float64(best) / float64(n)
}

// sweep calls f with each end of an interval, in order, and the number of intervals that lie over
// what follows it.
func (g *bracketing) sweep(f func(x float64, count int)) {
	i := 0
	for j, end := range g.ends {
		for ; i < len(g.starts) && g.starts[i] <= end; i++ {
			f(g.starts[i], i+1-j)
		}
		f(end, i-j-1)
	}
}
