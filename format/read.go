package format

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
)

// ReadTensor returns the bytes of tensor i of a source, little-endian and row-major.
func ReadTensor(ctx context.Context, src Source, i int) ([]byte, error) {
	return readBlob(ctx, src, i, src.Manifest().Tensors[i].NBytes())
}

// ReadFloats returns the elements of tensor i of a source, row-major and exactly as they are
// stored. A tensor of another type than F64, F32, F16 or BF16 is an error of the kind
// ErrUnsupported.
func ReadFloats(ctx context.Context, src Source, i int) ([]float64, error) {
	t := &src.Manifest().Tensors[i]
	if !t.DType.IsFloat() {
		return nil, Errorf(ErrUnsupported, "tensor %q is stored as %v, which is not read as floats", t.Name, t.DType)
	}
	p, err := ReadTensor(ctx, src, i)
	if err != nil {
		return nil, err
	}
	values := make([]float64, t.Elements())
	dtype.Widen64(values, t.DType, p)
	return values, nil
}

// ReadAttachment returns the attachment of a source with a name, nil where there is none. More than
// limit bytes are an error of the kind ErrLimit.
func ReadAttachment(ctx context.Context, src Source, name string, limit int64) ([]byte, error) {
	m := src.Manifest()
	for i, a := range m.Attachments {
		if a.Name != name {
			continue
		}
		if a.NBytes > limit {
			return nil, Errorf(ErrLimit, "the attachment %q has %d bytes, at most %d are read", name, a.NBytes, limit)
		}
		return readBlob(ctx, src, len(m.Tensors)+i, a.NBytes)
	}
	return nil, nil
}

// readBlob reads the n bytes of blob i, in pieces between which the context can end it.
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
