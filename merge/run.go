package merge

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// Run writes the merged checkpoint to out, a file or a directory like the base. It appears whole or not at all: it is built
// beside out under a hidden name and moved there when everything is on the disk. Memory is a few blocks and the factors in
// flight per worker, whatever the size of the base. A plan runs once: a second call is an error, also after a first one that failed.
func (p *Plan) Run(ctx context.Context, out string) (*Report, error) {
	if p.ran.Swap(true) {
		return nil, errors.New("merge: the plan has run already; open another one")
	}
	out = filepath.Clean(out)
	if err := p.CheckOutput(out); err != nil {
		return nil, err
	}
	k, err := kernel.Selected()
	if err != nil {
		return nil, err
	}
	r := &run{plan: p, kernel: k, state: make(map[*target]*running, len(p.targets))}
	defer r.drop()
	if err := r.begin(out); err != nil {
		return nil, err
	}
	for _, f := range p.files {
		f.data = f.in.ReaderAt(ctx)
	}
	s := newShelf(p.targets)
	for _, t := range p.targets {
		same := !t.predictable() || t.NBands > 1 && p.options.AllowNonFinite // of one band, load finds out
		r.state[t] = &running{target: t, bands: make([]bandState, t.NBands), same: same, shelf: s, file: p.files[t.ref.File]}
	}
	if err := r.checkRest(ctx); err != nil {
		return nil, err
	}
	defer r.abandon()
	if err := r.all(ctx); err != nil {
		return nil, err
	}
	report := r.report()
	if created := report.NonFiniteAfter - report.NonFiniteBefore; created > 0 && !p.options.AllowNonFinite {
		return nil, fault.New(fault.Check, "%d finite weights would become infinite or NaN, in %s", created, fault.List(r.nonFinite(), 3)).
			WithHint("the base's dtype cannot hold the merged weights; lower the weight, or use --allow-nonfinite")
	}
	// The record takes the processor while the files wait for the disk.
	last := []func(context.Context) error{r.settle, func(ctx context.Context) (err error) {
		if r.recording != nil {
			report.Undo, err = r.writeRecord(ctx)
		}
		return err
	}}
	if err := parallel.For(ctx, len(last), len(last), func(_, i int) error { return last[i](ctx) }); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return report, r.commit()
}

// run is the state of one Run.
type run struct {
	plan    *Plan
	stage   *fileio.Stage
	kernel  *kernel.Kernel
	state   map[*target]*running
	jobs    []job
	batches []batch
	stats   []kernel.Stats // one per job
	taken   []taken        // one per job
	files   []*writing

	recording *recording  // nil where no record is wanted
	undoFile  *recordFile // nil where no file gets it
}

// writing is an output file: opened by the first job that needs it, made durable and closed by the last.
type writing struct {
	once sync.Once
	err  error
	file *os.File
	left atomic.Int64
	turn sync.Mutex // held by whoever writes: the system lets one write to a file at a time, and waiting for it burns time

	closed  bool
	written int64 // since the last hint that writing to the disk may begin; under turn
}

// hintBytes is how much is written to a file before the system is told that it may begin to move it to the disk.
const hintBytes = 16 << 20

