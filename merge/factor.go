package merge

import (
	"fmt"
	"slices"
	"sync"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
)

// pieceBytes is how much of a factor is read at a time, or one line of it if that is longer.
const pieceBytes = 1 << 18

// lines is the order in which a factor is read from its tensor: line by line, along the larger of its two steps from line to line, along
// the smaller one within.
type lines struct {
	byRank         bool // from line to line, k grows; else j does
	outer, inner   int  // steps in the tensor
	nOuter, nInner int
}

func linesOf(f *resolve.Factor, rank int) lines {
	stored := f.Length / f.Repeat
	if f.Across >= f.Along {
		return lines{byRank: true, outer: f.Across, nOuter: rank, inner: f.Along, nInner: stored}
	}
	return lines{outer: f.Along, nOuter: stored, inner: f.Across, nInner: rank}
}

// loadFactor writes a factor into a matrix of zeros, element (k, j) of the weight's whole length to dst[k·across + j·along], and
// counts the values that are not finite.
func loadFactor[T kernel.Float](dst []T, f resolve.Factor, rank, whole, across, along int, s *shelf) (nonFinite int, err error) {
	if f.Source == nil {
		dst[0] = 1
		return 0, nil
	}
	t := f.Tensor()
	l := linesOf(&f, rank)
	line := (l.nInner-1)*l.inner + 1
	if last := int64(f.At + (l.nOuter-1)*l.outer + line); last > t.Elements() || f.First+f.Length > whole || f.Length%f.Repeat != 0 {
		return 0, fmt.Errorf("internal error: %q has %d elements, the plan wants up to %d, for %d to %d of %d", t.Name, t.Elements(), last, f.First, f.First+f.Length, whole)
	}
	raw, err := s.take(f.Blob)
	if err != nil {
		return 0, err
	}
	if raw != nil {
		for k := range rank {
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
		n := min(perPiece, l.nOuter-i)
		span := (n-1)*l.outer + line
		if len(piece) < span*size {
			piece = make([]byte, span*size)
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
	return nonFinite, nil
}

// isStraight reports whether a factor lies in its tensor as in the matrix, without gaps.
func isStraight(f *resolve.Factor, l *lines, across, along int) bool {
	outer, inner := across, along
	if !l.byRank {
		outer, inner = along, across
	}
	return f.Repeat == 1 && l.inner == 1 && inner == 1 && l.outer == l.nInner && outer == l.nInner
}

// scatter puts n lines, from the given one on, in their places in dst, and counts the values that are not finite.
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

func countNonFinite[T kernel.Float](values []T) (n int) {
	for _, x := range values {
		if x-x != 0 {
			n++
		}
	}
	return n
}

// put writes element (k, j) of a factor, which it may stand for several times.
func put[T kernel.Float](dst []T, f *resolve.Factor, x T, k, j, across, along int) {
	for at := f.First + j*f.Repeat; at < f.First+(j+1)*f.Repeat; at++ {
		dst[k*across+at*along] = x
	}
}

// shelf keeps tensors of adapters that several bands or targets need a part of, such as the factors of stacked experts, as they are
// stored: from the first that reads one to the last.
type shelf struct {
	lock  sync.Mutex
	books map[resolve.Blob]*book
}

type book struct {
	uses int // bands to go
	once sync.Once
	raw  []byte
	err  error
}

// newShelf counts who needs what.
func newShelf(targets []*target) *shelf {
	s := &shelf{books: make(map[resolve.Blob]*book)}
	for _, t := range targets {
		for band := range t.NBands {
			for _, b := range t.blobs(band) {
				if s.books[b] == nil {
					s.books[b] = new(book)
				}
				s.books[b].uses++
			}
		}
	}
	for b, k := range s.books {
		if k.uses == 1 {
			delete(s.books, b)
		}
	}
	return s
}

// blobs lists the tensors that a band needs a part of, each once.
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

// take returns the bytes of a tensor that is kept, or nil if it is not.
func (s *shelf) take(b resolve.Blob) ([]byte, error) {
	s.lock.Lock()
	k := s.books[b]
	s.lock.Unlock()
	if k == nil {
		return nil, nil
	}
	k.once.Do(func() {
		k.raw = make([]byte, b.Tensor().NBytes())
		k.err = b.Source.ReadBlobAt(k.raw, b.Index, 0)
	})
	return k.raw, k.err
}

// drop gives back what a band needed.
func (s *shelf) drop(t *target, band int) {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, b := range t.blobs(band) {
		if k := s.books[b]; k != nil {
			if k.uses--; k.uses == 0 {
				delete(s.books, b)
			}
		}
	}
}
