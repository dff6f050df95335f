package merge

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/parallel"
)

// Run writes the merged checkpoint to out, a file or directory like the base, and the undo record
// to Options.UndoFile. Both appear complete or not at all: Run writes under hidden names beside
// them, waits for the disk, and then renames. Each worker holds a few blocks and the factors in
// use, whatever the size of the base. A plan runs once; a second call returns an error, even if the
// first call failed.
func (p *Plan) Run(ctx context.Context, out string) (*Report, error) {
	if p.ran.Swap(true) {
		return nil, errRan
	}
	if err := p.CheckOutput(out); err != nil {
		return nil, err
	}
	disk, err := p.disk(out)
	if err != nil {
		return nil, err
	}
	defer disk.Abort()
	var record *recordFile
	if p.options.UndoFile != "" {
		if record, err = newRecordFile(disk, p.options.UndoFile, p.base); err != nil {
			return nil, err
		}
	}
	return p.runTo(ctx, disk, record)
}

// RunTo writes to any Output, such as output.Memory. Options.UndoFile must be empty: only Run can
// make a file appear together with the checkpoint. Options.Undo receives the record before RunTo
// commits the output. A failed run aborts the output.
func (p *Plan) RunTo(ctx context.Context, out output.Output) (*Report, error) {
	defer out.Abort()
	if p.ran.Swap(true) {
		return nil, errRan
	}
	if p.options.UndoFile != "" {
		return nil, errors.New("merge: an undo record in a file of its own needs an output path; use Options.Undo")
	}
	return p.runTo(ctx, out, nil)
}

var errRan = errors.New("merge: the plan has run already; open another one")

// runTo writes the checkpoint to out and the undo record, if wanted, to record and to Options.Undo.
// record may be nil.
func (p *Plan) runTo(ctx context.Context, out output.Output, record *recordFile) (*Report, error) {
	r, err := p.newRun(ctx, out)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if len(p.removed.records) > 0 {
		if err := checkRest(ctx, p); err != nil {
			return nil, err
		}
	}
	if err := r.all(ctx); err != nil {
		return nil, err
	}
	report := newReport(p, r.tallies())
	if created := report.NonFiniteAfter - report.NonFiniteBefore; created > 0 && !p.options.AllowNonFinite {
		return nil, fault.New(fault.Check, "%d finite weights would become infinite or NaN, in %s", created, fault.List(report.nonFinite(), 3)).
			WithHint("the base's dtype cannot hold the merged weights; lower the weight, or set Options.AllowNonFinite")
	}
	// Writing the record keeps the processor busy while the files wait for the disk.
	last := []func(context.Context) error{r.settle, func(ctx context.Context) (err error) {
		if r.tools.recording != nil {
			report.Undo, err = r.tools.recording.write(ctx, recordWriter(p, record))
		}
		return err
	}}
	if err := parallel.For(ctx, len(last), len(last), func(_, i int) error { return last[i](ctx) }); err != nil {
		return nil, err
	}
	report.BytesWritten += r.sideBytes
	if err := errors.Join(ctx.Err(), p.unchanged()); err != nil {
		return nil, err
	}
	if err := record.close(); err != nil {
		return nil, err
	}
	return report, out.Commit()
}

// run is the state of Run.
type run struct {
	plan    *Plan
	out     output.Output
	tools   *tools
	jobs    []job
	batches []batch
	stats   []kernel.Stats // per job
	taken   []taken        // per job

	sideBytes int64 // size of the files beside the weights
	files     []*writing
}

// newRun builds the pipelines and cuts their work into jobs.
func (p *Plan) newRun(ctx context.Context, out output.Output) (*run, error) {
	k, err := kernel.Selected()
	if err != nil {
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
		rec.begin(scratch)
	}
	r.jobs = p.jobs(pipelines)
	r.batches = p.batches(r.jobs)
	r.stats, r.taken = make([]kernel.Stats, len(r.jobs)), make([]taken, len(r.jobs))
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
	nWorkers := min(parallel.Workers(r.plan.options.Workers), len(r.batches))
	workers := make([]worker, nWorkers)
	for _, m := range r.tools.measured {
		if err := m.measure(ctx, workers); err != nil {
			return err
		}
	}
	return parallel.For(ctx, nWorkers, len(r.batches), func(w, i int) error { return r.do(ctx, &workers[w], r.batches[i]) })
}

// copySide copies a file beside the weights, or writes its new contents.
func (r *run) copySide(name string) error {
	in, err := r.plan.base.Dir.Open(name)
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

// tallies adds up the jobs in their fixed order, so that the sums do not depend on timing.
func (r *run) tallies() map[*target]*tally {
	tallies := make(map[*target]*tally)
	for i := range r.jobs {
		if r.jobs[i].pipeline == nil {
			continue
		}
		t := r.jobs[i].pipeline.target
		if tallies[t] == nil {
			tallies[t] = new(tally)
		}
		tallies[t].Add(&r.stats[i])
		tallies[t].corrected += r.taken[i].corrected
		tallies[t].mayDiffer += r.taken[i].mayDiffer
	}
	return tallies
}

// settle closes the weight files and copies the files beside them.
func (r *run) settle(ctx context.Context) error {
	if err := parallel.For(ctx, syncers, len(r.files), func(_, i int) error { return r.files[i].close() }); err != nil {
		return err
	}
	return parallel.For(ctx, 1, len(r.plan.base.Side), func(_, i int) error { return r.copySide(r.plan.base.Side[i]) })
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
// first ones early.
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
		n = int64(len(in.header))
		_, err = out.file.WriteAt(in.header, 0)
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
			stats: &r.stats[j.index], taken: &r.taken[j.index],
		}
		if err := j.run(ctx, &b, w); err != nil {
			return 0, err
		}
	}
	return n, r.write(data, off, first.file, in, out)
}

// run runs the pipeline on the job's rows.
func (j *job) run(ctx context.Context, b *block, w *worker) error {
	first, last := j.bands()
	if err := j.pipeline.load(ctx, first, last); err != nil {
		return err
	}
	defer j.pipeline.done(first, last)
	return j.pipeline.apply(b, w)
}
