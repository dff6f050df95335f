package merge

import (
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/undo"
)

// newRemoval is the operation that takes a merge out; first says that it is the latest one, whose
// values are those of the checkpoint.
func newRemoval(t *target, s *step, first bool, k *tools) operation {
	take := newAdd(t, s.terms, k, true) // what was put in is taken out
	if s.record == nil {
		return &subtract{add: take, put: take.inverse()}
	}
	return &restore{add: take, step: s, first: first}
}

// restore takes a merge out with its undo record: both predict p = RN(w′ − Σ), or p = w′ for a
// tensor whose values were replaced, and the record says how far w is from p. As RN is mathematics,
// a prediction is the same at any time and on any machine.
type restore struct {
	*add
	step  *step
	first bool
}

func (r *restore) apply(b *block, w *worker) error {
	record, tensor := r.step.record, r.step.tensor
	elements := record.Tensors[tensor].Block
	err := b.eachPiece(elements, func(number int64, of func([]byte) []byte) error {
		return record.CheckMerged(tensor, number, of(b.data))
	})
	if err != nil && r.first {
		return fault.InFile(err, r.k.plan.base.Files[r.t.ref.File].Path)
	} else if err != nil {
		return fault.InFile(err, r.step.name)
	}
	if err := r.add.apply(b.ignored(w), w); err != nil {
		return err
	}
	err = b.eachPiece(elements, func(number int64, of func([]byte) []byte) error {
		n, err := record.Restore(&w.undo, tensor, number, of(b.data))
		b.taken.corrected += n
		return err
	})
	return fault.InFile(err, r.step.name)
}

// subtract takes a merge out as well as that is possible without a record.
type subtract struct {
	*add
	put operation // the inverse
}

// apply subtracts, and counts the elements that may not be what they were: those for which a
// neighbour of the result would have been merged to the same value, or the result itself to
// another.
func (s *subtract) apply(b *block, w *worker) error {
	width := s.t.DType.Size()
	merged := append(w.predicted[:0], b.data...)
	w.predicted = merged
	if err := s.add.apply(b.ignored(w), w); err != nil {
		return err
	}
	uncertain := make([]bool, len(b.data)/width)
	for steps := int64(-1); steps <= 1; steps++ {
		w.other = append(w.other[:0], b.data...)
		undo.Step(w.other, width, steps)
		if err := s.put.apply(b.ignored(w).of(w.other), w); err != nil {
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

// ignored is the block for an operation whose statistics are of no interest.
func (b *block) ignored(w *worker) *block {
	other := *b
	other.stats = &w.ignored
	return &other
}

// of is the block with other values.
func (b *block) of(data []byte) *block {
	other := *b
	other.data = data
	return &other
}

// eachPiece calls f for the blocks of a record that the rows consist of, with their numbers; of
// picks the piece from the bytes of the rows.
func (b *block) eachPiece(elements int64, f func(number int64, of func([]byte) []byte) error) error {
	_, nCols := b.t.Matrix()
	size := int64(b.t.DType.Size())
	first, end := b.row0*nCols, b.row1*nCols
	for at := first; at < end; at += elements {
		from, to := (at-first)*size, (min(at+elements, end)-first)*size
		if err := f(at/elements, func(p []byte) []byte { return p[from:to] }); err != nil {
			return err
		}
	}
	return nil
}
