package quant

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
)

// RoundTripNF4 returns a codec of a plain weight of n elements, its only part: the values that the
// elements have after a quantisation to NF4. They are exact, a code times a scale of float32.
func RoundTripNF4(d dtype.Type, n int64) Codec { return &roundTrip{d, n} }

type roundTrip struct {
	stored dtype.Type
	n      int64
}

// Decode implements Codec. It reads whole blocks.
func (r *roundTrip) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	size := int64(r.stored.Size())
	var narrow []float32
	var m Memory
	for len(dst) > 0 {
		first := at / blockNF4 * blockNF4
		end := min(r.n, (at+min(int64(len(dst)), pieceElements)+blockNF4-1)/blockNF4*blockNF4)
		raw := b.scalesOf((end - first) * size)
		if err := parts.ReadPart(ctx, raw, 0, first*size); err != nil {
			return err
		}
		values := b.valuesOf(end - first)
		dtype.Widen64(values, r.stored, raw)
		narrow = sized(&narrow, end-first)
		for i, v := range values {
			narrow[i] = float32(v)
		}
		NF4.RoundTrip(values, narrow, 1, len(narrow), 0, &m)
		n := copy(dst, values[at-first:])
		dst, at = dst[n:], at+int64(n)
	}
	return nil
}
