package audit

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// sampled is the number of elements on which all ways to round are tried.
const sampled = 1 << 15

// tryRoundings tries all ways to round. It first tries them on rows from all over the tensor, and
// then those that have explained these on all rows.
func (x *examination) tryRoundings(updates []update) (isExplained bool, err error) {
	trials := trialsFor(x.e, updates)
	b := newBlock(x.e, updates)
	if b.rescaling, err = newRescaling(x.ctx, b, trials); err != nil {
		return false, err
	}
	nRows, nCols := x.e.change.Matrix()
	step := max(1, nRows*nCols/sampled)
	if step > 1 {
		if err := x.try(b, trials, step); err != nil {
			return false, err
		}
		trials = slices.DeleteFunc(trials, func(t trial) bool { return t.isOut })
		for i := range trials {
			trials[i].unexplained, trials[i].far, trials[i].loose = 0, 0, 0
		}
		if len(trials) == 0 {
			return false, nil
		}
	}
	if err := x.try(b, trials, 1); err != nil {
		return false, err
	}
	best := trials[0]
	for _, t := range trials[1:] {
		if t.unexplained < best.unexplained || t.unexplained == best.unexplained && t.loose < best.loose {
			best = t
		}
	}
	t := &x.e.found
	t.Unexplained = best.unexplained
	if best.unexplained > 0 {
		if best.isOut || best.unexplained > t.Elements/1000 {
			return false, nil
		}
		t.Verdict, t.Finding, t.Rounding = NotAsClaimed, Elements, best.name
		t.Text = fmt.Sprintf("%s of %d differ from every way to round", fault.Count(best.unexplained, "element"), t.Elements)
		if best.far == 0 {
			t.Verdict, t.Finding = Inconclusive, Rounded
			t.Text = fmt.Sprintf("%s of %d differ by one step from the nearest way to round", fault.Count(best.unexplained, "element"), t.Elements)
		}
		return true, nil
	}
	t.Verdict, t.Finding, t.Rounding = AsClaimed, Merged, best.name
	if isReplaced(x.e.change) {
		t.Finding, t.Rounding = Replaced, ""
		return true, nil
	}
	next := t.Elements
	for _, other := range trials {
		if other.name == best.name {
			continue
		}
		if other.unexplained == 0 {
			t.OtherRoundings = append(t.OtherRoundings, other.name)
		}
		next = min(next, other.unexplained)
	}
	t.Margin = merge.Figure(float64(next) / float64(t.Elements))
	if len(trials) == 1 {
		t.Margin = 1
	}
	return true, nil
}

// trialsFor lists the ways to round a tensor. Those that round factors first are left out where the
// factors have no digits to round away and nothing else tells the ways apart.
func trialsFor(e *expected, updates []update) (trials []trial) {
	has := make([]bool, nVariants)
	for v := range nVariants {
		has[v] = v == asStored || slices.ContainsFunc(updates, func(u update) bool { return u.hasDigits(v) })
	}
	for _, c := range candidates(e.DType, e.merged.DType, len(updates)) {
		kind, _ := c.name.split()
		if e.change.DoRA != nil && !c.name.rescales() {
			continue
		}
		if has[c.name.variant()] || kind == ProductRounded || kind == FactorsRounded && e.change.DoRA != nil {
			trials = append(trials, trial{candidate: c})
		}
	}
	return trials
}

// mostOut is the number of unexplained elements of a sample that rule a way to round out.
const mostOut = sampled / 256

// try counts the elements that trials explain, in every step-th row.
func (x *examination) try(b *block, trials []trial, step int64) error {
	b.done = 0
	return b.eachRows(x.ctx, step, func(n int) {
		for i := range trials {
			if t := &trials[i]; !t.isOut {
				b.count(t, n)
			}
		}
	})
}

// count counts the elements that a trial explains among n.
func (b *block) count(t *trial, n int) {
	v := t.name.variant()
	u, bounds := make([]float64, len(b.updates)), make([]float64, len(b.updates))
	for i := range n {
		for k := range u {
			u[k], bounds[k] = b.u[v][k][i], b.bounds[k][i]
		}
		var lo, hi float64
		if b.rescaling != nil {
			lo, hi = b.rescaling.interval(b, t, i)
		} else {
			lo, hi = t.interval(b.w[i], u, bounds, b.scales)
		}
		m := b.m[i]
		switch {
		case lo <= m && m <= hi, m != m && lo != lo:
		default:
			t.unexplained++
			if step := ulp(t.out, m); !(lo-m <= 1.01*step && m-hi <= 1.01*step) {
				t.far++
			}
		}
		if lo != hi {
			t.loose++
		}
	}
	t.isOut = t.unexplained > mostOut && t.unexplained*200 > b.done
}
