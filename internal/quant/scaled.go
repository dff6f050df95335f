package quant

import (
	"context"
	"encoding/binary"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// scaled is a stack of matrices of rows×cols codes, each with a grid of scales:
//
//	w[i][j] = (table[code[i][j]] − zero[g]) · scale[g] [· factor] [· whole, or / whole]
//
// where g is i / height, j / width, or i / height, order[j]. The last blocks of a matrix are short
// if height or width does not divide it. Part 0 holds the codes, part 1 the scales.
//
// The values are exact, but for a last rounding of the product with factor, and of the division.
type scaled struct {
	table      []float64 // 256 values of codes, or 16 of codes of 4 bits without gaps
	codes      packing
	rows, cols int64 // of one matrix
	scales     grid
	zeros      zeroPoints // nil for none
	order      int        // the part with the group of each column, in I32; 0 for none
	factor     float64    // 0 for none
	whole      whole
}

// grid says which scale belongs to an element.
type grid struct {
	dtype         dtype.Type // F32, F16, BF16, F8E4M3, or F8E8M0, also for scales that are stored as U8
	height, width int64      // of a block
	down, across  int64      // the number of blocks in a matrix
}

// blocks returns the grid of a rows×cols matrix whose blocks have the given size.
func blocks(d dtype.Type, rows, cols, height, width int64) grid {
	height, width = max(1, height), max(1, width)
	return grid{d, height, width, (rows + height - 1) / height, (cols + width - 1) / width}
}

// zeroPoints reads the zero points of blocks.
type zeroPoints interface {
	// read fills values with the zero points of blocks from, from+1, …, numbered as the scales are.
	read(ctx context.Context, values []float64, from int64, parts Parts, b *buffers) error
}

// whole is a scale of each matrix, in F32.
type whole struct {
	part    int // 0 for none
	divides bool
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
	col, lastCol := at-row*s.cols, end-1-last*s.cols
	w, err := s.read(ctx, row, col, last, lastCol, parts, b)
	if err != nil {
		return err
	}
	for ; row <= last; row++ {
		n := min(s.cols-col, int64(len(dst)))
		if err := w.line(dst[:n], row, col); err != nil {
			return err
		}
		dst, col = dst[n:], 0
	}
	return nil
}

// window holds the codes of elements from one to another, and all that belongs to them.
type window struct {
	*scaled
	codes         []byte
	first         int64     // the byte of the weight that codes begins with
	scales, zeros []float64 // zeros is nil for none
	from          int64     // the number of the first of these
	order         []byte    // nil for none
	col           int64     // that order begins with
	wholes        []float64 // nil for none that divides
	matrix        int64     // that wholes begins with
	b             *buffers
}

// read reads the codes and scales of the elements from (row, col) to (last, lastCol). Rows count on
// through all matrices.
func (s *scaled) read(ctx context.Context, row, col, last, lastCol int64, parts Parts, b *buffers) (w window, err error) {
	w = window{scaled: s, b: b, first: row*s.codes.rowBytes + s.codes.byteOf(col), matrix: row / s.rows}
	w.codes = b.codesOf(last*s.codes.rowBytes + s.codes.endOf(lastCol) - w.first)
	if err := parts.ReadPart(ctx, w.codes, 0, w.first); err != nil {
		return w, err
	}
	if row != last {
		col, lastCol = 0, s.cols-1
	}
	if s.order != 0 {
		w.col, w.order = col, sized(&b.order, 4*(lastCol+1-col))
		if err := parts.ReadPart(ctx, w.order, s.order, 4*col); err != nil {
			return w, err
		}
		col, lastCol = 0, s.cols-1
	}
	w.from = s.scaleOf(row, col)
	n := s.scaleOf(last, lastCol) + 1 - w.from
	if w.scales, err = s.readScales(ctx, w.from, n, parts, b); err != nil {
		return w, err
	}
	if s.zeros != nil {
		w.zeros = sized(&b.zeros, n)
		if err := s.zeros.read(ctx, w.zeros, w.from, parts, b); err != nil {
			return w, err
		}
	}
	return w, w.readWholes(ctx, last/s.rows+1-w.matrix, parts)
}

// scaleOf returns the number of the scale of an element. row counts the rows of all matrices.
func (s *scaled) scaleOf(row, col int64) int64 {
	g := &s.scales
	return (row/s.rows*g.down+row%s.rows/g.height)*g.across + col/g.width
}

// readScales reads n scales, and multiplies them by the factor.
func (s *scaled) readScales(ctx context.Context, from, n int64, parts Parts, b *buffers) ([]float64, error) {
	d := s.scales.dtype
	size := int64(d.Size())
	raw := b.scalesOf(n * size)
	if err := parts.ReadPart(ctx, raw, 1, from*size); err != nil {
		return nil, err
	}
	values := b.valuesOf(n)
	widen(values, d, raw)
	if s.factor != 0 {
		for i := range values {
			values[i] *= s.factor
		}
	}
	return values, nil
}

// widen writes the values of scales or zero points.
func widen(values []float64, d dtype.Type, raw []byte) {
	switch d {
	case dtype.F8E8M0:
		for i, x := range raw {
			values[i] = e8m0(x)
		}
	case dtype.F8E4M3:
		for i, x := range raw {
			values[i] = e4m3[x]
		}
	case dtype.I8:
		for i, x := range raw {
			values[i] = int8s[x]
		}
	case dtype.I32:
		for i := range values {
			values[i] = float64(int32(binary.LittleEndian.Uint32(raw[4*i:])))
		}
	default:
		dtype.Widen64(values, d, raw)
	}
}

// readWholes reads the scales of n matrices, and multiplies the scales by them, unless they divide.
func (w *window) readWholes(ctx context.Context, n int64, parts Parts) error {
	if w.whole.part == 0 {
		return nil
	}
	raw, wholes := w.b.scalesOf(4*n), sized(&w.b.wholes, n)
	if err := parts.ReadPart(ctx, raw, w.whole.part, 4*w.matrix); err != nil {
		return err
	}
	dtype.Widen64(wholes, dtype.F32, raw)
	if w.whole.divides {
		w.wholes = wholes
		return nil
	}
	for i := range w.scales {
		w.scales[i] *= wholes[(w.from+int64(i))/(w.scaled.scales.down*w.scaled.scales.across)-w.matrix]
	}
	return nil
}

// line decodes the part of a row that begins with column col.
func (w *window) line(dst []float64, row, col int64) error {
	p := &w.scaled.codes
	codes := w.codes[row*p.rowBytes+p.byteOf(col)-w.first:]
	if !p.isPlain() || w.order != nil {
		codes = p.unpack(sized(&w.b.unpacked, int64(len(dst))), codes, col)
	}
	divisor := 1.0
	if w.wholes != nil {
		divisor = w.wholes[row/w.rows-w.matrix]
	}
	if w.order != nil {
		return w.scattered(dst, codes, row, col, divisor)
	}
	g := w.scaleOf(row, col) - w.from
	for len(dst) > 0 {
		n := min(int64(len(dst)), w.scaled.scales.width-col%w.scaled.scales.width)
		scale, zero := w.scales[g], 0.0
		if w.zeros != nil {
			zero = w.zeros[g]
		}
		if p.isPlain() && p.bits == 4 {
			codes = w.halves(dst[:n], codes, scale, zero, divisor, col%2 == 1)
		} else {
			w.bytes(dst[:n], codes, scale, zero, divisor)
			codes = codes[n:]
		}
		dst, g, col = dst[n:], g+1, col+n
	}
	return nil
}

// bytes decodes elements of a block, with a code in each byte.
func (w *window) bytes(dst []float64, codes []byte, scale, zero, divisor float64) {
	table := (*[256]float64)(w.table)
	for i, code := range codes[:len(dst)] {
		dst[i] = (table[code] - zero) * scale
	}
	if divisor != 1 {
		for i := range dst {
			dst[i] /= divisor
		}
	}
}

// halves decodes elements of a block, with codes of half a byte, the low half first. odd says that
// the first code is the high half. It returns the codes that follow.
func (w *window) halves(dst []float64, codes []byte, scale, zero, divisor float64, odd bool) []byte {
	if zero == 0 && divisor == 1 {
		return halves(dst, codes, (*[16]float64)(w.table), scale, odd)
	}
	var values [16]float64
	for i, x := range w.table[:16] {
		values[i] = (x - zero) * scale / divisor
	}
	return halves(dst, codes, &values, 1, odd)
}

// halves multiplies the values of codes of half a byte by a scale.
func halves(dst []float64, codes []byte, table *[16]float64, scale float64, odd bool) []byte {
	if odd {
		dst[0] = table[codes[0]>>4] * scale
		dst, codes = dst[1:], codes[1:]
	}
	n := len(dst) / 2
	pairs := dst[:2*n]
	for i, code := range codes[:n] {
		pairs[2*i], pairs[2*i+1] = table[code&0xf]*scale, table[code>>4]*scale
	}
	codes = codes[n:]
	if len(dst) > 2*n {
		dst[2*n] = table[codes[0]&0xf] * scale
	}
	return codes
}

// scattered is line for columns whose groups are listed.
func (w *window) scattered(dst []float64, codes []byte, row, col int64, divisor float64) error {
	first := w.scaleOf(row, 0) - w.from
	for i := range dst {
		g := int64(binary.LittleEndian.Uint32(w.order[4*(col+int64(i)-w.col):]))
		if g >= w.scaled.scales.across {
			return fault.New(fault.Corrupt, "column %d belongs to group %d of %d", col+int64(i), int32(g), w.scaled.scales.across)
		}
		zero := 0.0
		if w.zeros != nil {
			zero = w.zeros[first+g]
		}
		dst[i] = (w.table[codes[i]] - zero) * w.scales[first+g] / divisor
	}
	return nil
}
