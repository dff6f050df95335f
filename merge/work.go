package merge

import (
	"slices"
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

// band is a band of a pipeline. What its operations need is loaded by the first worker that comes
// to it, and dropped when its last block is done.
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

const (
	// copyBytes is the piece in which untouched data are copied, so that several workers share a
	// large range and an interrupt is noticed.
	copyBytes = 64 << 20
	// smallCopyBytes is the most that is copied through a worker's memory where it lies among small
	// tensors that change.
	smallCopyBytes = 64 << 10
)

// layOut builds the output files and their headers; before are those of the base when what is taken
// out is out.
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

// job is a piece of work: a range to copy, or rows of a target to merge, or the header of a file.
type job struct {
	index      int // among the jobs
	file       int
	off, n     int64     // a range of the base's file
	pipeline   *pipeline // nil where the range is copied
	row0, row1 int64
	header     bool
}

// bands are the first and the last band that the job's rows are of.
func (j *job) bands() (first, last int) {
	height := j.pipeline.bandRows()
	return int(j.row0 / height), int((j.row1 - 1) / height)
}

// batch is jobs from first to end whose ranges are read and written together.
type batch struct{ first, end int }

// batches puts jobs together that follow each other in a file and are small, as long as they fit in
// a block, so that a model of many small tensors does not pay for reading and writing each of them.
func (p *Plan) batches(jobs []job) []batch {
	var all []batch
	var n int64 // of the last batch; more than a block where nothing may be added
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

// PeakBytes estimates the memory that Run takes: blocks and factors in flight, at most workers+1
// bands at a time, and the tensors of adapters that bands share.
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
		buffers = 5 // values before and after, predictions, and residuals
	}
	return min(int64(workers), nBlocks)*(buffers*size+largest) + largest + 2*shared
}

// sharedBytes is what the bands of a tensor share: tensors of adapters that each needs a part of.
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
