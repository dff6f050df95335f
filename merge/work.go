package merge

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/parallel"
)

// run is the state of Run.
type run struct {
	plan    *Plan
	out     output.Output
	tools   *tools
	jobs    []job
	batches []batch
	tallies []tally // per job

	sideBytes int64 // size of the files beside the weights
	files     []*writing
}

// newRun builds the pipelines and cuts their work into jobs.
func (p *Plan) newRun(ctx context.Context, out output.Output) (*run, error) {
	k, err := kernel.Selected()
	if err != nil {
		return nil, err
	}
	if err := identify(ctx, p); err != nil {
		return nil, err
	}
	r := &run{plan: p, out: out, tools: &tools{plan: p, kernel: k, shelf: newShelf(p.targets)}}
	if p.options.wantsRecord() {
		r.tools.recording = &recording{plan: p}
	}
	for _, f := range p.base.Files {
		r.tools.data = append(r.tools.data, f.ReaderAt(ctx))
	}
	pipelines := make(map[*target]*pipeline, len(p.targets))
	for _, t := range p.targets {
		pipelines[t] = newPipeline(t, r.tools)
	}
	if rec := r.tools.recording; rec != nil {
		scratch, err := output.NewScratch(out)
		if err != nil {
			return nil, err
		}
		rec.scratch = scratch
		if err := rec.begin(ctx, scratch); err != nil {
			return nil, errors.Join(err, scratch.Close())
		}
	}
	r.jobs = p.jobs(pipelines)
	r.batches = p.batches(r.jobs)
	r.tallies = make([]tally, len(r.jobs))
	r.files = make([]*writing, len(p.files))
	for i := range r.files {
		r.files[i] = new(writing)
	}
	for _, b := range r.batches {
		r.files[r.jobs[b.first].file].left.Add(1)
	}
	return r, nil
}

// close discards the spooled residuals.
func (r *run) close() {
	if rec := r.tools.recording; rec != nil && rec.scratch != nil {
		rec.scratch.Close()
	}
}

func (r *run) all(ctx context.Context) error {
	nWorkers := min(workersFor(r.plan.options.Workers), len(r.batches))
	workers := make([]worker, nWorkers)
	for _, m := range r.tools.measured {
		if err := m.measure(ctx, workers); err != nil {
			return err
		}
	}
	return parallel.For(ctx, nWorkers, len(r.batches), func(w, i int) error { return r.do(ctx, &workers[w], r.batches[i]) })
}

// workersFor returns n, or one more than the processors if n is not positive: one goroutine writes
// nearly all the time, since the system allows one write to a file at a time, and another may wait
// for its turn.
func workersFor(n int) int {
	if n > 0 {
		return parallel.Workers(n)
	}
	return parallel.Workers(0) + 1
}

// do runs the jobs of a batch.
func (r *run) do(ctx context.Context, w *worker, b batch) error {
	j := &r.jobs[b.first]
	in, out := r.plan.files[j.file], r.files[j.file]
	out.once.Do(func() {
		like := in.in.Like()
		out.file, out.err = r.out.Create(output.Info{Name: r.plan.nameOf(in), Size: in.size(), Mode: like.Mode, Sparse: like.Sparse})
	})
	if out.err != nil {
		return out.err
	}
	n := j.n
	var err error
	switch {
	case j.header:
		n, err = r.writeHeader(ctx, in, out.file)
	case j.pipeline == nil && b.end-b.first == 1:
		err = r.copy(w, j, in, out.file)
	default:
		n, err = r.merge(ctx, w, r.jobs[b.first:b.end], in, out.file)
	}
	if err != nil {
		return err
	}
	if r.plan.options.Progress != nil {
		r.plan.options.Progress(n)
	}
	if out.left.Add(-1) == 0 && j.file < len(r.files)-mostOpen {
		return out.close()
	}
	return nil
}

// writeHeader writes the header of a file, and returns its length.
func (r *run) writeHeader(ctx context.Context, in *outFile, out output.File) (int64, error) {
	header, err := newHeader(ctx, r.plan, in)
	if err != nil {
		return 0, err
	}
	_, err = out.WriteAt(header, 0)
	return int64(len(header)), err
}

