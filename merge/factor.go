package merge

import (
	"fmt"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/kernel"
)

// factor is one of the two thin matrices of a term, seen in a tensor of an adapter: element (k, j), k below the rank and j below
// the length, is number
//
//	at + k·across + ⌊j/repeat⌋·along
//
// of the tensor. It stands for rows, or columns, first to first + length of the weight; beyond them the factor is zero. A factor
// without a source is the 1×1 matrix [1].
type factor struct {
	blob
	at, across, along, repeat int
	first, length             int
}

var one = factor{length: 1, repeat: 1}

// wholeA sees a tensor r×n as A.
func wholeA(b blob, rank int) factor {
	n := int(b.tensor().Elements()) / rank
	return factor{blob: b, across: n, along: 1, repeat: 1, length: n}
}

// wholeB sees a tensor m×r as B.
func wholeB(b blob, rank int) factor {
	return factor{blob: b, across: 1, along: rank, repeat: 1, length: int(b.tensor().Elements()) / rank}
}

// part cuts a factor to n of its rows or columns, from i on. It does not cut a repeated one.
func (f factor) part(i, n int) factor {
	f.at += i * f.along
	f.length = n
	return f
}

// ranks cuts a factor to the ranks from k on.
func (f factor) ranks(k int) factor {
	f.at += k * f.across
	return f
}

// to moves what a factor stands for to another first row or column of the weight.
func (f factor) to(first int) factor {
	f.first = first
	return f
}

// add adds a term s·B·A, or where the base stores the weight transposed, s·Aᵀ·Bᵀ.
func (t *target) add(x term, b, a factor, transposed bool) {
	x.left, x.right, x.transposed = b, a, transposed
	if transposed {
		x.left, x.right = a, b
	}
	t.terms = append(t.terms, x)
}

// pieceBytes is how much of a factor is read at a time, or one line of it if that is longer.
const pieceBytes = 1 << 18

// lines is the order in which a factor is read from its tensor: line by line, along the larger of its two steps from line to line, along
// the smaller one within.
type lines struct {
	byRank         bool // from line to line, k grows; else j does
	outer, inner   int  // steps in the tensor
	nOuter, nInner int
}

func (f *factor) lines(rank int) lines {
	stored := f.length / f.repeat
	if f.across >= f.along {
		return lines{byRank: true, outer: f.across, nOuter: rank, inner: f.along, nInner: stored}
	}
	return lines{outer: f.along, nOuter: stored, inner: f.across, nInner: rank}
}

// loadFactor writes a factor into a matrix of zeros, element (k, j) of the weight's whole length to dst[k·across + j·along], and
// counts the values that are not finite.
func loadFactor[T kernel.Float](dst []T, f factor, rank, whole, across, along int, s *shelf) (nonFinite int, err error) {
	if f.source == nil {
		dst[0] = 1
		return 0, nil
	}
	t := f.tensor()
	l := f.lines(rank)
	line := (l.nInner-1)*l.inner + 1
	if last := int64(f.at + (l.nOuter-1)*l.outer + line); last > t.Elements() || f.first+f.length > whole || f.length%f.repeat != 0 {
		return 0, fmt.Errorf("internal error: %q has %d elements, the plan wants up to %d, for %d to %d of %d", t.Name, t.Elements(), last, f.first, f.first+f.length, whole)
	}
	raw, err := s.take(f.blob)
	if err != nil {
		return 0, err
	}
	if raw != nil {
		for k := range rank {
			for j := range f.length / f.repeat {
				x := T(dtype.Load(t.DType, raw, f.at+k*f.across+j*f.along))
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
	straight := f.isStraight(&l, across, along)
	var piece []byte
	var values []T
	for i := 0; i < l.nOuter; i += perPiece {
		n := min(perPiece, l.nOuter-i)
		span := (n-1)*l.outer + line
		if len(piece) < span*size {
			piece = make([]byte, span*size)
		}
		if err := f.source.ReadBlobAt(piece[:span*size], f.index, int64((f.at+i*l.outer)*size)); err != nil {
			return 0, err
		}
		if straight {
			to := dst[f.first*along+i*l.outer:][:span]
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
func (f *factor) isStraight(l *lines, across, along int) bool {
	outer, inner := across, along
	if !l.byRank {
		outer, inner = along, across
	}
	return f.repeat == 1 && l.inner == 1 && inner == 1 && l.outer == l.nInner && outer == l.nInner
}

// scatter puts n lines, from the given one on, in their places in dst, and counts the values that are not finite.
func scatter[T kernel.Float](dst, values []T, f *factor, l *lines, first, n, across, along int) (nonFinite int) {
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
func put[T kernel.Float](dst []T, f *factor, x T, k, j, across, along int) {
	for at := f.first + j*f.repeat; at < f.first+(j+1)*f.repeat; at++ {
		dst[k*across+at*along] = x
	}
}
