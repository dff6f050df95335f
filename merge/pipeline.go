package merge

import (
	"io"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// operation is one step of what happens to the rows of a tensor. The operations of a tensor run one
// after the other on each block of its rows: restore or subtract what is taken out, replace, add or
// rescale, set rows. To merge is a list of them, to unmerge is the list of their inverses, and a swap
// is one after the other.
type operation interface {
	// load reads what the operation needs for a band, before the first block with rows of it.
	load(band int) error
	// drop lets go of that after the last one.
	drop(band int)
	// apply changes the rows of a block in place.
	apply(b *block, w *worker) error
	// bytes is about the memory that load takes for a band.
	bytes(band int) int64
}

// block is some rows of a tensor on their way through its pipeline.
type block struct {
	t          *target
	row0, row1 int64
	data       []byte
	stats      *kernel.Stats // of what is put in
	taken      *taken        // of what is taken out
}

// taken is what was done to a block when merges were taken out of it.
type taken struct {
	corrected int64 // predictions that a record has put right
	mayDiffer int64 // elements that may differ, without a record
}

// eachBand calls f for the rows of each band that a block has, with the first of them as the band
// counts.
func (b *block) eachBand(f func(band int, row0 int64, rows []byte) error) error {
	rowBytes := int64(len(b.data)) / (b.row1 - b.row0)
	height := b.t.bandRows()
	for row := b.row0; row < b.row1; {
		band := row / height
		end := min(b.row1, (band+1)*height)
		if err := f(int(band), row-band*height, b.data[(row-b.row0)*rowBytes:(end-b.row0)*rowBytes]); err != nil {
			return err
		}
		row = end
	}
	return nil
}

// worker is the memory of one goroutine.
type worker struct {
	block     []byte
	other     []byte
	before    []byte
	predicted []byte
	narrow    kernel.Scratch[float32]
	broad     kernel.Scratch[float64]
	rescale   kernel.RescaleScratch
	undo      undo.Scratch
	ignored   kernel.Stats
}

// tools are what operations need beside their own terms.
type tools struct {
	plan      *Plan
	kernel    *kernel.Kernel
	shelf     *shelf
	recording *recording    // nil where no record is written
	data      []io.ReaderAt // the files of the base, under the context of the run
	measured  []*rescale    // operations that see the whole tensor before its first block
}

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
		change = append(change, &replace{t, k})
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
		change = append(change, &setRows{t, k})
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

func loadAll(ops []operation, band int) error {
	for _, op := range ops {
		if err := op.load(band); err != nil {
			return err
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

func applyAll(ops []operation, b *block, w *worker) error {
	for _, op := range ops {
		if err := op.apply(b, w); err != nil {
			return err
		}
	}
	return nil
}

// bytesOf is about the memory that operations take for a band.
func bytesOf(ops []operation, band int) (n int64) {
	for _, op := range ops {
		n += op.bytes(band)
	}
	return n
}

// byBand sorts terms into the bands that they are of.
func byBand(terms []resolve.Term, nBands int) [][]resolve.Term {
	bands := make([][]resolve.Term, nBands)
	for _, x := range terms {
		bands[x.Band] = append(bands[x.Band], x)
	}
	return bands
}
