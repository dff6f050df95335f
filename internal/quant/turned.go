package quant

import "context"

// turned is a stack of matrices that are stored transposed: the checkpoint has out×in codes of
// each, and the model's tensor is in×out, as the experts of gpt-oss.
type turned struct{ stored scaled }

// turnedRows is the number of stored rows that are decoded before their values are put in place.
const turnedRows = 16

// Decode implements Codec. A row of the weight is a column of codes, so it reads the codes of many
// rows at once; a call for few elements costs nearly as much as one for a whole block.
func (t *turned) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	out, in := t.stored.rows, t.stored.cols
	for len(dst) > 0 {
		row, from := at/out, at%out
		nRows, n := int64(1), min(int64(len(dst)), out-from)
		if whole := int64(len(dst)) / out; from == 0 && whole > 0 {
			nRows = min(whole, in-row%in)
		}
		if err := t.columns(ctx, dst[:nRows*n], row, nRows, from, n, parts, b); err != nil {
			return err
		}
		dst, at = dst[nRows*n:], at+nRows*n
	}
	return nil
}

// columns decodes nRows rows of the weight, all of one matrix, from element from on, n of each.
func (t *turned) columns(
	ctx context.Context, dst []float64, row, nRows, from, n int64, parts Parts, b *buffers,
) error {
	s := &t.stored
	matrix, col := row/s.cols, row%s.cols
	lines := b.linesOf(turnedRows * nRows)
	for i := int64(0); i < n; i += turnedRows {
		k := min(turnedRows, n-i)
		if err := t.read(ctx, lines[:k*nRows], matrix*s.rows+from+i, k, col, parts, b); err != nil {
			return err
		}
		for j := range nRows {
			to := dst[j*n+i:][:k]
			for r := range to {
				to[r] = lines[int64(r)*nRows+j]
			}
		}
	}
	return nil
}

// read decodes the same columns, from col on, of k stored rows.
func (t *turned) read(
	ctx context.Context, lines []float64, row, k, col int64, parts Parts, b *buffers,
) error {
	s := &t.stored
	n := int64(len(lines)) / k
	if 16*n < s.cols || s.cols > pieceElements {
		for r := range k {
			if err := s.Decode(ctx, lines[r*n:][:n], (row+r)*s.cols+col, parts); err != nil {
				return err
			}
		}
		return nil
	}
	w, err := s.read(ctx, row, 0, row+k-1, s.cols-1, parts, b)
	if err != nil {
		return err
	}
	for r := range k {
		if err := w.line(lines[r*n:][:n], row+r, col); err != nil {
			return err
		}
	}
	return nil
}
