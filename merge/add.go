package merge

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
)

// add adds the terms of adapters to a tensor: out = RN(w + Σ S·L·R).
type add struct {
	t         *target
	k         *tools
	tolerant  bool             // factors may hold NaN and infinity
	terms     [][]resolve.Term // by band
	loaded    []sum            // by band
	isInverse bool             // also prepare the inverse
}

// sum is Σ S·L·R of one band, packed for a kernel in float32 or float64. The zero value adds
// nothing.
type sum struct {
	narrow, narrowBack *kernel.Update[float32]
	broad, broadBack   *kernel.Update[float64]
	recording          *kernel.Recording[float32] // of narrow and narrowBack, or nil
	nonFinite          int                        // number of NaN and infinite values in the factors
}

func newAdd(t *target, terms []resolve.Term, k *tools, tolerant bool) *add {
	return &add{t: t, k: k, tolerant: tolerant, terms: byBand(terms, t.NBands), loaded: make([]sum, t.NBands)}
}

// load packs the terms of one band in the narrowest arithmetic that suffices, and their negative
// for the record.
func (a *add) load(ctx context.Context, band int) (err error) {
	s, terms := &a.loaded[band], a.terms[band]
	switch {
	case len(terms) == 0 && a.t.exact == nil:
	case isWide(a.t, terms):
		s.broad, s.nonFinite, err = prepare[float64](ctx, a, terms)
	default:
		s.narrow, s.nonFinite, err = prepare[float32](ctx, a, terms)
	}
	if err != nil || !a.isInverse {
		return err
	}
	if s.narrow != nil {
		if s.narrowBack, err = s.narrow.Negative(ctx); err == nil {
			s.recording = kernel.NewRecording(s.narrow, s.narrowBack)
		}
	}
	if s.broad != nil {
		s.broadBack, err = s.broad.Negative(ctx)
	}
	return err
}

func (a *add) drop(band int) { a.loaded[band] = sum{} }

func (a *add) apply(ctx context.Context, b *block, w *worker) error {
	if a.t.exact != nil {
		return a.applyDecoded(ctx, b, w)
	}
	return b.eachBand(func(band int, row0 int64, rows []byte) error {
		switch s := &a.loaded[band]; {
		case s.narrow != nil:
			return s.narrow.Merge(ctx, rows, int(row0), b.stats, &w.narrow)
		case s.broad != nil:
			return s.broad.Merge(ctx, rows, int(row0), b.stats, &w.broad)
		}
		return nil
	})
}

// A decoded weight is merged in parts of decodedElements values, which the second-level cache
// holds, but of at least decodedRows rows, as micro-kernels take several, and of more if they are
// cheaper to decode together.
const (
	decodedElements = 1 << 15
	decodedRows     = 8
)

