package checkpoint

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
)

// decoder reads the values of a quantised weight, each rounded once to d. It keeps no scales: a
// block of rows needs only its own, and those of a large model fill gigabytes. kept is shared by
// all decoders of a checkpoint.
type decoder struct {
	weight *quant.Weight
	stored *refs // has the parts of the weight
	d      dtype.Type
	kept   *keeper
	lost   *lost // counts what reads meet; nil for F64
}

// lost counts values that a decoder has read.
type lost struct {
	name      string       // of the weight; "" for one that no decoder reads
	nonFinite atomic.Int64 // NaN, and infinity by scales
	overflown atomic.Int64 // numbers that d cannot hold
}

// count looks at values before they are rounded to d.
func (l *lost) count(values []float64, d dtype.Type) {
	layout, _ := d.Layout()
	limit := math.Ldexp(2-math.Ldexp(1, -layout.Fraction-1), layout.Bias()) // half a step above the largest number
	var nonFinite, overflown int64
	for _, x := range values {
		switch {
		case x-x != 0:
			nonFinite++
		case math.Abs(x) >= limit:
			overflown++
		}
	}
	l.nonFinite.Add(nonFinite)
	l.overflown.Add(overflown)
}

// ReadPart implements quant.Parts.
func (v *decoder) ReadPart(ctx context.Context, p []byte, part int, off int64) error {
	return v.part(part).ReadAt(ctx, p, off)
}

// KeepPart implements quant.Keeper.
func (v *decoder) KeepPart(
	ctx context.Context, part int, off, n int64, arrange func(raw []byte) []byte,
) ([]byte, error) {
	return v.kept.read(ctx, v.part(part), off, n, arrange)
}

// part finds a part by its name. A decoder does not keep them: a plan has one for every weight.
func (v *decoder) part(i int) *Tensor { return v.stored.tensor(v.weight.Parts[i]) }

// decodedElements is the number of elements that a decoder decodes at a time.
const decodedElements = 1 << 17

var decoderBuffers = sync.Pool{New: func() any { return new([]float64) }}

// ReadAt implements Reader.
func (v *decoder) ReadAt(ctx context.Context, p []byte, off int64) error {
	buffer := decoderBuffers.Get().(*[]float64)
	defer decoderBuffers.Put(buffer)
	size := int64(v.d.Size())
	for len(p) > 0 {
		first, skip := off/size, off%size
		n := min((skip+int64(len(p))+size-1)/size, decodedElements)
		if int64(cap(*buffer)) < n {
			*buffer = make([]float64, n)
		}
		values := (*buffer)[:n]
		if err := v.weight.Codec.Decode(ctx, values, first, v); err != nil {
			return err
		}
		if v.lost != nil {
			v.lost.count(values, v.d)
		}
		done := min(n*size-skip, int64(len(p)))
		if skip == 0 && done == n*size {
			store(v.d, p, values)
		} else {
			whole := make([]byte, n*size)
			store(v.d, whole, values)
			copy(p, whole[skip:])
		}
		p, off = p[done:], off+done
	}
	return nil
}

// store rounds values to d.
func store(d dtype.Type, p []byte, values []float64) {
	switch d {
	case dtype.F64:
		for i, x := range values {
			binary.LittleEndian.PutUint64(p[8*i:], math.Float64bits(x))
		}
	default:
		for i, x := range values {
			dtype.Store(d, p, i, x)
		}
	}
}

// ReadValues fills dst with the values of the elements at, at+1, …, in row-major order.
func (t *Tensor) ReadValues(ctx context.Context, dst []float64, at int64) error {
	if at < 0 || int64(len(dst)) > t.Elements()-at {
		return fmt.Errorf("internal error: read of %d elements from element %d of %q, which has %d", len(dst), at, t.Name, t.Elements())
	}
	if v := t.decoder(); v != nil && v.d == dtype.F64 {
		return fault.InFile(v.weight.Codec.Decode(ctx, dst, at, v), t.Path())
	}
	size := t.DType.Size()
	raw := make([]byte, min(len(dst), decodedElements)*size)
	for len(dst) > 0 {
		n := min(len(dst), decodedElements)
		if err := t.ReadAt(ctx, raw[:n*size], at*int64(size)); err != nil {
			return err
		}
		dtype.Widen64(dst[:n], t.DType, raw[:n*size])
		dst, at = dst[n:], at+int64(n)
	}
	return nil
}

// RowsAtOnce returns how many rows ReadValues should be asked for at least, where rows are cheaper
// together; 1 for most tensors.
func (t *Tensor) RowsAtOnce() int64 {
	if v := t.decoder(); v != nil {
		if c, ok := v.weight.Codec.(quant.Columnar); ok {
			return c.RowsAtOnce()
		}
	}
	return 1
}

// KeptBytes returns the largest memory that the checkpoint keeps beside the values that ReadValues
// returns.
func (t *Tensor) KeptBytes() int64 {
	if v := t.decoder(); v != nil {
		if c, ok := v.weight.Codec.(quant.Columnar); ok {
			return min(c.KeptBytes(), 2*keptBytes) * (keptRanges/2 + 1)
		}
	}
	return 0
}

// decoder returns the decoder of a quantised weight, nil for another tensor.
func (t *Tensor) decoder() *decoder {
	if s, ok := t.file.data.(*stitched); ok {
		v, _ := s.source(t.Off).(*decoder)
		return v
	}
	return nil
}
