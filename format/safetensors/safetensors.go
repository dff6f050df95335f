// Package safetensors reads safetensors files by position, strictly, and writes them; the same
// tensors always give the same bytes. It serves the authors of dialects. To open an adapter, use
// package convert.
package safetensors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/safetensors"
	nlp "github.com/nlpodyssey/safetensors"
)

// File is an open safetensors file. Several goroutines may call its methods at once.
type File struct {
	r       io.ReaderAt
	header  *safetensors.Header
	tensors []format.Tensor
}

// Open reads and checks the header of a file of size bytes: valid UTF-8, no name twice, sizes that
// match dtype and shape, and data without gaps or overlaps up to the end of the file. It reads no
// other byte, and needs a small multiple of the header's size in memory. An error is a
// *format.Error without a path, or comes from r or ctx.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*File, error) {
	h, err := safetensors.Read(ctx, r, size)
	if err != nil {
		return nil, err
	}
	f := &File{r: r, header: h}
	for i := range h.Tensors {
		t := &h.Tensors[i]
		f.tensors = append(f.tensors, format.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape})
	}
	return f, nil
}

// Tensors returns the tensors in the order of their data. Every call returns the same slice, which
// the caller must not change.
func (f *File) Tensors() []format.Tensor { return f.tensors }

// Metadata returns a copy of the strings in __metadata__, nil if there are none.
func (f *File) Metadata() map[string]string { return maps.Clone(f.header.Metadata) }

// ReadBlobAt fills p with the bytes of tensor i from offset off, little-endian and row-major.
// Reading outside the tensor is an error.
func (f *File) ReadBlobAt(p []byte, i int, off int64) error {
	t := &f.header.Tensors[i]
	if off < 0 || off > t.NBytes || int64(len(p)) > t.NBytes-off {
		return fmt.Errorf("read of %d bytes at offset %d of tensor %q, which has %d bytes", len(p), off, t.Name, t.NBytes)
	}
	_, err := io.ReadFull(io.NewSectionReader(f.r, t.Off+off, int64(len(p))), p)
	return err
}

// Write writes a file of tensors with distinct names, and metadata, which may be nil. It calls read
// to fill p with the bytes of tensor i from offset off, as format.Source.ReadBlobAt does. The data
// are in the order of Hugging Face's own writer: the widest dtypes first, then by name. Write reads
// the tensors in this order, one whole tensor at a time. Check tells which tensors it cannot write.
func Write(ctx context.Context, w io.Writer, tensors []format.Tensor, metadata map[string]string, read func(p []byte, i int, off int64) error) error {
	if err := Check(tensors); err != nil {
		return err
	}
	views := make(map[string]view, len(tensors))
	var failure error
	for i := range tensors {
		t := &tensors[i]
		d, _ := nlp.ParseDType(t.DType.String())
		load := func() ([]byte, error) {
			p := make([]byte, t.NBytes())
			return p, errors.Join(ctx.Err(), read(p, i, 0))
		}
		views[t.Name] = view{tensor: t, dtype: d, load: load, failure: &failure}
	}
	err := nlp.SerializeToWriter(views, metadata, w)
	return errors.Join(failure, err)
}

// Check reports whether Write can write these tensors, before any work is done. Write supports
// neither dtypes of less than a byte nor 8-bit floats nor complex numbers, and no name may occur
// twice. Both errors have kind ErrUnsupported.
func Check(tensors []format.Tensor) error {
	names := make(map[string]bool, len(tensors))
	for i := range tensors {
		t := &tensors[i]
		if _, err := nlp.ParseDType(t.DType.String()); err != nil {
			return fault.New(fault.Unsupported, "tensor %q has dtype %v, which cannot be written", t.Name, t.DType)
		}
		if names[t.Name] {
			return fault.New(fault.Unsupported, "two tensors have the name %q", t.Name)
		}
		names[t.Name] = true
	}
	return nil
}

// view is a tensor that is read when the library writes it. The library's interface has no error,
// so the first one is kept, and nothing is read after it.
type view struct {
	tensor  *format.Tensor
	dtype   nlp.DType
	load    func() ([]byte, error)
	failure *error
}

func (v view) DType() nlp.DType { return v.dtype }
func (v view) DataLen() uint64  { return uint64(v.tensor.NBytes()) }
func (v view) Shape() []uint64  { return append([]uint64{}, v.tensor.Shape...) } // a nil slice would be written as null

func (v view) Data() []byte {
	if *v.failure != nil {
		return nil
	}
	p, err := v.load()
	*v.failure = err
	return p
}
