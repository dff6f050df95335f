package format

import (
	"context"
	"fmt"

	"github.com/loratool/loratool/format/dtype"
)

// ReadTensor returns the bytes of tensor i, little-endian and row-major. The caller owns the slice.
// An index outside of Manifest.Tensors is an error.
func ReadTensor(ctx context.Context, src Source, i int) ([]byte, error) {
	t, err := tensorAt(src, i)
	if err != nil {
		return nil, err
	}
	return readBlob(ctx, src, i, t.NBytes())
}

// tensorAt returns tensor i of a source.
func tensorAt(src Source, i int) (*Tensor, error) {
	tensors := src.Manifest().Tensors
	if i < 0 || i >= len(tensors) {
		return nil, fmt.Errorf("the source has no tensor %d: it has %d", i, len(tensors))
	}
	return &tensors[i], nil
}

// ReadFloats returns the elements of tensor i, row-major and without rounding. The tensor must be
// F64, F32, F16 or BF16; any other dtype is an error of kind ErrUnsupported. An index outside of
// Manifest.Tensors is an error.
func ReadFloats(ctx context.Context, src Source, i int) ([]float64, error) {
	t, err := tensorAt(src, i)
	if err != nil {
		return nil, err
	}
	if !t.DType.IsFloat() {
		return nil, Errorf(ErrUnsupported, "tensor %q has dtype %v, want F64, F32, F16 or BF16", t.Name, t.DType)
	}
	p, err := ReadTensor(ctx, src, i)
	if err != nil {
		return nil, err
	}
	values := make([]float64, t.Elements())
	dtype.Widen64(values, t.DType, p)
	return values, nil
}

// ReadAttachment returns the attachment called name, or nil if the source has none. An attachment
// of more than limit bytes is an error of kind ErrLimit.
func ReadAttachment(ctx context.Context, src Source, name string, limit int64) ([]byte, error) {
	m := src.Manifest()
	for i, a := range m.Attachments {
		if a.Name != name {
			continue
		}
		if a.NBytes > limit {
			return nil, Errorf(ErrLimit, "attachment %q has %d bytes, the limit is %d", name, a.NBytes, limit)
		}
		return readBlob(ctx, src, len(m.Tensors)+i, a.NBytes)
	}
	return nil, nil
}

// readBlob reads the n bytes of blob i in pieces, and stops between two pieces if ctx ends.
func readBlob(ctx context.Context, src Source, i int, n int64) ([]byte, error) {
	p := make([]byte, n)
	for off := int64(0); off < n; off += readBytes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := src.ReadBlobAt(p[off:min(off+readBytes, n)], i, off); err != nil {
			return nil, err
		}
	}
	return p, ctx.Err()
}
