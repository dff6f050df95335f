package merge

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/undo"
)

// This file takes merges out of blocks, and records what it takes to do so. Both directions predict: p = RN(w′ − Σ), or p = w′ for
// a tensor whose values were replaced; the record says how far w is from p. As RN is mathematics, a prediction is the same at any
// time and on any machine.

// recording is the undo record of a merge in the making.
type recording struct {
	writer  *undo.Writer
	tensors map[*target]int // their numbers in the record
	spool   *os.File
	stage   *fileio.Stage // of the spool
}

// newRecording begins the record. The residuals wait beside out, under a hidden name, as their number is only known at the end.
func (p *Plan) newRecording(out string) (*recording, error) {
	stage, err := fileio.NewStage(out+".residuals", false)
	if err != nil {
		return nil, err
	}
	spool, err := stage.Create("", 0)
	if err != nil {
		stage.Abort()
		return nil, err
	}
	rec := &recording{tensors: make(map[*target]int), spool: spool, stage: stage}
	d, headers := p.describeMerge(rec.tensors)
	rec.writer = undo.NewWriter(d, headers, spool)
	return rec, nil
}

// close removes the spool.
func (rec *recording) close() {
	rec.spool.Close()
	rec.stage.Abort()
}

// describeMerge says what the plan puts in, and numbers the tensors that change.
func (p *Plan) describeMerge(number map[*target]int) (d *undo.Description, headers [][]byte) {
	d = &undo.Description{Tool: p.options.Tool, Reading: p.options.Reading.resolved().Texts(), Files: []undo.File{}, Tensors: []undo.Tensor{}}
	for i := p.nRemoved; i < len(p.adapters); i++ {
		a := &p.adapters[i]
		d.Adapters = append(d.Adapters, undo.Adapter{Name: baseName(a.Name), Content: p.ids[i], Weight: a.Weight})
	}
	for i, f := range p.files {
		file := undo.File{Name: p.nameOf(f), Before: p.restored[i].identity, After: p.restored[i].identity, Rest: []uint32{}}
		var before []byte // its header, where it changes
		for _, t := range f.targets {
			if !t.changes() {
				continue
			}
			if before == nil {
				before = p.restored[i].header.Raw
				file.After = undo.HeaderOf(f.header)
			}
			number[t] = len(d.Tensors)
			d.Tensors = append(d.Tensors, p.describeTensor(t, i))
		}
		d.Files, headers = append(d.Files, file), append(headers, before)
	}
	return d, headers
}

// finishDescription says of the tensors whose factors turned out not to be finite how they were predicted.
func (r *run) finishDescription() {
	d := r.recording.writer.Description()
	for t, i := range r.recording.tensors {
		if r.state[t].same {
			d.Tensors[i].Predict, d.Tensors[i].Terms = undo.Same, []undo.Term{}
		}
	}
}

// writeRecord completes the record and writes it. It reads the output, and changes nothing of it.
func (r *run) writeRecord(ctx context.Context) (*UndoReport, error) {
	r.finishDescription()
	if err := r.sumRest(ctx); err != nil {
		return nil, err
	}
	w := r.recording.writer
	summary, err := w.Write(ctx, r.recordWriter(), r.plan.options.Workers)
	if err != nil {
		return nil, err
	}
	return undoReport(w.Description(), summary), nil
}

// recordWriter is where the record goes.
func (r *run) recordWriter() io.Writer {
	switch undo := r.plan.options.Undo; {
	case r.undoFile == nil:
		return undo
	case undo == nil:
		return r.undoFile.buffer
	default:
		return io.MultiWriter(undo, r.undoFile.buffer)
	}
}

// sumRest adds to the record what identifies the data that the merge has not changed. They are read from the output.
func (r *run) sumRest(ctx context.Context) error {
	d := r.recording.writer.Description()
	var pieces []restPiece
	for i, f := range r.plan.files {
		var changed []undo.Range
		for _, t := range f.targets {
			if t.changes() {
				changed = append(changed, undo.Range{Off: t.ref.Tensor.Off + f.shift, N: t.ref.Tensor.NBytes})
			}
		}
		for k, g := range undo.Rest(f.in.DataOff+f.shift, f.size(), changed) {
			pieces = append(pieces, restPiece{i, k, g})
			d.Files[i].Rest = append(d.Files[i].Rest, 0)
		}
	}
	return r.eachRest(ctx, pieces, func(p *restPiece, buf []byte) error {
		out, err := os.Open(r.stage.Path(r.plan.nameOf(r.plan.files[p.file]))) // the file that was written may be closed
		if err != nil {
			return err
		}
		defer out.Close()
		d.Files[p.file].Rest[p.number], err = p.Sum(ctx, out, buf)
		return err
	})
}

