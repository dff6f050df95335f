package merge

import (
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
)

// running is a target while a merge runs.
type running struct {
	*target
	bands []bandState
	same  bool                // a record predicts the merged values themselves, as there is no subtracting
	norms *kernel.ColumnNorms // for DoRA, from measure
	shelf *shelf
	file  *outFile
}

// bandState is a band of a running target. Its factors are loaded by the first worker that needs them and dropped when its last block
// is done.
type bandState struct {
	once    sync.Once
	err     error
	left    atomic.Int64 // blocks to go
	forward update
	back    update   // −forward, for a record
	taken   []update // of each step
	retake  []update // −taken, for steps without a record
}

// update is what a merge adds to a tensor: none, or one in the arithmetic that the tensor needs.
type update struct {
	narrow  *kernel.Update[float32]
	broad   *kernel.Update[float64]
	rescale *kernel.Rescaled // DoRA
}

// merge adds the update to a block of rows.
func (u *update) merge(block []byte, row0 int64, st *kernel.Stats, w *worker) error {
	switch {
	case u.broad != nil:
		u.broad.Merge(block, int(row0), st, &w.broad)
	case u.narrow != nil:
		u.narrow.Merge(block, int(row0), st, &w.narrow)
	case u.rescale != nil:
		return u.rescale.Merge(block, int(row0), st, &w.rescale)
	}
	return nil
}

// negative is what takes the update out again, where that is a subtraction.
func (u *update) negative() update {
	switch {
	case u.broad != nil:
		return update{broad: u.broad.Negative()}
	case u.narrow != nil:
		return update{narrow: u.narrow.Negative()}
	}
	return update{}
}

// load reads the factors that a job needs.
func (j *job) load(k *kernel.Kernel, o *Options) error {
	first, last := j.bands()
	for band := first; band <= last; band++ {
		if err := j.target.load(band, k, o); err != nil {
			return err
		}
	}
	return nil
}

func (t *running) load(band int, k *kernel.Kernel, o *Options) error {
	b := &t.bands[band]
	b.once.Do(func() {
		var nonFinite int
		if t.DoRA != nil {
			b.forward.rescale, b.err = t.loadRescaled(o.AllowNonFinite)
		} else {
			b.forward, nonFinite, b.err = t.loadUpdate(k, ofBand(t.Terms, band), o.AllowNonFinite)
		}
		if b.err != nil {
			return
		}
		// The bits of a NaN that comes out of a sum differ between processors.
		if nonFinite > 0 && len(t.bands) == 1 {
			t.same = true
		}
		if !t.same && o.wantsRecord() {
			b.back = b.forward.negative()
		}
		for i := range t.undo {
			taken, _, err := t.loadUpdate(k, ofBand(t.undo[i].terms, band), true) // what was put in is taken out
			if err != nil {
				b.err = err
				return
			}
			b.taken = append(b.taken, taken)
			if t.undo[i].record == nil {
				b.retake = append(b.retake, taken.negative())
			}
		}
	})
	return b.err
}

// done drops the factors of bands of which this was the last block.
func (j *job) done() {
	first, last := j.bands()
	for band := first; band <= last; band++ {
		b := &j.target.bands[band]
		if b.left.Add(-1) == 0 {
			b.forward, b.back, b.taken, b.retake = update{}, update{}, nil, nil
			j.target.shelf.drop(j.target, band)
		}
	}
}

// merge adds an update of every band to the rows of a block that are the band's.
func (j *job) merge(block []byte, which func(*bandState) *update, st *kernel.Stats, w *worker) error {
	rowBytes := int64(len(block)) / (j.row1 - j.row0)
	height := j.target.bandRows()
	for row := j.row0; row < j.row1; {
		band := row / height
		end := min(j.row1, (band+1)*height)
		err := which(&j.target.bands[band]).merge(block[(row-j.row0)*rowBytes:(end-j.row0)*rowBytes], row-band*height, st, w)
		if err != nil {
			return err
		}
		row = end
	}
	return nil
}

// loadUpdate reads the factors of some terms, and counts their values that are not finite.
func (t *running) loadUpdate(k *kernel.Kernel, terms []resolve.Term, allowNonFinite bool) (u update, nonFinite int, err error) {
	switch {
	case len(terms) == 0:
	case t.wide(terms):
		u.broad, nonFinite, err = prepare[float64](k, t, terms, allowNonFinite)
	default:
		u.narrow, nonFinite, err = prepare[float32](k, t, terms, allowNonFinite)
	}
	return u, nonFinite, err
}

func prepare[T kernel.Float](k *kernel.Kernel, t *running, terms []resolve.Term, allowNonFinite bool) (u *kernel.Update[T], nonFinite int, err error) {
	_, nCols := t.Matrix()
	loaded, nonFinite, err := loadTerms[T](t, terms, allowNonFinite)
	if err != nil {
		return nil, 0, err
	}
	return kernel.Prepare(k, t.ref.Tensor.DType, int(t.bandRows()), int(nCols), loaded), nonFinite, nil
}

func loadTerms[T kernel.Float](t *running, terms []resolve.Term, allowNonFinite bool) (loaded []kernel.Term[T], nonFinite int, err error) {
	nRows := int(t.bandRows())
	_, n := t.Matrix()
	nCols := int(n)
	loaded = make([]kernel.Term[T], len(terms))
	for i := range terms {
		term := &terms[i]
		if term.Residual != resolve.NoResidual {
			if loaded[i], err = loadResidual[T](t, term); err != nil {
				return nil, 0, err
			}
			continue
		}
		l, r := make([]T, nRows*term.Rank), make([]T, term.Rank*nCols)
		badL, err := loadFactor(l, term.Left, term.Rank, nRows, 1, term.Rank, t.shelf)
		if err != nil {
			return nil, 0, err
		}
		badR, err := loadFactor(r, term.Right, term.Rank, nCols, nCols, 1, t.shelf)
		if err != nil {
			return nil, 0, err
		}
		nonFinite += badL + badR
		if n := badL + badR; n > 0 && !allowNonFinite {
			return nil, 0, fault.New(fault.Check, "the factors of %q hold %d values that are NaN or infinite", term.Module, n).
				WithHint("the training of this adapter went wrong; use an earlier checkpoint of it, or --allow-nonfinite")
		}
		loaded[i] = kernel.Term[T]{S: term.Scale, Rank: term.Rank, L: l, R: r}
	}
	return loaded, nonFinite, nil
}
