package quant

import (
	"context"
	"sync"

	"github.com/loratool/loratool/format/dtype"
)

// scaled is a stack of matrices of rows×cols codes, each with a grid of scales:
//
//	w[i][j] = table[code[i][j]] · scale[i / height][j / width] [· factor]
//
// The last blocks of a matrix are short if height or width does not divide it. Part 0 holds the
// codes, part 1 the scales.
type scaled struct {
	table      []float64 // 256 values of codes of a byte, or 16 of half a byte, the low half first
	rows, cols int64     // of one matrix
	scales     grid
	factor     float64 // 0 for none; the product with it is rounded
}

// grid says which scale belongs to an element.
type grid struct {
	dtype         dtype.Type // F32, F16, BF16, or F8E8M0, also for scales that are stored as U8
	height, width int64      // of a block
	down, across  int64      // the number of blocks in a matrix
}

// blocks returns the grid of a rows×cols matrix whose blocks have the given size.
func blocks(d dtype.Type, rows, cols, height, width int64) grid {
	height, width = max(1, height), max(1, width)
	return grid{d, height, width, (rows + height - 1) / height, (cols + width - 1) / width}
}

// pieceElements is the number of elements that are decoded together.
const pieceElements = 1 << 16

// Decode implements Codec.
func (s *scaled) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	for len(dst) > 0 {
		n := min(int64(len(dst)), pieceElements)
		if left := s.cols - at%s.cols; s.cols > pieceElements {
			n = min(n, left)
		}
		if err := s.piece(ctx, dst[:n], at, parts, b); err != nil {
			return err
		}
		dst, at = dst[n:], at+n
	}
	return nil
}

// piece decodes a piece of one row, or of several rows that are no longer than a piece.
func (s *scaled) piece(ctx context.Context, dst []float64, at int64, parts Parts, b *buffers) error {
	end := at + int64(len(dst))
	row, last := at/s.cols, (end-1)/s.cols
	first := s.byteOf(at)
	codes := b.codesOf(s.byteOf(end-1) + 1 - first)
	if err := parts.ReadPart(ctx, codes, 0, first); err != nil {
		return err
	}
	from, to := s.scaleOf(row, 0), s.scaleOf(last, s.cols-1)+1
	if row == last {
		from, to = s.scaleOf(row, at%s.cols), s.scaleOf(row, (end-1)%s.cols)+1
	}
	scales, err := s.readScales(ctx, from, to-from, parts, b)
	if err != nil {
		return err
	}
	for ; row <= last; row++ {
		col := at - row*s.cols
		n := min(s.cols, end-row*s.cols) - col
		s.line(dst[:n], codes[s.byteOf(at)-first:], scales[s.scaleOf(row, col)-from:], col)
		dst, at = dst[n:], at+n
	}
	return nil
}

// byteOf returns the byte of the codes that holds an element.
func (s *scaled) byteOf(at int64) int64 {
	if len(s.table) == 16 {
		return at / 2
	}
	return at
}

// scaleOf returns the number of the scale of an element. row counts the rows of all matrices.
func (s *scaled) scaleOf(row, col int64) int64 {
	g := &s.scales
	return (row/s.rows*g.down+row%s.rows/g.height)*g.across + col/g.width
}

// readScales reads n scales.
func (s *scaled) readScales(ctx context.Context, from, n int64, parts Parts, b *buffers) ([]float64, error) {
	d := s.scales.dtype
	size := int64(d.Size())
	raw := b.scalesOf(n * size)
	if err := parts.ReadPart(ctx, raw, 1, from*size); err != nil {
		return nil, err
	}
	values := b.valuesOf(n)
	if d == dtype.F8E8M0 {
		for i, x := range raw {
			values[i] = e8m0(x)
		}
		return values, nil
	}
	dtype.Widen64(values, d, raw)
	return values, nil
}

// line decodes the part of a row that begins with column col. The first of codes has that column,
// and the first of scales belongs to it.
func (s *scaled) line(dst []float64, codes []byte, scales []float64, col int64) {
	for len(dst) > 0 {
		n := min(int64(len(dst)), s.scales.width-col%s.scales.width)
		scale, block := scales[0], dst[:n]
		if len(s.table) == 16 {
			codes = s.halves(block, codes, scale, col%2 == 1)
		} else {
			table := (*[256]float64)(s.table)
			for i, code := range codes[:n] {
				block[i] = table[code] * scale
			}
			codes = codes[n:]
		}
		if s.factor != 0 {
			for i := range block {
				block[i] *= s.factor
			}
		}
		dst, scales, col = dst[n:], scales[1:], col+n
	}
}

// halves decodes codes of half a byte, the low half first. odd says that the first code is the high
// half. It returns the codes that follow.
func (s *scaled) halves(dst []float64, codes []byte, scale float64, odd bool) []byte {
	table := (*[16]float64)(s.table)
	if odd {
		dst[0] = table[codes[0]>>4] * scale
		dst, codes = dst[1:], codes[1:]
	}
	for ; len(dst) >= 2; dst, codes = dst[2:], codes[1:] {
		dst[0], dst[1] = table[codes[0]&0xf]*scale, table[codes[0]>>4]*scale
	}
	if len(dst) == 1 {
		dst[0] = table[codes[0]&0xf] * scale
	}
	return codes
}

// buffers keeps memory between calls.
type buffers struct {
	codes, scales []byte
	values        []float64
	lines         []float64
}

var kept = sync.Pool{New: func() any { return new(buffers) }}

func takeBuffers() *buffers { return kept.Get().(*buffers) }

func (b *buffers) giveBack() { kept.Put(b) }

func (b *buffers) codesOf(n int64) []byte     { return sized(&b.codes, n) }
func (b *buffers) scalesOf(n int64) []byte    { return sized(&b.scales, n) }
func (b *buffers) valuesOf(n int64) []float64 { return sized(&b.values, n) }
func (b *buffers) linesOf(n int64) []float64  { return sized(&b.lines, n) }

// sized returns n elements of a buffer.
func sized[T any](b *[]T, n int64) []T {
	if int64(cap(*b)) < n {
		*b = make([]T, n)
	}
	return (*b)[:n]
}
