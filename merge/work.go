package merge

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// pipeline is the sequence of operations for one tensor.
type pipeline struct {
	*target
	ops     []operation
	isBlind bool // the result does not depend on the base's values
	bands   []band
	tools   *tools
}

// band is the state of one band in a pipeline. The first worker that reaches the band loads its
// inputs; the worker that finishes its last block drops them.
type band struct {
	once sync.Once
	err  error
	left atomic.Int64 // blocks still to do
}

// newPipeline builds the operations of a tensor, in order.
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

// isBlind reports whether an operation overwrites every value without reading it.
func isBlind(op operation) bool { _, ok := op.(*replace); return ok }

// load loads the inputs of the operations for some bands.
func (p *pipeline) load(ctx context.Context, first, last int) error {
	for i := first; i <= last; i++ {
		b := &p.bands[i]
		b.once.Do(func() { b.err = loadAll(ctx, p.ops, i) })
		if b.err != nil {
			return b.err
		}
	}
	return nil
}

// done counts a block as finished, and drops the inputs of bands without further blocks.
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

const (
	// copyBytes is the largest piece of untouched data in one job, so that workers share a large
	// range and Ctrl-C takes effect soon.
	copyBytes = 64 << 20
	// smallCopyBytes is the largest untouched range that is copied through a worker's memory
	// together with its small neighbours.
	smallCopyBytes = 64 << 10
)

// layOut plans the output files and their headers. before holds the base's headers after the
// removals.
func (p *planner) layOut(before []restored) error {
	byFile := make(map[int][]*target)
	for _, t := range p.Plan.targets {
		byFile[t.ref.File] = append(byFile[t.ref.File], t)
	}
	for i, in := range p.base.Files {
		f := &outFile{in: in, before: before[i], targets: byFile[i]}
		if h := f.before.header; h != nil {
			f.header = h.Raw
			if slices.ContainsFunc(f.targets, (*target).changes) {
				var err error
				if f.header, err = h.Stamped(p.stamp()); err != nil {
					return err
				}
			}
			f.shift = int64(len(f.header)) - in.DataOff
		}
		p.files = append(p.files, f)
	}
	return nil
}

// job is a piece of work: copy a range, merge rows of a target, or write a file's header.
type job struct {
	index      int // number of the job
	file       int
	off, n     int64     // range of the base's file
	pipeline   *pipeline // nil for a copy
	row0, row1 int64
	header     bool
}

// bands returns the first and last band that the job's rows touch.
func (j *job) bands() (first, last int) {
	height := j.pipeline.bandRows()
	return int(j.row0 / height), int((j.row1 - 1) / height)
}

// batch is the jobs from first up to end, whose ranges are read and written together.
type batch struct{ first, end int }

// batches groups small neighbouring jobs of a file up to one block, so that a model of many small
// tensors does not pay for a read and a write per tensor.
func (p *Plan) batches(jobs []job) []batch {
	var all []batch
	var n int64 // length of the last batch; a full block if nothing may be added
	for i := range jobs {
		j := &jobs[i]
		alone := j.header || j.pipeline == nil && j.n > smallCopyBytes
		if i > 0 && !alone && j.file == jobs[i-1].file && n+j.n <= p.blockBytes() {
			all[len(all)-1].end++
			n += j.n
			continue
		}
		all = append(all, batch{i, i + 1})
		if n = j.n; alone {
			n = p.blockBytes()
		}
	}
	return all
}

// jobs lists the work in the order of the output's bytes.
func (p *Plan) jobs(pipelines map[*target]*pipeline) []job {
	var jobs []job
	copyRange := func(file int, from, to int64) {
		for ; from < to; from += copyBytes {
			jobs = append(jobs, job{file: file, off: from, n: min(copyBytes, to-from)})
		}
	}
	for i, f := range p.files {
		at := int64(0)
		if f.header != nil {
			jobs = append(jobs, job{file: i, header: true})
			at = f.in.DataOff
		}
		for _, t := range f.targets {
			tensor := t.ref.Tensor
			copyRange(i, at, tensor.Off)
			at = tensor.Off + tensor.NBytes
			nRows, nCols := t.Matrix()
			if nRows == 0 || nCols == 0 {
				continue
			}
			step, rowBytes := p.blockRows(t), nCols*int64(tensor.DType.Size())
			for row := int64(0); row < nRows; row += step {
				end := min(row+step, nRows)
				j := job{file: i, off: tensor.Off + row*rowBytes, n: (end - row) * rowBytes, pipeline: pipelines[t], row0: row, row1: end}
				jobs = append(jobs, j)
				first, last := j.bands()
				for band := first; band <= last; band++ {
					j.pipeline.bands[band].left.Add(1)
				}
			}
		}
		copyRange(i, at, f.in.Size)
	}
	for i := range jobs {
		jobs[i].index = i
	}
	return jobs
}

// PeakBytes estimates the memory that Run takes with the given number of workers: blocks, the
// factors of at most workers+1 bands, and tensors that bands share.
func (p *Plan) PeakBytes(workers int) int64 {
	var largest, shared, nBlocks int64
	size, buffers := p.blockBytes(), int64(2)
	k := &tools{plan: p}
	for _, t := range p.targets {
		if nRows, nCols := t.Matrix(); nRows > 0 && nCols > 0 {
			nBlocks += (nRows-1)/p.blockRows(t) + 1
			size = max(size, p.blockRows(t)*nCols*int64(t.DType.Size()))
		}
		ops := newPipeline(t, k).ops
		bands := make([]int64, t.NBands)
		for i := range bands {
			bands[i] = bytesOf(ops, i)
		}
		largest, shared = max(largest, slices.Max(bands)), max(shared, t.sharedBytes())
	}
	if p.options.wantsRecord() || p.removed.is() {
		buffers = 5 // values before and after, predictions, residuals
	}
	return min(int64(workers), nBlocks)*(buffers*size+largest) + largest + 2*shared
}

// sharedBytes returns the size of the adapter tensors that several bands read.
func (t *target) sharedBytes() (n int64) {
	if t.NBands == 1 {
		return 0
	}
	terms := t.Terms
	for i := range t.undo {
		terms = append(terms[:len(terms):len(terms)], t.undo[i].terms...)
	}
	size := wordBytes(isWide(t, terms))
	for _, x := range terms {
		n += size * int64(x.Rank) * int64(x.Left.Length+x.Right.Length)
	}
	return n
}
