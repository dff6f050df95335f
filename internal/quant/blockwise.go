package quant

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
)

// blockwise is a weight of bitsandbytes in 4 bits. Its blocks run over the flattened weight, so one
// can begin in the middle of a row:
//
//	w[k] = map[code[k]] · absmax[k / size]
//
// The high half of a byte is the code of the earlier element. Double quantisation stores absmax in
// bytes, and its value is that of two float32 operations:
//
//	absmax[b] = RN32(RN32(nestedMap[q[b]] · nestedAbsmax[b / nestedSize]) + offset)
type blockwise struct {
	size       int64
	nestedSize int64 // 0 without double quantisation
	offset     float32
}

// The parts of a blockwise weight, in their order.
const (
	partCodes = iota
	partAbsmax
	partMap
	partNestedAbsmax
	partNestedMap
)

// Decode implements Codec.
func (w *blockwise) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	if len(dst) == 0 {
		return nil
	}
	b := takeBuffers()
	defer b.giveBack()
	table, err := readF32(ctx, 16, partMap, 0, parts)
	if err != nil {
		return err
	}
	var nested []float64
	if w.nestedSize > 0 {
		if nested, err = readF32(ctx, 256, partNestedMap, 0, parts); err != nil {
			return err
		}
	}
	for len(dst) > 0 {
		n := min(int64(len(dst)), pieceElements)
		end := at + n
		codes := b.codesOf((end-1)/2 + 1 - at/2)
		if err := parts.ReadPart(ctx, codes, partCodes, at/2); err != nil {
			return err
		}
		first := at / w.size
		absmax := b.valuesOf((end-1)/w.size + 1 - first)
		if err := w.readAbsmax(ctx, absmax, first, nested, parts, b); err != nil {
			return err
		}
		for from := at / 2; at < end; {
			k := min(end, (at/w.size+1)*w.size) - at
			highFirst(dst[:k], codes[at/2-from:], (*[16]float64)(table), absmax[at/w.size-first], at%2 == 1)
			dst, at = dst[k:], at+k
		}
	}
	return nil
}

// highFirst multiplies the values of codes of half a byte by a scale, the high half of a byte
// first. odd says that the first code is a low half.
func highFirst(dst []float64, codes []byte, table *[16]float64, scale float64, odd bool) {
	if odd {
		dst[0] = table[codes[0]&0xf] * scale
		dst, codes = dst[1:], codes[1:]
	}
	n := len(dst) / 2
	pairs := dst[:2*n]
	for i, code := range codes[:n] {
		pairs[2*i], pairs[2*i+1] = table[code>>4]*scale, table[code&0xf]*scale
	}
	if len(dst) > 2*n {
		dst[2*n] = table[codes[n]>>4] * scale
	}
}

// readAbsmax reads the absmax of blocks from first on.
func (w *blockwise) readAbsmax(
	ctx context.Context, absmax []float64, first int64, nested []float64, parts Parts, b *buffers,
) error {
	n := int64(len(absmax))
	if w.nestedSize == 0 {
		raw := b.scalesOf(4 * n)
		if err := parts.ReadPart(ctx, raw, partAbsmax, 4*first); err != nil {
			return err
		}
		dtype.Widen64(absmax, dtype.F32, raw)
		return nil
	}
	raw := b.scalesOf(n)
	if err := parts.ReadPart(ctx, raw, partAbsmax, first); err != nil {
		return err
	}
	from := first / w.nestedSize
	outer, err := readF32(ctx, (first+n-1)/w.nestedSize+1-from, partNestedAbsmax, from, parts)
	if err != nil {
		return err
	}
	for i := range absmax {
		// The conversions round each operation, and prevent a fused multiply-add.
		product := float32(float32(nested[raw[i]]) * float32(outer[(first+int64(i))/w.nestedSize-from]))
		absmax[i] = float64(float32(product + w.offset))
	}
	return nil
}

// readF32 reads n numbers of a part from number at on.
func readF32(ctx context.Context, n int64, part int, at int64, parts Parts) ([]float64, error) {
	raw, values := make([]byte, 4*n), make([]float64, n)
	if err := parts.ReadPart(ctx, raw, part, 4*at); err != nil {
		return nil, err
	}
	dtype.Widen64(values, dtype.F32, raw)
	return values, nil
}
