package quant

import (
	"context"
	"encoding/binary"
	"math"
)

// Scales returns a codec whose values are the scales of the elements, in place of the elements, or
// nil where an element is not a code times a scale.
func Scales(c Codec) Codec {
	switch c := c.(type) {
	case *scaled:
		return c.with(ones[:len(c.table)], nil)
	case *turned:
		return &turned{*c.stored.with(ones[:len(c.stored.table)], nil)}
	case *blockwise:
		return scalesOfBlocks{c}
	}
	return nil
}

var ones = func() (values [256]float64) {
	for i := range values {
		values[i] = 1
	}
	return values
}()

// scalesOfBlocks decodes as if the map of all codes were 1.
type scalesOfBlocks struct{ weight *blockwise }

func (s scalesOfBlocks) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	return s.weight.Decode(ctx, dst, at, mapOfOnes{parts})
}

type mapOfOnes struct{ Parts }

func (m mapOfOnes) ReadPart(ctx context.Context, p []byte, part int, off int64) error {
	if part != partMap {
		return m.Parts.ReadPart(ctx, p, part, off)
	}
	for i := 0; i+4 <= len(p); i += 4 {
		binary.LittleEndian.PutUint32(p[i:], math.Float32bits(1))
	}
	return nil
}