// checkRest compares the data that the latest of the merges which are taken out has not changed with what its record says of them.
// What an earlier one has not changed has then been compared, too: its record begins where the later one ends.
func (r *run) checkRest(ctx context.Context) error {
	if len(r.plan.records) == 0 {
		return nil
	}
	latest := r.plan.records[0]
	changed := make([][]undo.Range, len(r.plan.files))
	for i := range latest.record.Tensors {
		ref, _ := r.plan.base.Lookup(latest.record.Tensors[i].Name) // addRecord has found it
		changed[ref.File] = append(changed[ref.File], undo.Range{Off: ref.Tensor.Off, N: ref.Tensor.NBytes})
	}
	var pieces []restPiece
	want := make([][]uint32, len(r.plan.files))
	for i := range latest.record.Files {
		file := r.plan.fileOf(latest.record, i)
		in := r.plan.base.Files[file]
		slices.SortFunc(changed[file], func(a, b undo.Range) int { return cmp.Compare(a.Off, b.Off) })
		ranges := undo.Rest(in.DataOff, in.Size, changed[file])
		if want[file] = latest.record.Files[i].Rest; len(want[file]) != len(ranges) {
			return &fault.Error{Kind: fault.Corrupt, Rule: undo.RuleRest, Path: latest.Name,
				Msg: fmt.Sprintf("%d sums for the %d pieces of %q that the merge has not changed", len(want[file]), len(ranges), in.Name)}
		}
		for k, g := range ranges {
			pieces = append(pieces, restPiece{file, k, g})
		}
	}
	return r.eachRest(ctx, pieces, func(p *restPiece, buf []byte) error {
		in := r.plan.base.Files[p.file]
		sum, err := p.Sum(ctx, in.ReaderAt(ctx), buf)
		if err != nil || sum == want[p.file][p.number] {
			return fault.InFile(err, in.Path)
		}
		e := fault.New(fault.Mismatch, "bytes %d to %d, from %q on, which the merge has not changed, have the CRC-32 %08x, the record says %08x",
			p.Off, p.Off+p.N-1, in.TensorAt(p.Off), sum, want[p.file][p.number]).In(in.Path)
		e.Rule = undo.RuleValues
		return e.WithHint("the checkpoint was changed after the merge, or damaged; only an unchanged one can be taken back exactly")
	})
}

// restPiece is a range of a file that a merge does not change.
type restPiece struct {
	file, number int
	undo.Range
}

// eachRest calls f for every piece, with a worker's memory.
func (r *run) eachRest(ctx context.Context, pieces []restPiece, f func(p *restPiece, buf []byte) error) error {
	workers := min(parallel.Workers(r.plan.options.Workers), len(pieces))
	bufs := make([][]byte, workers)
	return parallel.For(ctx, workers, len(pieces), func(w, i int) error {
		if bufs[w] == nil {
			bufs[w] = make([]byte, defaultBlockBytes)
		}
		return f(&pieces[i], bufs[w])
	})
}

func (p *Plan) describeTensor(t *target, file int) undo.Tensor {
	tensor := t.ref.Tensor
	d := undo.Tensor{Name: tensor.Name, File: file, DType: tensor.DType.String(), Shape: append([]uint64{}, tensor.Shape...), Block: p.recordBlock(t), Predict: undo.Same, Terms: []undo.Term{}}
	if t.predictable() {
		d.Predict = undo.Subtract
		for i := range t.Terms {
			d.Terms = append(d.Terms, undo.Term{Adapter: t.Terms[i].Adapter, Module: t.Terms[i].Module, Scale: t.Terms[i].Scale, Transposed: t.Terms[i].Transposed})
		}
	}
	return d
}

