package kernel

import (
	"context"
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/loratool/loratool/format/dtype"
)

// Residuals are the errors of predicting the values before a merge, p = RN(out − Σ). The
// residual of an element is spec/UNDO.md's z, section 1.
type Residuals struct {
	Differs []uint64 // bit e: the residual of element e is not zero
	Z       []byte   // residuals, two bytes each; those that are zero may have any value here

	lines   [maxMasks][lineWords]uint64
	edge    [maxEdge]byte
	ignored Stats
}

// grow makes room for n elements, and clears Differs.
func (r *Residuals) grow(n int) {
	if words := (n + 63) / 64; cap(r.Differs) < words {
		r.Differs = make([]uint64, words)
	} else {
		r.Differs = r.Differs[:words]
		clear(r.Differs)
	}
	if cap(r.Z) < 2*n {
		r.Z = make([]byte, 2*n)
	}
	r.Z = r.Z[:2*n]
}

// Recording merges an update and predicts the values before it in one pass.
type Recording[T Float] struct {
	u, back *Update[T]
	micro   *micro[T]
}

// NewRecording returns the recording of an update, whose negative is back. It is nil where the
// processor has no micro-kernel for it, and for numbers out of the ordinary.
func NewRecording[T Float](u, back *Update[T]) *Recording[T] {
	m, ok := any(&u.kernel.bf16Recording).(*micro[T])
	if !ok || m.run == nil || u.d != dtype.BF16 || u.isWidened || u.scale != 1 || u.rank == 0 || u.cols == 0 {
		return nil
	}
	return &Recording[T]{u, back, m}
}

// Takes reports whether Merge can merge these rows; a nil Recording takes none.
func (r *Recording[T]) Takes(w []byte) bool { return r != nil && !r.u.isBottom(w) }

// Merge is the update's Merge, and sets out to the residuals of the elements of w.
func (r *Recording[T]) Merge(
	ctx context.Context, w []byte, row0 int, st *Stats, s *Scratch[T], out *Residuals,
) error {
	out.grow(len(w) / 2)
	s.tiles = func(ctx context.Context, w []byte, row0, p, i, nRows int, st *Stats) error {
		return r.tiles(ctx, w, row0, p, i, nRows, st, s, out)
	}
	defer func() { s.tiles = nil }()
	return r.u.Merge(ctx, w, row0, st, s)
}

// tiles is the update's tiles with the prediction.
func (r *Recording[T]) tiles(
	ctx context.Context, w []byte, row0, p, i, nRows int, st *Stats, s *Scratch[T], out *Residuals,
) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	u, m, b := r.u, r.micro, &s.block
	first := i*u.cols + p*m.cols
	panels := min(u.group, u.panels-p)
	n := min(panels*m.cols, u.cols-p*m.cols)
	isWhole := nRows-i >= m.rows && n == panels*m.cols
	b.z, b.differs = out.Z[2*first:], out.lines[:m.rows]
	if !isWhole {
		b.z = out.edge[:]
	}
	rows := runTiles(u, m, w, row0, p, i, nRows, s)
	b.sums.addTo(st, u.a+u.b)
	if !isWhole {
		for row := range rows {
			copy(out.Z[2*(first+row*u.cols):][:2*n], out.edge[row*b.stride:])
		}
	}
	for row := range rows {
		at, line := first+row*u.cols, &b.differs[row]
		for q := range panels {
			if open := b.undecided[q*m.rows+row]; open != 0 {
				if err := r.settle(ctx, w, row0, at, q*m.cols, n, open, line, st, out); err != nil {
					return err
				}
			}
		}
		for k := 0; k < n; k += 64 {
			out.mark(at+k, line[k/64]&(math.MaxUint64>>max(0, k+64-n)))
		}
	}
	return nil
}

// mark sets the bits of elements from at on.
func (r *Residuals) mark(at int, bits uint64) {
	if bits == 0 {
		return
	}
	word, shift := at>>6, at&63
	r.Differs[word] |= bits << shift
	if rest := bits >> (64 - shift); rest != 0 {
		r.Differs[word+1] |= rest
	}
}

// settle decides the open elements of a tile's row, from column q of the line's n columns on, and
// sets their bits in differs. The line begins with element first. The values before the merge of
// elements that are undecided themselves are still in w, those of the others in Z.
func (r *Recording[T]) settle(
	ctx context.Context, w []byte, row0, first, q, n int, open uint64, differs *[lineWords]uint64, st *Stats, out *Residuals,
) error {
	u := r.u
	undecided := open & math.MaxUint32
	for mask := undecided | open>>32; mask != 0; mask &= mask - 1 {
		j := bits.TrailingZeros64(mask)
		if q+j >= n {
			return nil
		}
		index := first + q + j
		value, z := w[2*index:][:2], out.Z[2*index:][:2]
		before := binary.LittleEndian.Uint16(z)
		if undecided>>j&1 == 1 {
			before = binary.LittleEndian.Uint16(value)
			st.Slow++
			if err := u.slow(ctx, w, row0, index, st); err != nil {
				return err
			}
		}
		p := [2]byte(value)
		if err := r.back.decide(ctx, dtype.Load(u.d, value, 0), p[:], row0+index/u.cols, index%u.cols, &out.ignored); err != nil {
			return err
		}
		x := residual(before, binary.LittleEndian.Uint16(p[:]))
		binary.LittleEndian.PutUint16(z, x)
		word, bit := &differs[(q+j)/64], uint64(1)<<((q+j)%64)
		if *word &^= bit; x != 0 {
			*word |= bit
		}
	}
	return nil
}

// residual returns z of w and its prediction p.
func residual(w, p uint16) uint16 {
	ord := func(x int16) int16 { return x ^ (x>>15 | math.MinInt16) }
	d := ord(int16(w)) - ord(int16(p))
	return uint16(d<<1 ^ d>>15)
}
