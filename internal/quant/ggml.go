package quant

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/ggml"
)

// GGML returns the codec of a tensor of ggml's blocks. Part 0 holds the blocks, in the order of the
// elements.
//
// scaleEach is 0, or the number of elements, whole blocks, that each scale in F32 of part 1
// multiplies: NVFP4 has one for a tensor, or for an expert. A product with a scale is exact too.
// The type must be one that can be decoded.
func GGML(t ggml.Type, scaleEach int64) Codec { return &inBlocks{t, scaleEach} }

type inBlocks struct {
	blocks    ggml.Type
	scaleEach int64
}

// Decode implements Codec.
func (w *inBlocks) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	elements, size := w.blocks.Block()
	for len(dst) > 0 {
		n := min(int64(len(dst)), pieceElements)
		if w.scaleEach > 0 {
			n = min(n, w.scaleEach-at%w.scaleEach)
		}
		first, end := at/elements, (at+n+elements-1)/elements
		raw := b.codesOf((end - first) * size)
		if err := parts.ReadPart(ctx, raw, 0, first*size); err != nil {
			return err
		}
		w.piece(dst[:n], raw, at-first*elements)
		if w.scaleEach > 0 {
			scale := b.scalesOf(4)
			if err := parts.ReadPart(ctx, scale, 1, at/w.scaleEach*4); err != nil {
				return err
			}
			by := dtype.Load(dtype.F32, scale, 0)
			for i := range dst[:n] {
				dst[i] *= by
			}
		}
		dst, at = dst[n:], at+n
	}
	return nil
}

// piece decodes blocks, except for the elements before skip, and those for which dst has no room.
func (w *inBlocks) piece(dst []float64, raw []byte, skip int64) {
	var block [ggml.MaxElements]float64
	elements, size := w.blocks.Block()
	if skip > 0 {
		w.blocks.Decode(block[:], raw[:size])
		dst, raw = dst[copy(dst, block[skip:elements]):], raw[size:]
	}
	whole := int64(len(dst)) / elements
	w.blocks.Decode(dst, raw[:whole*size])
	if dst, raw = dst[whole*elements:], raw[whole*size:]; len(dst) > 0 {
		w.blocks.Decode(block[:], raw)
		copy(dst, block[:])
	}
}