// merge reads the range of a batch, updates the rows of each job, and writes the range. It returns
// the range's length.
func (r *run) merge(ctx context.Context, w *worker, jobs []job, in *outFile, out output.File) (int64, error) {
	first, last := &jobs[0], &jobs[len(jobs)-1]
	off, n := first.off, last.off+last.n-first.off
	data := w.grow(max(n, r.plan.blockBytes()))[:n]
	if len(jobs) > 1 || !first.pipeline.isBlind {
		var err error
		if data, err = r.tools.read(w, first.file, off, n); err != nil {
			return 0, err
		}
	}
	for i := range jobs {
		j := &jobs[i]
		if j.pipeline == nil {
			continue
		}
		b := block{
			t: j.pipeline.target, row0: j.row0, row1: j.row1, data: data[j.off-off:][:j.n],
			stats: &r.tallies[j.index].Stats, taken: &r.tallies[j.index].taken,
		}
		if err := j.run(ctx, &b, w); err != nil {
			return 0, err
		}
	}
	return n, r.write(data, off, first.file, in, out)
}

// copy copies a range unchanged. For an undo record the bytes go through the worker's memory, to be
// checksummed.
func (r *run) copy(w *worker, j *job, in *outFile, out output.File) error {
	if r.tools.recording == nil {
		return out.CopyRange(j.off+in.shift, r.tools.data[j.file], j.off, j.n)
	}
	step := r.plan.blockBytes()
	for off := j.off; off < j.off+j.n; off += step {
		p, err := r.tools.read(w, j.file, off, min(step, j.off+j.n-off))
		if err != nil {
			return err
		}
		if err := r.write(p, off, j.file, in, out); err != nil {
			return err
		}
	}
	return nil
}

// write writes p, which the base has at off.
func (r *run) write(p []byte, off int64, file int, in *outFile, out output.File) error {
	if rec := r.tools.recording; rec != nil {
		rec.sums[file].Add(off, p)
	}
	_, err := out.WriteAt(p, off+in.shift)
	return err
}

// settle closes the weight files and copies the files beside them.
func (r *run) settle(ctx context.Context) error {
	if err := parallel.For(ctx, syncers, len(r.files), func(_, i int) error { return r.files[i].close() }); err != nil {
		return err
	}
	return parallel.For(ctx, 1, len(r.plan.base.Side), func(_, i int) error { return r.copySide(r.plan.base.Side[i]) })
}

// copySide copies a file beside the weights, or writes its new contents.
func (r *run) copySide(name string) error {
	in, err := r.plan.base.OpenSide(name)
	if err != nil {
		return err
	}
	defer in.Close()
	like := fileio.LikeFile(in.ReaderAt)
	src, size := in.ReaderAt, in.Size
	if text, ok := r.plan.side[name]; ok {
		src, size, like.Sparse = bytes.NewReader(text), int64(len(text)), false
	}
	r.sideBytes += size
	out, err := r.out.Create(output.Info{Name: name, Size: size, Mode: like.Mode, Sparse: like.Sparse})
	if err != nil {
		return err
	}
	return errors.Join(out.CopyRange(0, src, 0, size), out.Close())
}

// total adds up the tallies of each target's jobs in their fixed order, so that the sums do not
// depend on timing. The sum stands in the tally of the first job.
func (r *run) total() map[*target]*tally {
	totals := make(map[*target]*tally, len(r.plan.targets))
	for i := range r.jobs {
		if r.jobs[i].pipeline == nil {
			continue
		}
		t := r.jobs[i].pipeline.target
		if totals[t] == nil {
			totals[t] = &r.tallies[i]
			continue
		}
		totals[t].Add(&r.tallies[i].Stats)
		totals[t].corrected += r.tallies[i].corrected
		totals[t].mayDiffer += r.tallies[i].mayDiffer
		totals[t].clamped += r.tallies[i].clamped
	}
	r.jobs, r.batches = nil, nil // the report needs the sums only
	return totals
}

// writing is an output file. The first job that needs it creates it; the last one may close it.
type writing struct {
	once   sync.Once
	err    error
	file   output.File
	left   atomic.Int64
	closed bool
}

// Files are closed together at the end: the disk has started on each when its last byte was
// written, and syncers of them wait at once. A checkpoint with more than mostOpen files closes the
// first ones early; DeepSeek-V3 has 163.
const (
	mostOpen = 1024
	syncers  = 16
)

