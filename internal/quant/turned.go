package quant

import "context"

// turned is a stack of matrices that are stored transposed: the checkpoint has out×in codes of
// each, of 4 bits with E8M0 scales, and the model's tensor is in×out, as the experts of gpt-oss.
type turned struct{ stored scaled }

// turnedRows is the number of stored rows that are decoded before their values are put in place.
const turnedRows = 16

// RowsAtOnce implements Columnar: codes of a block are neighbours.
func (t *turned) RowsAtOnce() int64 { return groupMX / 2 }

// KeptBytes implements Columnar: a matrix, with its scales.
func (t *turned) KeptBytes() int64 {
	return t.stored.rows * (t.stored.codes.rowBytes + t.stored.scales.across)
}

// Decode implements Codec. A row of the weight is a column of codes, so a call for few rows costs
// nearly as much as one for RowsAtOnce.
func (t *turned) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	out, in := t.stored.rows, t.stored.cols
	for len(dst) > 0 {
		row, from := at/out, at%out
		c := columns{t: t, matrix: row / in, col: row % in, nCols: 1, row: from, nRows: min(int64(len(dst)), out-from), parts: parts, b: b}
		if whole := int64(len(dst)) / out; from == 0 && whole > 0 {
			c.nCols = min(whole, in-c.col)
		}
		n := c.nCols * c.nRows
		if err := c.decode(ctx, dst[:n]); err != nil {
			return err
		}
		dst, at = dst[n:], at+n
	}
	return nil
}

// columns is a part of a stored matrix, whose columns are rows of the weight.
type columns struct {
	t                              *turned
	matrix, col, nCols, row, nRows int64
	parts                          Parts
	b                              *buffers
	codes, scales                  []byte // the matrix, by its columns of blocks; nil if parts does not keep it
}

// decode writes the part to dst, column by column.
func (c *columns) decode(ctx context.Context, dst []float64) error {
	if err := c.keep(ctx); err != nil {
		return err
	}
	lines := c.b.linesOf(turnedRows * c.nCols)
	for i := int64(0); i < c.nRows; i += turnedRows {
		k := min(turnedRows, c.nRows-i)
		for r := range k {
			if err := c.line(ctx, lines[r*c.nCols:][:c.nCols], c.row+i+r); err != nil {
				return err
			}
		}
		for j := range c.nCols {
			to := dst[j*c.nRows+i:][:k]
			for r := range to {
				to[r] = lines[int64(r)*c.nCols+j]
			}
		}
	}
	return nil
}

// keep has the matrix kept in memory, if parts can: the next rows of the weight need all of its
// stored rows again.
func (c *columns) keep(ctx context.Context) (err error) {
	keeper, ok := c.parts.(Keeper)
	if !ok {
		return nil
	}
	s := &c.t.stored
	size, nScales := s.rows*s.codes.rowBytes, s.rows*s.scales.across
	if c.codes, err = keeper.KeepPart(ctx, 0, c.matrix*size, size, c.byColumn); c.codes == nil || err != nil {
		return err
	}
	c.scales, err = keeper.KeepPart(ctx, 1, c.matrix*nScales, nScales, c.byColumn)
	return err
}

// byColumn moves the codes or scales of a matrix, so that those of a column of blocks lie together.
func (c *columns) byColumn(raw []byte) []byte {
	rows, across := int(c.t.stored.rows), int(c.t.stored.scales.across)
	moved, n := make([]byte, len(raw)), len(raw)/(rows*across)
	for row := range rows {
		for g := range across {
			copy(moved[(g*rows+row)*n:][:n], raw[(row*across+g)*n:])
		}
	}
	return moved
}

// line decodes the columns of a stored row.
func (c *columns) line(ctx context.Context, dst []float64, row int64) error {
	s := &c.t.stored
	if c.codes == nil || c.scales == nil {
		return s.Decode(ctx, dst, (c.matrix*s.rows+row)*s.cols+c.col, c.parts)
	}
	table := (*[16]float64)(s.table)
	for col := c.col; len(dst) > 0; {
		block, at := col/groupMX*s.rows+row, col%groupMX
		n := min(int64(len(dst)), groupMX-at)
		halves(dst[:n], c.codes[block*groupMX/2+at/2:], table, e8m0(c.scales[block]), at%2 == 1)
		dst, col = dst[n:], col+n
	}
	return nil
}
