package kernel

import (
	"context"
	"math/bits"

	"github.com/loratool/loratool/format/dtype"
)

// Scratch holds a worker's buffers. The zero value is ready to use.
type Scratch[T Float] struct {
	block     block[T]
	undecided [maxMasks]uint64
	edge      [maxEdge]byte
	bottom    *bottomScratch
	widened   widenedScratch
	tiles     tiles // nil for those of Update
}

// Largest sizes that micro-kernels use: tiles per call times rows per tile, and bytes of W per
// call.
const (
	maxMasks = 128
	maxEdge  = 8 << 10
)

// tiles processes a row of tiles: up to a micro-kernel's rows from row i of w on, in the panels
// from p to the end of its group.
type tiles func(ctx context.Context, w []byte, row0, p, i, nRows int, st *Stats) error

// Merge updates whole rows of the matrix in place. w holds the base's values, beginning with row
// row0. The only error is that of a context that has ended, and then w may be half updated.
func (u *Update[T]) Merge(
	ctx context.Context, w []byte, row0 int, st *Stats, s *Scratch[T],
) error {
	lineBytes := u.cols * u.d.Size()
	if lineBytes == 0 || u.rank == 0 {
		return ctx.Err()
	}
	nRows := len(w) / lineBytes
	if len(w)%lineBytes != 0 || row0 < 0 || row0+nRows > u.rows {
		panic("kernel: not rows of the matrix")
	}
	if u.isBottom(w) {
		return u.mergeBottom(ctx, w, row0, st, s)
	}
	st.Elements += int64(nRows) * int64(u.cols)
	if u.d == dtype.F64 {
		for i := range nRows * u.cols {
			if err := u.slow(ctx, w, row0, i, st); err != nil {
				return err
			}
		}
		return nil
	}
	squares := baseSquares(u.d, w, st)
	err := u.lines(ctx, w, row0, nRows, st, s)
	squares.replace(st)
	return err
}

// lines runs the micro-kernel on rows.
func (u *Update[T]) lines(
	ctx context.Context, w []byte, row0, nRows int, st *Stats, s *Scratch[T],
) error {
	s.block.rank, s.block.floor, s.block.scale, s.block.inverse = u.rank, u.floor, u.scale,
		u.inverse
	tiles := s.tiles
	if tiles == nil {
		tiles = func(ctx context.Context, w []byte, row0, p, i, nRows int, st *Stats) error {
			return u.tiles(ctx, w, row0, p, i, nRows, st, s)
		}
	}
	for p := 0; p < u.panels; p += u.group {
		for i := 0; i < nRows; i += u.micro.rows {
			if !u.isWidened && u.isZero(row0+i, min(u.micro.rows, nRows-i)) {
				u.keep(w, p, i, nRows, st, s)
				continue
			}
			if err := tiles(ctx, w, row0, p, i, nRows, st); err != nil {
				return err
			}
		}
	}
	return nil
}

// tiles runs the micro-kernel on one row of tiles: up to micro.rows rows from row i on, and panels
// p to p+group.
func (u *Update[T]) tiles(
	ctx context.Context, w []byte, row0, p, i, nRows int, st *Stats, s *Scratch[T],
) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, b, size := &u.micro, &s.block, u.d.Size()
	rows := runTiles(u, m, w, row0, p, i, nRows, s)
	b.sums.addTo(st, u.a+u.b)
	for q := range b.panels {
		for row, mask := range b.undecided[q*m.rows:][:rows] {
			if mask == 0 {
				continue
			}
			first := (p + q) * m.cols
			mask &= 1<<min(m.cols, u.cols-first) - 1
			for ; mask != 0; mask &= mask - 1 {
				st.Slow++
				j := first + bits.TrailingZeros64(mask)
				var err error
				if index := (i+row)*u.cols + j; u.isWidened {
					err = settleWidened(ctx, u, w, row0, index, st, s)
				} else {
					out := w[index*size:][:size]
					err = u.decide(ctx, dtype.Load(u.d, out, 0), out, row0+i+row, j, st)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// runTiles runs a micro-kernel on one row of tiles, and returns how many rows it has.
func runTiles[T Float](
	u *Update[T], m *micro[T], w []byte, row0, p, i, nRows int, s *Scratch[T],
) (rows int) {
	size, b := u.source.Size(), &s.block
	b.panels = min(u.group, u.panels-p)
	rows = min(m.rows, nRows-i)
	cols := min(b.panels*m.cols, u.cols-p*m.cols)
	b.l, b.lBound = u.l[(row0+i)*u.rank:][:m.rows*u.rank], u.lBound[row0+i:][:m.rows]
	b.r, b.rNorm = u.r[p*u.rank*m.cols:], u.rNorm[p*m.cols:]
	b.undecided = s.undecided[:b.panels*m.rows]
	b.sums = sums{}
	lines := w[(i*u.cols+p*m.cols)*size:]
	if whole := rows == m.rows && cols == b.panels*m.cols; whole {
		b.w, b.stride = lines, u.cols*size
		m.run(b)
	} else {
		u.edge(m, lines, rows, cols, s)
	}
	return rows
}

// edge runs the micro-kernel on a copy of incomplete tiles, padded with NaNs. The kernel leaves
// NaNs undecided and out of its sums.
func (u *Update[T]) edge(m *micro[T], lines []byte, rows, cols int, s *Scratch[T]) {
	size, b := u.source.Size(), &s.block
	b.stride = b.panels * u.micro.cols * size
	b.w = s.edge[:u.micro.rows*b.stride]
	for i := range b.w {
		b.w[i] = 0xff
	}
	for i := range rows {
		copy(b.w[i*b.stride:], lines[i*u.cols*size:][:cols*size])
	}
	m.run(b)
	for i := range rows {
		copy(lines[i*u.cols*size:], b.w[i*b.stride:][:cols*size])
	}
}

// keep counts tiles that no term changes.
func (u *Update[T]) keep(w []byte, p, i, nRows int, st *Stats, s *Scratch[T]) {
	size := u.d.Size()
	for row := i; row < min(i+u.micro.rows, nRows); row++ {
		for c := p * u.micro.cols; c < min((p+u.group)*u.micro.cols, u.cols); c += portableCols {
			x := s.block.room[0][:min(portableCols, u.cols-c, (p+u.group)*u.micro.cols-c)]
			Widen(x, u.d, w[(row*u.cols+c)*size:][:len(x)*size])
			for _, x := range x {
				if x-x != 0 {
					st.NaNBefore++
					st.NaNAfter++
					continue
				}
				st.NormW.add(float64(x))
			}
			st.Unchanged += int64(len(x))
		}
	}
}

// Widen converts src, of float dtype d, to dst in the arithmetic of a pass.
func Widen[T Float](dst []T, d dtype.Type, src []byte) {
	switch dst := any(dst).(type) {
	case []float32:
		dtype.Widen(dst, d, src)
	case []float64:
		dtype.Widen64(dst, d, src)
	}
}
