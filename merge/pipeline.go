package merge

import (
	"sync"
	"sync/atomic"
)

// pipeline is what happens to one tensor.
type pipeline struct {
	*target
	ops     []operation
	isBlind bool // the result does not depend on what is in the base
	bands   []band
	tools   *tools
}

// band is a band of a pipeline. What its operations need is loaded by the first worker that comes to
// it, and dropped when its last block is done.
type band struct {
	once sync.Once
	err  error
	left atomic.Int64 // blocks to go
}

// newPipeline makes the operations of a tensor, in their order.
func newPipeline(t *target, k *tools) *pipeline {
	p := &pipeline{target: t, bands: make([]band, t.NBands), tools: k}
	for i := range t.undo {
		p.ops = append(p.ops, newRemoval(t, &t.undo[i], i == 0, k))
	}
	var change []operation
	if t.Replace != nil {
		change = append(change, &replace{t: t, k: k})
	}
	switch {
	case t.DoRA != nil:
		r := &rescale{t: t, k: k, before: append(p.ops[:len(p.ops):len(p.ops)], change...)}
		if change = append(change, r); t.DoRA.OfColumns {
			k.measured = append(k.measured, r)
		}
	case len(t.Terms) > 0:
		change = append(change, newAdd(t, t.Terms, k, k.plan.options.AllowNonFinite))
	}
	if t.Rows != nil {
		change = append(change, &setRows{t: t, k: k})
	}
	if len(change) > 0 && k.plan.options.wantsRecord() {
		change = []operation{newRecord(t, change, k)}
	}
	p.isBlind = len(p.ops) == 0 && len(change) > 0 && isBlind(change[0])
	p.ops = append(p.ops, change...)
	return p
}

// isBlind reports whether an operation leaves nothing of the values that were there.
func isBlind(op operation) bool { _, ok := op.(*replace); return ok }

// load reads what the operations need for some bands.
func (p *pipeline) load(first, last int) error {
	for i := first; i <= last; i++ {
		b := &p.bands[i]
		b.once.Do(func() { b.err = loadAll(p.ops, i) })
		if b.err != nil {
			return b.err
		}
	}
	return nil
}

// done drops what bands needed of which this was the last block.
func (p *pipeline) done(first, last int) {
	for i := first; i <= last; i++ {
		if p.bands[i].left.Add(-1) == 0 {
			for _, op := range p.ops {
				op.drop(i)
			}
			p.tools.shelf.drop(p.target, i)
		}
	}
}

// apply runs the operations on a block.
func (p *pipeline) apply(b *block, w *worker) error { return applyAll(p.ops, b, w) }