// predictable reports whether subtracting comes near to the values before the merge.
func (t *target) predictable() bool {
	return len(t.Terms) > 0 && t.DoRA == nil && !t.HasResidual() && t.Replace == nil && t.Rows == nil
}

// record adds a block to the record: values before and after the merge.
func (r *run) record(w *worker, j *job, before, after []byte) error {
	t := j.target
	tensor := r.recording.tensors[t.target]
	predicted := after
	if !t.same {
		w.predicted = append(w.predicted[:0], after...)
		predicted = w.predicted
		if err := j.merge(predicted, func(b *bandState) *update { return &b.back }, &w.ignored, w); err != nil {
			return err
		}
	}
	return j.eachBlock(r.plan.recordBlock(t.target), func(number int64, of func([]byte) []byte) error {
		return r.recording.writer.Add(&w.undo, tensor, number, of(before), of(predicted), of(after))
	})
}

// eachBlock calls f for the blocks of a record that the job's rows consist of, with their numbers; of picks the block from the
// bytes of the rows.
func (j *job) eachBlock(elements int64, f func(number int64, of func([]byte) []byte) error) error {
	_, nCols := j.target.Matrix()
	size := int64(j.target.ref.Tensor.DType.Size())
	first, end := j.row0*nCols, j.row1*nCols
	for at := first; at < end; at += elements {
		from, to := (at-first)*size, (min(at+elements, end)-first)*size
		if err := f(at/elements, func(p []byte) []byte { return p[from:to] }); err != nil {
			return err
		}
	}
	return nil
}

// takeOut turns a block into what it was before the merges that are taken out.
func (r *run) takeOut(w *worker, j *job, block []byte) error {
	t := j.target
	restored := &r.taken[j.index]
	for i := range t.undo {
		s := &t.undo[i]
		if s.record == nil {
			n, err := r.subtract(w, j, i, block)
			if err != nil {
				return err
			}
			restored.mayDiffer += n
			continue
		}
		elements := s.record.Tensors[s.tensor].Block
		err := j.eachBlock(elements, func(number int64, of func([]byte) []byte) error {
			return s.record.CheckMerged(s.tensor, number, of(block))
		})
		if err != nil && i == 0 {
			return fault.InFile(err, r.plan.base.Files[t.ref.File].Path)
		} else if err != nil {
			return fault.InFile(err, s.name)
		}
		if err := j.merge(block, func(b *bandState) *update { return &b.taken[i] }, &w.ignored, w); err != nil {
			return err
		}
		err = j.eachBlock(elements, func(number int64, of func([]byte) []byte) error {
			n, err := s.record.Restore(&w.undo, s.tensor, number, of(block))
			restored.corrected += n
			return err
		})
		if err != nil {
			return fault.InFile(err, s.name)
		}
	}
	return nil
}

// subtract takes a merge out of a block as well as that is possible without a record, and counts the elements that may not be what
// they were: those for which a neighbour of the result would have been merged to the same value, or the result itself to another.
func (r *run) subtract(w *worker, j *job, step int, block []byte) (mayDiffer int64, err error) {
	width := j.target.ref.Tensor.DType.Size()
	merged := append(w.predicted[:0], block...)
	w.predicted = merged
	if err := j.merge(block, func(b *bandState) *update { return &b.taken[step] }, &w.ignored, w); err != nil {
		return 0, err
	}
	uncertain := make([]bool, len(block)/width)
	for steps := int64(-1); steps <= 1; steps++ {
		w.other = append(w.other[:0], block...)
		undo.Step(w.other, width, steps)
		if err := j.merge(w.other, func(b *bandState) *update { return &b.retake[step] }, &w.ignored, w); err != nil {
			return 0, err
		}
		for i := range uncertain {
			same := string(w.other[i*width:(i+1)*width]) == string(merged[i*width:(i+1)*width])
			if same != (steps == 0) {
				uncertain[i] = true
			}
		}
	}
	for _, u := range uncertain {
		if u {
			mayDiffer++
		}
	}
	return mayDiffer, nil
}

// taken is what was done to a block when merges were taken out of it.
type taken struct {
	corrected int64 // predictions that a record has put right
	mayDiffer int64 // elements that may differ, without a record
}