// close closes the file once.
func (w *writing) close() error {
	if w.closed || w.file == nil {
		return nil
	}
	w.closed = true
	return w.file.Close()
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

// run runs the pipeline on the job's rows.
func (j *job) run(ctx context.Context, b *block, w *worker) error {
	first, last := j.bands()
	if err := j.pipeline.load(ctx, first, last); err != nil {
		return err
	}
	defer j.pipeline.done(first, last)
	return j.pipeline.apply(ctx, b, w)
}

const (
	// copyBytes is the largest piece of untouched data in one job, so that workers share a large
	// range and Ctrl-C takes effect soon.
	copyBytes = 64 << 20
	// smallCopyBytes is the largest untouched range that is copied through a worker's memory
	// together with its small neighbours.
	smallCopyBytes = 64 << 10
)

// jobs lists the work in the order of the output's bytes.
func (p *Plan) jobs(pipelines map[*target]*pipeline) []job {
	jobs := make([]job, 0, len(p.targets)+2*len(p.files)) // there are more if tensors are large
	copyRange := func(file int, from, to int64) {
		for ; from < to; from += copyBytes {
			jobs = append(jobs, job{file: file, off: from, n: min(copyBytes, to-from)})
		}
	}
	for i, f := range p.files {
		at := int64(0)
		if f.hasHeader {
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

// batch holds the jobs from first up to end, whose ranges are read and written together.
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
	case t.DoRA != nil, len(t.Deltas) > 0:
		r := &rescale{t: t, k: k, before: append(p.ops[:len(p.ops):len(p.ops)], change...)}
		if change = append(change, r); t.DoRA != nil && t.DoRA.OfColumns {
			k.measured = append(k.measured, r)
		}
	case t.coded != nil && len(t.Terms) > 0:
		change = append(change, newRecode(t, k))
	case len(t.Terms) > 0:
		change = append(change, newAdd(t, t.Terms, k, k.plan.options.AllowNonFinite))
	}
	if t.Rows != nil {
		change = append(change, &setRows{t: t, k: k})
	}
	if len(change) > 0 && k.plan.options.wantsRecord() {
		if shape, ok := shapeBefore(k.plan, t); ok {
			change = []operation{newRecord(t, change, shape, k)}
		}
	}
	p.isBlind = len(p.ops) == 0 && len(change) > 0 && isBlind(change[0])
	p.ops = append(p.ops, change...)
	return p
}

// isBlind reports whether an operation overwrites every value of a block without reading it.
func isBlind(op operation) bool {
	switch op := op.(type) {
	case *replace:
		return true
	case *add:
		return op.t.exact != nil
	case *rescale:
		return op.t.exact != nil
	}
	return false
}

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
func (p *pipeline) apply(ctx context.Context, b *block, w *worker) error {
	return applyAll(ctx, p.ops, b, w)
}

// PeakBytes estimates the memory that Run takes with the given Options.Workers: blocks, the factors
// of at most workers+1 bands, tensors that bands share, and what decoding keeps.
func (p *Plan) PeakBytes(workers int) int64 {
	var largest, shared, kept, nBlocks int64
	size, buffers := p.blockBytes(), int64(2)
	k := &tools{plan: p}
	for i, t := range p.targets {
		if nRows, nCols := t.Matrix(); nRows > 0 && nCols > 0 {
			nBlocks += (nRows-1)/p.blockRows(t) + 1
			size = max(size, p.blockRows(t)*nCols*int64(t.DType.Size()))
		}
		if t.exact != nil {
			kept = max(kept, t.exact.KeptBytes())
		}
		if i > 0 && t.takesAs(p.targets[i-1]) {
			continue // as most of very many do
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
	if p.decoding != nil {
		buffers += 12 // exact values, twice, and stored ones
	}
	return min(int64(workersFor(workers)), nBlocks)*(buffers*size+largest) + largest + 2*shared + kept
}

// takesAs reports whether the operations of a target surely take as much memory as those of another
// one: both have a single term in equal shapes and types.
func (t *target) takesAs(o *target) bool {
	hasOneTerm := func(t *target) bool {
		return len(t.Terms) == 1 && t.NBands == 1 && len(t.undo) == 0 && len(t.Deltas) == 0 && t.DoRA == nil && t.Replace == nil && t.Rows == nil && t.coded == nil
	}
	if !hasOneTerm(t) || !hasOneTerm(o) || t.DType != o.DType || !slices.Equal(t.Shape, o.Shape) || (t.exact == nil) != (o.exact == nil) {
		return false
	}
	x, y := &t.Terms[0], &o.Terms[0]
	return x.Rank == y.Rank && x.Residual == y.Residual && isWide(t, t.Terms) == isWide(o, o.Terms)
}
