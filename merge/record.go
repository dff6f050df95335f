package merge

import (
	"bufio"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// record runs the operations that change a tensor and writes the data for undoing them: checksums
// before and after, and the errors of the inverse's prediction.
type record struct {
	t      *target
	k      *tools
	change []operation
	added  *add      // the change, if subtracting it nearly restores the values; else nil
	back   operation // inverse of added
	number int       // the tensor's number in the record
	shape  []uint64  // the tensor's shape before the change; it may have more rows now

	// isSame means that the record predicts the merged values themselves. Subtraction is useless
	// where factors hold NaN, since the NaN bits of a sum differ between processors.
	isSame bool
}

// newRecord decides how the record predicts the values before the change. Only a plain sum can be
// subtracted: replaced values are gone, DoRA has rescaled them, and a residual P needs the base
// that it was computed from. These are stored as differences from the merged values.
func newRecord(t *target, change []operation, shape []uint64, k *tools) *record {
	r := &record{t: t, k: k, change: change, shape: shape, isSame: true}
	hasGrown := !slices.Equal(shape, t.Shape)
	if a, ok := change[0].(*add); ok && len(change) == 1 && !t.HasResidual() && !hasGrown {
		r.added, r.back = a, a.inverse()
		r.isSame = t.NBands > 1 && k.plan.options.AllowNonFinite // a single band finds out when it loads
	}
	if k.recording != nil {
		r.number = k.recording.add(r)
	}
	return r
}

// load loads the change. NaN or infinity in the factors of a single band make the record predict
// the merged values; with several bands another band may already have been written.
func (r *record) load(ctx context.Context, band int) error {
	if err := loadAll(ctx, r.change, band); err != nil {
		return err
	}
	if r.added != nil && r.added.loaded[band].nonFinite > 0 && r.t.NBands == 1 {
		r.isSame = true
	}
	return nil
}

func (r *record) drop(band int) {
	for _, op := range r.change {
		op.drop(band)
	}
}

func (r *record) bytes(band int) int64 { return bytesOf(r.change, band) }

// apply keeps the values before the change, changes the rows, and adds the difference between the
// prediction and the values before to the record, piece by piece.
func (r *record) apply(ctx context.Context, b *block, w *worker) error {
	if r.isFused(b) {
		return r.applyFused(ctx, b, w)
	}
	w.before = append(w.before[:0], b.data...)
	if err := applyAll(ctx, r.change, b, w); err != nil {
		return err
	}
	predicted := b.data
	if !r.isSame {
		w.predicted = append(w.predicted[:0], b.data...)
		predicted = w.predicted
		if err := r.back.apply(ctx, b.ignored(w).of(predicted), w); err != nil {
			return err
		}
	}
	return b.eachPiece(recordBlock(r.t), r.elements(), func(number int64, of func([]byte) []byte) error {
		return r.k.recording.writer.Add(&w.undo, r.number, number, of(w.before), of(predicted), of(b.data))
	})
}

// elements returns the number of elements that the record covers: those from before the merge.
func (r *record) elements() int64 {
	n, _ := dtype.NElements(r.shape)
	return int64(n)
}

// isFused reports whether one pass of a kernel can both merge the rows and predict their values.
func (r *record) isFused(b *block) bool {
	if r.isSame || r.t.NBands > 1 || r.t.exact != nil {
		return false
	}
	return r.added.loaded[0].recording.Takes(b.data)
}

// applyFused is apply in one pass.
func (r *record) applyFused(ctx context.Context, b *block, w *worker) error {
	_, nCols := b.t.Matrix()
	elements := recordBlock(r.t)
	recording := r.added.loaded[0].recording
	return b.eachPiece(elements, r.elements(), func(number int64, of func([]byte) []byte) error {
		data := of(b.data)
		before := undo.Sum(data)
		if err := recording.Merge(ctx, data, int(number*elements/nCols), b.stats, &w.narrow, &w.residuals); err != nil {
			return err
		}
		return r.k.recording.writer.AddResiduals(&w.undo, r.number, number, before, w.residuals.Differs, w.residuals.Z, data)
	})
}

// describe returns the record's entry for the tensor, which lies in the given file.
func (r *record) describe(file int) undo.Tensor {
	d := undo.Tensor{
		Name: r.t.Name, File: file, DType: r.t.DType.String(), Shape: append([]uint64{}, r.shape...),
		Block: recordBlock(r.t), Predict: undo.Same, Terms: []undo.Term{},
	}
	if r.added == nil {
		return d
	}
	d.Predict = undo.Subtract
	for _, x := range r.t.Terms {
		d.Terms = append(d.Terms, undo.Term{Adapter: x.Adapter, Module: x.Module, Scale: x.Scale, Transposed: x.Transposed})
	}
	return d
}

// begin describes the merge once all tensors have been added in the order of the files. The spool
// holds the residuals, because their number is known only at the end.
func (r *recording) begin(ctx context.Context, spool undo.Spool) error {
	p := r.plan
	before, err := formerOf(ctx, p)
	if err != nil {
		return err
	}
	d := &undo.Description{
		Tool: p.options.Tool, Reading: resolve.Reading(p.options.Reading).Texts(), Files: before.files, Tensors: []undo.Tensor{}, Side: before.side,
	}
	for i, a := range p.adapters {
		d.Adapters = append(d.Adapters, undo.Adapter{Name: baseName(a.Name), Content: p.ids[i], Weight: a.Weight})
	}
	next := 0
	for i, f := range p.files {
		var changed []undo.Range
		for ; next < len(r.tensors) && r.tensors[next].t.ref.File == i; next++ {
			t := r.tensors[next]
			d.Tensors = append(d.Tensors, t.describe(i))
			changed = append(changed, undo.Range{Off: t.t.ref.Tensor.Off, N: t.elements() * int64(t.t.DType.Size())})
		}
		r.sums = append(r.sums, undo.NewSums(f.in.DataOff, f.in.Size, changed))
	}
	r.writer = undo.NewWriter(d, before.Before, spool)
	return nil
}

// write completes the record and writes it to dst.
func (r *recording) write(ctx context.Context, dst io.Writer) (*UndoReport, error) {
	d := r.writer.Description()
	for i, t := range r.tensors {
		if t.isSame { // load has found NaN in the factors
			d.Tensors[i].Predict, d.Tensors[i].Terms = undo.Same, []undo.Term{}
		}
	}
	for i, s := range r.sums {
		sums, err := s.Finish()
		if err != nil {
			return nil, err
		}
		d.Files[i].Rest = append(d.Files[i].Rest, sums...)
	}
	summary, err := r.writer.Write(ctx, dst, r.plan.options.Workers)
	if err != nil {
		return nil, err
	}
	return undoReport(d, summary), nil
}

// recordFile is an undo record being written.
type recordFile struct {
	file   output.File
	buffer *bufio.Writer
}

// newRecordFile creates a record that appears with the output. Its permissions are those common to
// all weight files, because it reveals the weights.
func newRecordFile(out *output.Disk, path string, base *checkpoint.Checkpoint) (*recordFile, error) {
	var info output.Info
	for i, f := range base.Files {
		if mode := f.Like().Mode; i == 0 {
			info.Mode = mode
		} else {
			info.Mode &= mode
		}
	}
	f, err := out.CreateAt(path, info)
	if err != nil {
		return nil, err
	}
	return &recordFile{f, bufio.NewWriterSize(io.NewOffsetWriter(f, 0), 1<<20)}, nil
}

// close flushes the record to disk, so that a full disk shows before the output appears.
func (f *recordFile) close() error {
	if f == nil {
		return nil
	}
	return errors.Join(f.buffer.Flush(), f.file.Close())
}

// recordWriter combines the record's destinations.
func recordWriter(p *Plan, f *recordFile) io.Writer {
	switch undo := p.options.Undo; {
	case f == nil:
		return undo
	case undo == nil:
		return f.buffer
	default:
		return io.MultiWriter(undo, f.buffer)
	}
}
