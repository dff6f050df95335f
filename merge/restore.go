package merge

import (
	"context"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/undo"
)

// newRemoval returns the operation that removes a merge. first marks the latest merge, whose values
// are the checkpoint's.
func newRemoval(t *target, s *step, first bool, k *tools) operation {
	take := newAdd(t, s.terms, k, true) // the merge had accepted NaN
	if s.record == nil {
		return &subtract{add: take, put: take.inverse()}
	}
	return &restore{add: take, step: s, first: first}
}

// restore removes a merge with its undo record. Record and removal predict p = RN(w′ − Σ), or p =
// w′ for replaced values, and the record holds the distance from p to w. RN is mathematics, so
// every machine predicts the same p.
type restore struct {
	*add
	step  *step
	first bool
}

func (r *restore) apply(ctx context.Context, b *block, w *worker) error {
	record, tensor := r.step.record, r.step.tensor
	elements := record.Tensors[tensor].Block
	err := b.eachPiece(elements, r.t.Elements(), func(number int64, of func([]byte) []byte) error {
		return record.CheckMerged(tensor, number, of(b.data))
	})
	if err != nil && r.first {
		return fault.InFile(err, r.k.plan.base.Files[r.t.ref.File].Path)
	} else if err != nil {
		return fault.InFile(err, r.step.name)
	}
	if err := r.add.apply(ctx, b.ignored(w), w); err != nil {
		return err
	}
	err = b.eachPiece(elements, r.t.Elements(), func(number int64, of func([]byte) []byte) error {
		n, err := record.Restore(&w.undo, tensor, number, of(b.data))
		b.taken.corrected += n
		return err
	})
	return fault.InFile(err, r.step.name)
}

// subtract removes a merge without a record, as exactly as subtraction can.
type subtract struct {
	*add
	put operation // the inverse
}

// apply subtracts, and counts uncertain elements. An element is uncertain if the result merges to a
// value other than the one stored, or if a neighbour of the result merges to the same one.
func (s *subtract) apply(ctx context.Context, b *block, w *worker) error {
	width := s.t.DType.Size()
	merged := append(w.predicted[:0], b.data...)
	w.predicted = merged
	if err := s.add.apply(ctx, b.ignored(w), w); err != nil {
		return err
	}
	uncertain := make([]bool, len(b.data)/width)
	for steps := int64(-1); steps <= 1; steps++ {
		w.other = append(w.other[:0], b.data...)
		undo.Step(w.other, width, steps)
		if err := s.put.apply(ctx, b.ignored(w).of(w.other), w); err != nil {
			return err
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
			b.taken.mayDiffer++
		}
	}
	return nil
}

// ignored returns the block for an operation whose statistics do not count.
func (b *block) ignored(w *worker) *block {
	other := *b
	other.stats = &w.ignored
	return &other
}

// of returns the block with other values.
func (b *block) of(data []byte) *block {
	other := *b
	other.data = data
	return &other
}

// eachPiece calls f for every block of the record within these rows, with the block's number. A
// block has so many elements, and the record covers the first total ones of the tensor. The
// argument of selects the block's bytes from the bytes of the rows.
func (b *block) eachPiece(elements, total int64, f func(number int64, of func([]byte) []byte) error) error {
	_, nCols := b.t.Matrix()
	size := int64(b.t.DType.Size())
	first, end := b.row0*nCols, min(b.row1*nCols, total)
	for at := first; at < end; at += elements {
		from, to := (at-first)*size, (min(at+elements, end)-first)*size
		if err := f(at/elements, func(p []byte) []byte { return p[from:to] }); err != nil {
			return err
		}
	}
	return nil
}