// applyDecoded is apply for a weight whose values are decoded: out = RN(w + Σ S·L·R), with w in
// float64.
func (a *add) applyDecoded(ctx context.Context, b *block, w *worker) error {
	_, nCols := a.t.Matrix()
	height, rowBytes := a.t.bandRows(), nCols*int64(a.t.DType.Size())
	return b.eachBand(func(band int, row0 int64, rows []byte) error {
		step := min(int64(len(rows)), max(decodedRows, decodedElements/nCols, a.t.exact.RowsAtOnce())*rowBytes)
		for ; len(rows) > 0; rows = rows[step:] {
			step = min(step, int64(len(rows)))
			n := step / rowBytes
			first := int64(band)*height + row0
			exact, err := a.t.readExact(ctx, w, first, first+n)
			if err != nil {
				return err
			}
			switch s := &a.loaded[band]; {
			case s.narrow != nil:
				err = s.narrow.MergeFrom(ctx, rows[:step], exact, int(row0), b.stats, &w.narrow)
			case s.broad != nil:
				err = s.broad.MergeFrom(ctx, rows[:step], exact, int(row0), b.stats, &w.broad)
			}
			if err != nil {
				return err
			}
			row0 += n
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

// inverse returns the operation that subtracts the terms. Both share the loaded factors.
func (a *add) inverse() operation {
	a.isInverse = true
	return &inverse{of: a}
}

type inverse struct {
	loadless
	of *add
}

func (i *inverse) apply(ctx context.Context, b *block, w *worker) error {
	return b.eachBand(func(band int, row0 int64, rows []byte) error {
		switch s := &i.of.loaded[band]; {
		case s.narrowBack != nil:
			return s.narrowBack.Merge(ctx, rows, int(row0), b.stats, &w.narrow)
		case s.broadBack != nil:
			return s.broadBack.Merge(ctx, rows, int(row0), b.stats, &w.broad)
		}
		return nil
	})
}

// isWide reports whether the fast pass needs float64. It does for float32 and float64 results, for
// float64 factors, and for residuals, which are computed from the base in float64.
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

// bytesOfTerms returns the memory for the terms of one band: the packed factors and, for a
// residual, the whole weight in float32 plus 16 vectors of each side per singular vector.
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

// rankOf returns the total rank of the terms.
func rankOf(terms []resolve.Term) (n int64) {
	for _, x := range terms {
		n += int64(x.Rank)
	}
	return n
}

// wordBytes returns the size of a number in the fast pass.
func wordBytes(wide bool) int64 {
	if wide {
		return int64(dtype.F64.Size())
	}
	return int64(dtype.F32.Size())
}

func prepare[T kernel.Float](
	ctx context.Context, a *add, terms []resolve.Term,
) (*kernel.Update[T], int, error) {

	_, nCols := a.t.Matrix()
	loaded, nonFinite, err := loadTerms[T](ctx, a.t, terms, a.k, a.tolerant)
	if err != nil {
		return nil, 0, err
	}
	prepare := kernel.Prepare[T]
	if a.t.exact != nil && a.t.DType != dtype.F64 {
		prepare = kernel.PrepareWidened[T]
	}
	u, err := prepare(ctx, a.k.kernel, a.t.DType, int(a.t.bandRows()), int(nCols), loaded)
	for i := range loaded {
		keepValues(&a.k.shelf.spares, loaded[i].R) // the kernel has copied it
	}
	return u, nonFinite, err
}

// loadTerms reads the factors of one band and counts their NaN and infinite values.
func loadTerms[T kernel.Float](
	ctx context.Context, t *target, terms []resolve.Term, k *tools, tolerant bool,
) (loaded []kernel.Term[T], nonFinite int, err error) {

	nRows := int(t.bandRows())
	_, n := t.Matrix()
	nCols := int(n)
	loaded = make([]kernel.Term[T], len(terms))
	for i := range terms {
		x := &terms[i]
		if x.Residual != resolve.NoResidual {
			if loaded[i], err = loadResidual[T](ctx, t, x, k); err != nil {
				return nil, 0, err
			}
			continue
		}
		l, r := make([]T, nRows*x.Rank), zeros[T](&k.shelf.spares, x.Rank*nCols)
		badR, err := loadFactor(ctx, r, x.Right, x.Rank, nCols, nCols, 1, k.shelf) // first in most files
		if err != nil {
			return nil, 0, err
		}
		badL, err := loadFactor(ctx, l, x.Left, x.Rank, nRows, 1, x.Rank, k.shelf)
		if err != nil {
			return nil, 0, err
		}
		nonFinite += badL + badR
		if n := badL + badR; n > 0 && !tolerant {
			return nil, 0, nonFiniteFactors(x.Module, n)
		}
		loaded[i] = kernel.Term[T]{S: x.Scale, Rank: x.Rank, L: l, R: r}
	}
	return loaded, nonFinite, nil
}

// pieceBytes is the amount of a factor that one read fetches. A longer line is read whole.
const pieceBytes = 1 << 18

// lines is the order in which a factor is read from its tensor: line by line. The step from line to
// line is the larger of the tensor's two steps, the step within a line the smaller.
type lines struct {
	byRank         bool // k grows from line to line, else j
	outer, inner   int  // steps in the tensor, in elements
	nOuter, nInner int
}

func linesOf(f *resolve.Factor, rank int) lines {
	stored := f.Length / f.Repeat
	if f.Across >= f.Along {
		return lines{byRank: true, outer: f.Across, nOuter: rank, inner: f.Along, nInner: stored}
	}
	return lines{outer: f.Along, nOuter: stored, inner: f.Across, nInner: rank}
}

// loadFactor writes a factor into dst, a matrix of zeros: element (k, j) of the whole weight goes
// to dst[k·across + j·along]. It counts NaN and infinite values.
func loadFactor[T kernel.Float](
	ctx context.Context, dst []T, f resolve.Factor, rank, whole, across, along int, s *shelf,
) (nonFinite int, err error) {

	if f.Source == nil {
		dst[0] = 1
		return 0, nil
	}
	t := f.Tensor()
	l := linesOf(&f, rank)
	line := (l.nInner-1)*l.inner + 1
	if last := int64(f.At + (l.nOuter-1)*l.outer + line); last > t.Elements() || f.Covers()[1] > whole || f.Length%f.Repeat != 0 {
		return 0, fmt.Errorf("internal error: %q has %d elements, the plan wants up to %d, for %d to %d of %d", t.Name, t.Elements(), last, f.First, f.Covers()[1], whole)
	}
	raw, err := s.take(ctx, f.Blob)
	if err != nil {
		return 0, err
	}
	if raw != nil {
		for k := range rank {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			for j := range f.Length / f.Repeat {
				x := T(dtype.Load(t.DType, raw, f.At+k*f.Across+j*f.Along))
				if x-x != 0 {
					nonFinite++
				}
				put(dst, &f, x, k, j, across, along)
			}
		}
		return nonFinite, nil
	}
	size := t.DType.Size()
	perPiece := max(1, pieceBytes/(max(l.outer, line)*size))
	straight := isStraight(&f, &l, across, along)
	var piece []byte
	var values []T
	for i := 0; i < l.nOuter; i += perPiece {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n := min(perPiece, l.nOuter-i)
		span := (n-1)*l.outer + line
		if len(piece) < span*size {
			piece = s.spares.piece(span * size)
		}
		if err := f.Source.ReadBlobAt(piece[:span*size], f.Index, int64((f.At+i*l.outer)*size)); err != nil {
			return 0, err
		}
		if straight {
			to := dst[f.First*along+i*l.outer:][:span]
			kernel.Widen(to, t.DType, piece[:span*size])
			nonFinite += countNonFinite(to)
			continue
		}
		if len(values) < span {
			values = make([]T, span)
		}
		kernel.Widen(values[:span], t.DType, piece[:span*size])
		nonFinite += scatter(dst, values, &f, &l, i, n, across, along)
	}
	s.spares.keepPiece(piece)
	return nonFinite, nil
}

// isStraight reports whether the tensor holds the factor in the matrix's own order, without gaps.
func isStraight(f *resolve.Factor, l *lines, across, along int) bool {
	outer, inner := across, along
	if !l.byRank {
		outer, inner = along, across
	}
	return f.Repeat == 1 && f.IsInOrder() && l.inner == 1 && inner == 1 && l.outer == l.nInner && outer == l.nInner
}

// scatter puts n lines into dst, beginning with line first, and counts NaN and infinite values.
func scatter[T kernel.Float](dst, values []T, f *resolve.Factor, l *lines, first, n, across, along int) (nonFinite int) {
	for o := range n {
		for in := range l.nInner {
			x := values[o*l.outer+in*l.inner]
			if x-x != 0 {
				nonFinite++
			}
			k, j := first+o, in
			if !l.byRank {
				k, j = in, first+o
			}
			put(dst, f, x, k, j, across, along)
		}
	}
	return nonFinite
}

// countNonFinite counts NaN and infinite values. v − v is zero for all others.
func countNonFinite[T kernel.Float](values []T) (n int) {
	for _, x := range values {
		if x-x != 0 {
			n++
		}
	}
	return n
}

// put writes element (k, j) of a factor. A shared factor appears in dst several times.
func put[T kernel.Float](dst []T, f *resolve.Factor, x T, k, j, across, along int) {
	if j = f.Place(j); j < 0 {
		return
	}
	for at := f.First + j*f.Repeat; at < f.First+(j+1)*f.Repeat; at++ {
		dst[k*across+at*along] = x
	}
}

// shelf holds adapter tensors that several bands or targets share, as the adapter stores them. The
// factors of stacked experts are such tensors. A tensor is read at its first use and dropped after
// its last.
type shelf struct {
	lock   sync.Mutex
	books  map[resolve.Blob]*book
	spares spares
}

type book struct {
	uses int // bands still to come
	once sync.Once
	raw  []byte
	err  error
}

// newShelf counts the users of every tensor.
func newShelf(targets []*target) *shelf {
	s := &shelf{books: make(map[resolve.Blob]*book)}
	uses := make(map[format.Source][]int32) // by the index of the tensor
	for _, t := range targets {
		for band := range t.NBands {
			for _, b := range t.blobs(band) {
				if uses[b.Source] == nil {
					uses[b.Source] = make([]int32, len(b.Source.Manifest().Tensors))
				}
				if uses[b.Source][b.Index]++; uses[b.Source][b.Index] == 1 {
					continue
				}
				if s.books[b] == nil {
					s.books[b] = &book{uses: 1}
				}
				s.books[b].uses++
			}
		}
	}
	return s
}

// blobs lists the tensors that a band reads, each once.
func (t *target) blobs(band int) []resolve.Blob {
	var all []resolve.Blob
	add := func(terms []resolve.Term) {
		for i := range terms {
			if terms[i].Band != band {
				continue
			}
			for _, f := range []*resolve.Factor{&terms[i].Left, &terms[i].Right} {
				if f.Source != nil && !slices.Contains(all, f.Blob) {
					all = append(all, f.Blob)
				}
			}
		}
	}
	add(t.Terms)
	for i := range t.undo {
		add(t.undo[i].terms)
	}
	return all
}

// takeBytes is the amount of a shared tensor that one read fetches: the context is asked before it.
const takeBytes = 8 << 20

// take returns the bytes of a shared tensor, or nil for a tensor that is not shared.
func (s *shelf) take(ctx context.Context, b resolve.Blob) ([]byte, error) {
	s.lock.Lock()
	k := s.books[b]
	s.lock.Unlock()
	if k == nil {
		return nil, nil
	}
	k.once.Do(func() {
		k.raw = make([]byte, b.Tensor().NBytes())
		for off := 0; off < len(k.raw) && k.err == nil; off += takeBytes {
			if k.err = ctx.Err(); k.err == nil {
				p := k.raw[off:min(off+takeBytes, len(k.raw))]
				k.err = b.Source.ReadBlobAt(p, b.Index, int64(off))
			}
		}
	})
	return k.raw, k.err
}

// drop releases a band's share in its tensors.
func (s *shelf) drop(t *target, band int) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if len(s.books) == 0 {
		return
	}
	for _, b := range t.blobs(band) {
		if k := s.books[b]; k != nil {
			if k.uses--; k.uses == 0 {
				delete(s.books, b)
			}
		}
	}
}

// sharedBytes returns the size of the adapter tensors that several bands read.
func (t *target) sharedBytes() (n int64) {
	if t.NBands == 1 {
		return 0
	}
	terms := t.Terms
	for i := range t.undo {
		terms = append(terms[:len(terms):len(terms)], t.undo[i].terms...)
	}
	size := wordBytes(isWide(t, terms))
	for _, x := range terms {
		n += size * int64(x.Rank) * int64(x.Left.Length+x.Right.Length)
	}
	return n
}
