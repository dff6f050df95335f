package audit

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
)

// probe explains the elements of one tensor by the ways to round. A sample of its rows rules most
// of them out. The others are tried on every element that differs from the correctly rounded merge;
// where the two are equal nothing needs an explanation.
type probe struct {
	e       *expected
	updates []update
	scales  []float64
	*rescaling
	mu     sync.Mutex
	trials []trial // those that the sample has left
	// next is the least share of the sample that a way ruled out does not explain; 1 if none is.
	next float64
}

// sampled is the number of elements on which all ways to round are tried.
const sampled = 1 << 15

// newProbe tries all ways to round on rows from all over the tensor. It returns nil for a tensor
// whose values no way to round makes: one that no adapter changes, or that has no floats.
func (x *examination) newProbe() (*probe, error) {
	if x.e.change == nil || x.e.base == nil || !x.e.DType.IsFloat() || !x.e.merged.DType.IsFloat() || isSpecial(x.e.change) != "" {
		return nil, nil
	}
	updates, err := readUpdates(x.ctx, x.e.change, len(x.adapters), x.e.merged.DType)
	if err != nil {
		return nil, err
	}
	p := &probe{e: x.e, updates: updates, trials: trialsFor(x.e, updates), next: 1}
	b := newBlock(x.e, updates)
	p.scales = b.scales
	if p.rescaling, err = newRescaling(x.ctx, b, p.trials); err != nil {
		return nil, err
	}
	nRows, nCols := x.e.change.Matrix()
	if err := p.all(x.ctx, max(1, nRows*nCols/sampled)); err != nil {
		return nil, err
	}
	for _, t := range p.trials {
		if t.isOut {
			p.next = min(p.next, float64(t.unexplained)/float64(t.seen))
		}
	}
	p.trials = slices.DeleteFunc(p.trials, func(t trial) bool { return t.isOut })
	for i := range p.trials {
		p.trials[i].unexplained, p.trials[i].far = 0, 0
	}
	return p, nil
}

// trialsFor lists the ways to round a tensor. Those that round factors first are left out where the
// factors have no digits to round away and nothing else tells the ways apart.
func trialsFor(e *expected, updates []update) (trials []trial) {
	has := make([]bool, nVariants)
	for v := range nVariants {
		has[v] = v == asStored || slices.ContainsFunc(updates, func(u update) bool { return u.hasDigits(v) })
	}
	for _, c := range candidates(e.DType, e.merged.DType, len(updates)) {
		if e.change.DoRA != nil && !c.name.rescales() {
			continue
		}
		if has[c.variant] || c.kind == ProductRounded || c.kind == FactorsRounded && e.change.DoRA != nil {
			trials = append(trials, trial{candidate: c})
		}
	}
	return trials
}

// all tries the ways to round on all elements of every step-th row.
func (p *probe) all(ctx context.Context, step int64) error {
	b := newBlock(p.e, p.updates)
	for i := range p.trials {
		b.needs[p.trials[i].variant] = true
	}
	el := p.newElement()
	return b.eachRows(ctx, step, func(n int) {
		for i := range p.trials {
			t := &p.trials[i]
			if t.isOut {
				continue
			}
			v := t.variant
			for k := range n {
				el.w, el.row, el.col = b.w[k], int(b.first)+k/b.nCols, k%b.nCols
				for a := range el.u {
					el.u[a], el.bounds[a] = b.u[v][a][k], b.bounds[a][k]
				}
				p.tryOne(t, el, b.m[k])
			}
			t.isOut = t.unexplained > 16 && t.unexplained*200 > t.seen
		}
	})
}

// element is an element of the base with the updates of the adapters, and their bounds.
type element struct {
	w         float64
	u, bounds []float64
	row, col  int
}

func (p *probe) newElement() *element {
	return &element{u: make([]float64, len(p.updates)), bounds: make([]float64, len(p.updates))}
}

// tryOne tries a way to round on one element, which is m in the merged checkpoint.
func (p *probe) tryOne(t *trial, el *element, m float64) {
	t.seen++
	var lo, hi float64
	if p.rescaling != nil {
		lo, hi = p.rescaling.interval(t, el)
	} else {
		lo, hi = t.interval(el.w, el.u, el.bounds, p.scales)
	}
	if lo != hi {
		t.loose++
	}
	if lo <= m && m <= hi || m != m && lo != lo {
		return
	}
	t.unexplained++
	if step := ulp(t.out, m); !(lo-m <= 1.01*step && m-hi <= 1.01*step) {
		t.far++
	}
}

// together is the number of elements that are read together around those that are tested.
const together = 1 << 16

// test tries the ways to round that are left on some elements, in ascending order.
func (p *probe) test(ctx context.Context, places []int64) error {
	if len(p.trials) == 0 {
		return nil
	}
	trials := slices.Clone(p.trials)
	for i := range trials {
		trials[i].unexplained, trials[i].far, trials[i].loose = 0, 0, 0
	}
	_, nCols := p.e.change.Matrix()
	el := p.newElement()
	w, m := p.e.values(together)
	for len(places) > 0 {
		first, n := places[0], 1
		for n < len(places) && places[n] < first+together {
			n++
		}
		count := int(places[n-1] - first + 1)
		if err := errors.Join(w.read(ctx, first, count), m.read(ctx, first, count)); err != nil {
			return err
		}
		for _, at := range places[:n] {
			el.w, el.row, el.col = w.at(at-first), int(at/nCols), int(at%nCols)
			last := nVariants
			for i := range trials {
				if v := trials[i].variant; v != last {
					for k := range p.updates {
						el.u[k] = p.updates[k].at(v, el.row, el.col)
					}
					last = v
				}
				x := m.at(at - first)
				if p.rescaling == nil && trials[i].value(el.w, el.u, p.scales) == x {
					continue
				}
				for k := range p.updates {
					el.bounds[k] = p.updates[k].boundAt(el.row, el.col, el.u[k])
				}
				p.tryOne(&trials[i], el, x)
			}
		}
		places = places[n:]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range trials {
		p.trials[i].unexplained += trials[i].unexplained
		p.trials[i].far += trials[i].far
	}
	return nil
}

// explainsAll reports whether a way to round explains every element.
func (p *probe) explainsAll() bool {
	best := p.best()
	return best != nil && best.unexplained == 0
}

// best returns the way to round that leaves the fewest elements unexplained, nil if none is left.
// Of several the one that allows the fewest values wins.
func (p *probe) best() *trial {
	var best *trial
	for i := range p.trials {
		t := &p.trials[i]
		if best == nil || t.unexplained < best.unexplained || t.unexplained == best.unexplained && t.loose < best.loose {
			best = t
		}
	}
	return best
}

// margin is the share of the elements that the best other way does not explain. Those that explain
// all elements as well are not other ones.
func (p *probe) margin(best *trial) float64 {
	next := p.next
	for i := range p.trials {
		if t := &p.trials[i]; t != best && t.unexplained > 0 {
			next = min(next, float64(t.unexplained)/float64(p.e.found.Elements))
		}
	}
	if p.e.isCompared() && best.name != Exact && p.e.different > 0 {
		next = min(next, float64(p.e.different)/float64(p.e.found.Elements))
	}
	if math.IsNaN(next) {
		return 0
	}
	return next
}
