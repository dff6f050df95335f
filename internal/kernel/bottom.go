package kernel

import (
	"context"
	"math"
	"sync"

	"github.com/loratool/loratool/format/dtype"
)

// An update near the bottom of float32's range, beside weights that are zero or as small, leaves
// every element undecided, because the bound is at least the smallest normal number. This file
// merges such blocks in float64 as a float32 matrix and rounds the results again. The second
// rounding is harmless unless the float32 lies within its own unit of a point where the rounding to
// D changes; those elements go to the slow pass.

// bottom holds the update in float64, prepared for the first such block.
type bottom struct {
	once   sync.Once
	update *Update[float64]
	err    error
}

// Scales below 2^deepBelow are near the bottom, which matters beside weights below 2^zeroBelow.
const (
	deepBelow = -80
	zeroBelow = -60
)

// isBottom reports whether a block needs this way. It needs it if an eighth of the sampled weights
// are small.
func (u *Update[T]) isBottom(w []byte) bool {
	if !isNarrow[T]() || u.isWidened || u.a+u.b > deepBelow {
		return false
	}
	n := len(w) / 2
	looked, small := 0, 0
	for i := 0; i < n; i += sampleStep(n) {
		looked++
		if x := dtype.Load(u.d, w, i); math.Abs(x) < math.Ldexp(1, zeroBelow) {
			small++
		}
	}
	return 8*small > looked
}

// inFloat64 returns the update of the same matrix in float32, prepared by the first caller under
// its context.
func (u *Update[T]) inFloat64(ctx context.Context) (*Update[float64], error) {
	u.bottom.once.Do(func() { u.bottom.update, u.bottom.err = u.prepareBottom(ctx) })
	return u.bottom.update, u.bottom.err
}

// prepareBottom prepares the update for inFloat64. A negative update shares its R.
func (u *Update[T]) prepareBottom(ctx context.Context) (*Update[float64], error) {
	if u.positive != nil {
		positive, err := u.positive.inFloat64(ctx)
		if err != nil {
			return nil, err
		}
		return positive.Negative(ctx)
	}
	terms := make([]Term[float64], len(u.terms))
	k := 0
	for t := range u.terms {
		term := &u.terms[t]
		l, r := make([]float64, len(term.L)), make([]float64, term.Rank*u.cols)
		for i, x := range term.L {
			l[i] = float64(x)
		}
		for j := range u.cols {
			if j%askRows == 0 && ctx.Err() != nil {
				return nil, ctx.Err()
			}
			at, stride := u.column(j)
			for i := range term.Rank {
				r[i*u.cols+j] = float64(u.right[at+(k+i)*stride])
			}
		}
		terms[t] = Term[float64]{S: term.S, Rank: term.Rank, L: l, R: r}
		k += term.Rank
	}
	return Prepare(ctx, u.kernel, dtype.F32, u.rows, u.cols, terms)
}

// bottomScratch holds a worker's buffers for such blocks.
type bottomScratch struct {
	lines []byte
	wide  Scratch[float64]
}

// bottomRows is the number of rows merged together.
const bottomRows = 8

// mergeBottom is Merge for such a block, a few rows at a time.
func (u *Update[T]) mergeBottom(
	ctx context.Context, w []byte, row0 int, st *Stats, s *Scratch[T],
) error {
	const rows = bottomRows
	line := u.cols * 2
	if s.bottom == nil {
		s.bottom = &bottomScratch{lines: make([]byte, rows*u.cols*4)}
	}
	if n := rows * u.cols * 4; len(s.bottom.lines) < n {
		s.bottom.lines = make([]byte, n)
	}
	for i := 0; i < len(w)/line; i += rows {
		part := w[i*line : min(len(w), (i+rows)*line)]
		lines := s.bottom.lines[:2*len(part)]
		for j := range len(part) / 2 {
			dtype.Store(dtype.F32, lines, j, dtype.Load(u.d, part, j))
		}
		var sums Stats
		wide, err := u.inFloat64(ctx)
		if err == nil {
			err = wide.Merge(ctx, lines, row0+i, &sums, &s.bottom.wide)
		}
		if err == nil {
			err = u.narrow(ctx, part, lines, row0+i, &sums)
		}
		if err != nil {
			return err
		}
		st.Add(&sums)
	}
	return nil
}

// narrow rounds float32 results into w, which holds the base's values, and corrects the sums. The
// losses of float32 and of this rounding differ so much in size that their product vanishes beside
// their squares. Where a float32 has few bits, NormError is off by up to 2⁻¹¹.
func (u *Update[T]) narrow(
	ctx context.Context, w, lines []byte, row0 int, st *Stats,
) error {
	st.Unchanged, st.NaNAfter, st.NormStored = 0, 0, Squares{}
	for j := range len(w) / 2 {
		before, wide := dtype.Load(u.d, w, j), float32(dtype.Load(dtype.F32, lines, j))
		if float64(wide) != before || math.Signbit(before) != math.Signbit(float64(wide)) {
			if bits := math.Float32bits(wide); wide != wide || !isSettled(u.d, bits, w[2*j:]) {
				st.Slow++
				if err := u.slow(ctx, w, row0, j, new(Stats)); err != nil {
					return err
				}
			}
		}
		after := dtype.Load(u.d, w, j)
		if after == before || after != after && before != before {
			st.Unchanged++
		}
		if !isFinite(after) {
			st.NaNAfter++
			continue
		}
		if moved := after - before; isFinite(moved) {
			st.NormStored.add(moved)
			st.NormError.add(after - float64(wide))
		}
	}
	return nil
}

// isSettled stores a float32 with the given bits as d, if its neighbours round to the same value.
func isSettled(d dtype.Type, bits uint32, out []byte) bool {
	low, high := bits, bits+1
	if bits<<1 != 0 {
		low--
	}
	return storeBetween(d, out, float64(math.Float32frombits(low)),
		float64(math.Float32frombits(high)))
}