// wrote counts n written bytes. The caller holds the turn.
func (w *writing) wrote(n int64) {
	if w.written += n; w.written >= hintBytes {
		w.written = 0
		fileio.StartWriteback(w.file)
	}
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

func (r *run) all(ctx context.Context) error {
	p := r.plan
	r.jobs = p.jobs(r.state)
	r.batches = p.batches(r.jobs)
	r.stats = make([]kernel.Stats, len(r.jobs))
	r.taken = make([]taken, len(r.jobs))
	r.files = make([]*writing, len(p.files))
	for i := range r.files {
		r.files[i] = new(writing)
	}
	for _, b := range r.batches {
		r.files[r.jobs[b.first].file].left.Add(1)
	}
	nWorkers := min(parallel.Workers(p.options.Workers), len(r.batches))
	workers := make([]worker, nWorkers)
	if err := r.measure(ctx, workers); err != nil {
		return err
	}
	return parallel.For(ctx, nWorkers, len(r.batches), func(w, i int) error { return r.do(&workers[w], r.batches[i]) })
}

// abandon closes what is still open after an error; it will be removed.
func (r *run) abandon() {
	for _, f := range r.files {
		if f.file != nil && !f.closed {
			f.file.Close()
		}
	}
}

// settle makes the weight files durable, and copies the files beside them.
func (r *run) settle(ctx context.Context) error {
	p := r.plan
	if err := parallel.For(ctx, syncers, len(r.files), func(_, i int) error { return r.files[i].close() }); err != nil {
		return err
	}
	return parallel.For(ctx, 1, len(p.base.Side), func(_, i int) error { return r.copySide(p.base.Side[i]) })
}

// do does the jobs of a batch.
func (r *run) do(w *worker, b batch) error {
	j := &r.jobs[b.first]
	in, out := r.plan.files[j.file], r.files[j.file]
	out.once.Do(func() {
		out.file, out.err = r.stage.CreateLike(r.plan.nameOf(in), in.size(), in.in.Like())
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
	case j.target == nil && b.end-b.first == 1:
		out.turn.Lock()
		err = fileio.CopyRange(out.file, j.off+in.shift, in.data, j.off, j.n)
		out.wrote(j.n)
		out.turn.Unlock()
	default:
		n, err = r.mergeBatch(w, r.jobs[b.first:b.end], in, out)
	}
	if err != nil {
		return err
	}
	if r.plan.options.Progress != nil {
		r.plan.options.Progress(n)
	}
	if out.left.Add(-1) == 0 {
		if j.file < len(r.files)-mostOpen {
			return out.close()
		}
		fileio.StartWriteback(out.file)
	}
	return nil
}

// A file is made durable when all are written: the system has begun when the file was complete, and waits for several of them at
// once. With very many files the first ones are not kept open for that.
const (
	mostOpen = 1024
	syncers  = 16
)

// close makes the file durable and closes it, once.
func (w *writing) close() error {
	if w.closed || w.file == nil {
		return nil
	}
	w.closed = true
	return fileio.Close(w.file)
}

// mergeBatch reads the range of some jobs, updates the rows of each in it, and writes it. It returns the length of the range.
func (r *run) mergeBatch(w *worker, jobs []job, in *outFile, out *writing) (int64, error) {
	first, last := &jobs[0], &jobs[len(jobs)-1]
	off, n := first.off, last.off+last.n-first.off
	if int64(cap(w.block)) < n {
		w.block = make([]byte, max(n, r.plan.blockBytes()))
	}
	block := w.block[:n]
	if len(jobs) > 1 || r.needs(first.target) {
		if _, err := io.ReadFull(io.NewSectionReader(in.data, off, n), block); err != nil {
			return 0, fault.InFile(err, in.in.Path)
		}
	}
	for i := range jobs {
		j := &jobs[i]
		if j.target == nil {
			continue
		}
		if err := r.mergeRows(w, j, &r.stats[j.index], block[j.off-off:][:j.n]); err != nil {
			return 0, err
		}
	}
	out.turn.Lock()
	_, err := out.file.WriteAt(block, off+in.shift)
	out.wrote(n)
	out.turn.Unlock()
	return n, err
}

// needs reports whether the result of a target depends on what is in the base.
func (r *run) needs(t *running) bool { return t.Replace == nil || r.records(t) || len(t.undo) > 0 }

// records reports whether a record of a target's values is wanted.
func (r *run) records(t *running) bool { return r.recording != nil && t.changes() }

// mergeRows updates rows of a target in a block.
func (r *run) mergeRows(w *worker, j *job, st *kernel.Stats, block []byte) error {
	t := j.target
	if err := j.load(r.kernel, &r.plan.options); err != nil {
		return err
	}
	defer j.done()
	_, nCols := t.Matrix()
	if err := r.takeOut(w, j, block); err != nil {
		return err
	}
	recorded := r.records(t)
	if recorded {
		w.before = append(w.before[:0], block...)
	}
	if t.Replace != nil {
		if err := r.replaceBlock(w, j, st, block, nCols); err != nil {
			return err
		}
	}
	if err := j.merge(block, func(b *bandState) *update { return &b.forward }, st, w); err != nil {
		return err
	}
	if t.Rows != nil {
		if err := r.replaceRows(w, j, st, block, nCols); err != nil {
			return err
		}
	}
	if recorded {
		return r.record(w, j, w.before, block)
	}
	return nil
}

// replaceBlock fills a block with the adapter's values in place of the base's, rounded to the base's dtype.
func (r *run) replaceBlock(w *worker, j *job, st *kernel.Stats, block []byte, nCols int64) error {
	return r.replaceValues(w, j, st, j.target.Replace, j.row0*nCols, block)
}

// replaceRows puts the trained token rows that fall into a block in their place.
func (r *run) replaceRows(w *worker, j *job, st *kernel.Stats, block []byte, nCols int64) error {
	rows := j.target.Rows
	rowBytes := nCols * int64(j.target.ref.Tensor.DType.Size())
	for i, row := range rows.Order {
		if row < j.row0 || row >= j.row1 {
			continue
		}
		dst := block[(row-j.row0)*rowBytes : (row-j.row0+1)*rowBytes]
		if err := r.replaceValues(w, j, st, &rows.Blob, int64(i)*nCols, dst); err != nil {
			return err
		}
	}
	return nil
}

// replaceValues reads elements of a blob, from element first on, and stores them in dst as the target has them.
func (r *run) replaceValues(w *worker, j *job, st *kernel.Stats, b *resolve.Blob, first int64, dst []byte) error {
	d := j.target.ref.Tensor.DType
	if err := r.readAs(w, b, first, int64(len(dst)/d.Size()), d, dst); err != nil || !d.IsFloat() {
		return err
	}
	n := dtype.CountNonFinite(d, dst)
	if n > 0 && !r.plan.options.AllowNonFinite {
		return fault.New(fault.Check, "the adapter puts %d values that are NaN or infinite, as %v, into %q", n, d, j.target.ref.Tensor.Name).
			WithHint("the training of this adapter went wrong, or the base's dtype cannot hold its values; use an earlier checkpoint of it, or --allow-nonfinite")
	}
	st.NaNAfter += int64(n)
	return nil
}

// readAs reads n elements of a blob, from element first on, and stores them as d in dst.
func (r *run) readAs(w *worker, b *resolve.Blob, first, n int64, d dtype.Type, dst []byte) error {
	from := b.Tensor().DType
	size := int64(from.Size())
	if from == d {
		return b.Source.ReadBlobAt(dst, b.Index, first*size)
	}
	if int64(cap(w.other)) < n*size {
		w.other = make([]byte, n*size)
	}
	src := w.other[:n*size]
	if err := b.Source.ReadBlobAt(src, b.Index, first*size); err != nil {
		return err
	}
	for i := range int(n) {
		dtype.Store(d, dst, i, dtype.Load(from, src, i))
	}
	return nil
}
