package merge

import (
	"os"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
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
	d = &undo.Description{Tool: p.options.Tool, Files: []undo.File{}, Tensors: []undo.Tensor{}}
	for i := p.nRemoved; i < len(p.adapters); i++ {
		a := &p.adapters[i]
		d.Adapters = append(d.Adapters, undo.Adapter{Name: baseName(a.Name), Content: p.ids[i], Weight: a.Weight})
	}
	for i, f := range p.files {
		file := -1
		for _, t := range f.targets {
			if !t.changes() {
				continue
			}
			if file < 0 {
				file = len(d.Files)
				name := f.in.Name
				if !p.base.IsDir {
					name = ""
				}
				before := p.restored[i].raw
				d.Files = append(d.Files, undo.File{Name: name, Before: undo.HeaderOf(before), After: undo.HeaderOf(f.header)})
				headers = append(headers, before)
			}
			number[t] = len(d.Tensors)
			d.Tensors = append(d.Tensors, p.describeTensor(t, file))
		}
	}
	return d, headers
}

func (p *Plan) describeTensor(t *target, file int) undo.Tensor {
	tensor := t.ref.Tensor
	_, nCols := t.shape()
	d := undo.Tensor{Name: tensor.Name, File: file, DType: tensor.DType.String(), Shape: tensor.Shape, Block: max(1, p.blockRows(t)*nCols), Predict: undo.Same, Terms: []undo.Term{}}
	if t.predictable() {
		d.Predict = undo.Subtract
		for i := range t.terms {
			d.Terms = append(d.Terms, undo.Term{Adapter: t.terms[i].adapter - p.nRemoved, Module: t.terms[i].module, Scale: t.terms[i].scale})
		}
	}
	return d
}

// predictable reports whether subtracting comes near to the values before the merge.
func (t *target) predictable() bool { return len(t.terms) > 0 && t.replace == nil && t.rows == nil }

// record adds a block to the record: values before and after the merge.
func (r *run) record(w *worker, j *job, before, after []byte) error {
	t := j.target
	tensor := r.recording.tensors[t.target]
	predicted := after
	if t.predictable() {
		w.predicted = append(w.predicted[:0], after...)
		predicted = w.predicted
		t.back.merge(predicted, j.row0, &w.ignored, w)
	}
	return r.recording.writer.Add(&w.undo, tensor, j.row0/r.plan.blockRows(t.target), before, predicted, after)
}

// takeOut turns a block into what it was before the merges that are taken out.
func (r *run) takeOut(w *worker, j *job, block []byte) error {
	t := j.target
	restored := &r.taken[j.index]
	for i := range t.undo {
		s := &t.undo[i]
		if s.record == nil {
			restored.mayDiffer += r.subtract(w, j, &t.taken[i], &t.retake[i], block)
			continue
		}
		number := j.row0 / r.plan.blockRows(t.target)
		if err := s.record.CheckMerged(s.tensor, number, block); err != nil && i == 0 {
			return fault.InFile(err, r.plan.base.Path)
		} else if err != nil {
			return fault.InFile(err, s.name)
		}
		t.taken[i].merge(block, j.row0, &w.ignored, w)
		n, err := s.record.Restore(&w.undo, s.tensor, number, block)
		if err != nil {
			return fault.InFile(err, s.name)
		}
		restored.corrected += n
	}
	return nil
}

// subtract takes a merge out of a block as well as that is possible without a record, and counts the elements that may not be what
// they were: those for which a neighbour of the result would have been merged to the same value, or the result itself to another.
func (r *run) subtract(w *worker, j *job, taken, retake *update, block []byte) (mayDiffer int64) {
	width := j.target.ref.Tensor.DType.Size()
	merged := append(w.predicted[:0], block...)
	w.predicted = merged
	taken.merge(block, j.row0, &w.ignored, w)
	uncertain := make([]bool, len(block)/width)
	for steps := int64(-1); steps <= 1; steps++ {
		w.other = append(w.other[:0], block...)
		undo.Step(w.other, width, steps)
		retake.merge(w.other, j.row0, &w.ignored, w)
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
	return mayDiffer
}

// taken is what was done to a block when merges were taken out of it.
type taken struct {
	corrected int64 // predictions that a record has put right
	mayDiffer int64 // elements that may differ, without a record
}
