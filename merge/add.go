package merge

import (
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
)

// add adds terms to a tensor: out = RN(w + Σ S·L·R).
type add struct {
	t         *target
	k         *tools
	tolerant  bool             // factors may hold NaN and infinity
	terms     [][]resolve.Term // of each band
	loaded    []sum            // of each band
	isInverse bool             // the inverse is wanted as well
}

// sum is Σ S·L·R of a band, made ready for a kernel, in the arithmetic that the tensor needs. The zero
// value adds nothing.
type sum struct {
	narrow, narrowBack *kernel.Update[float32]
	broad, broadBack   *kernel.Update[float64]
	nonFinite          int // values of the factors
}

func newAdd(t *target, terms []resolve.Term, k *tools, tolerant bool) *add {
	return &add{t: t, k: k, tolerant: tolerant, terms: byBand(terms, t.NBands), loaded: make([]sum, t.NBands)}
}

func (a *add) load(band int) (err error) {
	s, terms := &a.loaded[band], a.terms[band]
	switch {
	case len(terms) == 0:
	case isWide(a.t, terms):
		s.broad, s.nonFinite, err = prepare[float64](a, terms)
	default:
		s.narrow, s.nonFinite, err = prepare[float32](a, terms)
	}
	if err != nil || !a.isInverse {
		return err
	}
	if s.narrow != nil {
		s.narrowBack = s.narrow.Negative()
	}
	if s.broad != nil {
		s.broadBack = s.broad.Negative()
	}
	return nil
}

func (a *add) drop(band int) { a.loaded[band] = sum{} }

func (a *add) apply(b *block, w *worker) error {
	return b.eachBand(func(band int, row0 int64, rows []byte) error {
		switch s := &a.loaded[band]; {
		case s.narrow != nil:
			s.narrow.Merge(rows, int(row0), b.stats, &w.narrow)
		case s.broad != nil:
			s.broad.Merge(rows, int(row0), b.stats, &w.broad)
		}
		return nil
	})
}

func (a *add) bytes(band int) int64 {
	wide := isWide(a.t, a.terms[band])
	n := bytesOfTerms(a.t, a.terms[band], wide)
	if a.isInverse {
		n += kernel.NegativeBytes(a.t.DType, wide, a.t.bandRows(), rankOf(a.terms[band]))
	}
	return n
}

// inverse is the operation that takes out what an add puts in. The two share what they have loaded.
func (a *add) inverse() operation {
	a.isInverse = true
	return &inverse{of: a}
}

type inverse struct {
	loadless
	of *add
}

func (i *inverse) apply(b *block, w *worker) error {
	return b.eachBand(func(band int, row0 int64, rows []byte) error {
		switch s := &i.of.loaded[band]; {
		case s.narrowBack != nil:
			s.narrowBack.Merge(rows, int(row0), b.stats, &w.narrow)
		case s.broadBack != nil:
			s.broadBack.Merge(rows, int(row0), b.stats, &w.broad)
		}
		return nil
	})
}

// isWide reports whether the fast pass of some terms has to run in float64: for float32 and float64
// results, for float64 factors, and for what is computed from the base in float64.
func isWide(t *target, terms []resolve.Term) bool {
	if t.DType == dtype.F32 || t.DType == dtype.F64 {
		return true
	}
	for i := range terms {
		x := &terms[i]
		if x.Residual != resolve.NoResidual {
			return true
		}
		for _, f := range []resolve.Factor{x.Left, x.Right} {
			if f.Source != nil && f.Tensor().DType == dtype.F64 {
				return true
			}
		}
	}
	return false
}

// bytesOfTerms is the memory of some terms of a band: what the kernel makes of their factors, and of a
// residual the whole weight and some vectors of both sides for each singular vector.
func bytesOfTerms(t *target, terms []resolve.Term, wide bool) int64 {
	_, nCols := t.Matrix()
	n := kernel.UpdateBytes(t.DType, wide, t.bandRows(), nCols, rankOf(terms))
	for _, x := range terms {
		if x.Residual != resolve.NoResidual {
			n += t.bandRows()*nCols*int64(dtype.F32.Size()) + 16*int64(x.Rank)*(t.bandRows()+nCols)*int64(dtype.F64.Size())
		}
	}
	return n
}

// rankOf is the rank of terms together.
func rankOf(terms []resolve.Term) (n int64) {
	for _, x := range terms {
		n += int64(x.Rank)
	}
	return n
}

// wordBytes is the size of a number in the arithmetic of a fast pass.
func wordBytes(wide bool) int64 {
	if wide {
		return int64(dtype.F64.Size())
	}
	return int64(dtype.F32.Size())
}

func prepare[T kernel.Float](a *add, terms []resolve.Term) (*kernel.Update[T], int, error) {
	_, nCols := a.t.Matrix()
	loaded, nonFinite, err := loadTerms[T](a.t, terms, a.k, a.tolerant)
	if err != nil {
		return nil, 0, err
	}
	return kernel.Prepare(a.k.kernel, a.t.DType, int(a.t.bandRows()), int(nCols), loaded), nonFinite, nil
}

// loadTerms reads the factors of the terms of one band, and counts their values that are not finite.
func loadTerms[T kernel.Float](t *target, terms []resolve.Term, k *tools, tolerant bool) (loaded []kernel.Term[T], nonFinite int, err error) {
	nRows := int(t.bandRows())
	_, n := t.Matrix()
	nCols := int(n)
	loaded = make([]kernel.Term[T], len(terms))
	for i := range terms {
		x := &terms[i]
		if x.Residual != resolve.NoResidual {
			if loaded[i], err = loadResidual[T](t, x, k); err != nil {
				return nil, 0, err
			}
			continue
		}
		l, r := make([]T, nRows*x.Rank), make([]T, x.Rank*nCols)
		badL, err := loadFactor(l, x.Left, x.Rank, nRows, 1, x.Rank, k.shelf)
		if err != nil {
			return nil, 0, err
		}
		badR, err := loadFactor(r, x.Right, x.Rank, nCols, nCols, 1, k.shelf)
		if err != nil {
			return nil, 0, err
		}
		nonFinite += badL + badR
		if n := badL + badR; n > 0 && !tolerant {
			return nil, 0, fault.New(fault.Check, "the factors of %q hold %d values that are NaN or infinite", x.Module, n).
				WithHint("the training of this adapter went wrong; use an earlier checkpoint of it, or set Options.AllowNonFinite")
		}
		loaded[i] = kernel.Term[T]{S: x.Scale, Rank: x.Rank, L: l, R: r}
	}
	return loaded, nonFinite, nil
}
