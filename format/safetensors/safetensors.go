// Package safetensors opens safetensors files, by position and strictly, and writes them, the same
// bytes for the same tensors. It is for the authors of dialects; adapters are opened with package
// convert.
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

// File is an open file. Its methods may be called from several goroutines at once.
type File struct {
	r       io.ReaderAt
	header  *safetensors.Header
	tensors []format.Tensor
}

// Open reads and proves the header of a file of the given size: UTF-8 without a name twice, sizes
// that follow from dtype and shape, and data without gap or overlap that end where the file ends.
// No other byte is read. Errors are a *format.Error without a path, of r, or of the context. Memory
// is a small multiple of the header.
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

// Tensors are the tensors in the order of their data. It is the same slice at every call and must
// not be changed.
func (f *File) Tensors() []format.Tensor { return f.tensors }

// Metadata is a copy of the texts under __metadata__, nil where there is none.
func (f *File) Metadata() map[string]string { return maps.Clone(f.header.Metadata) }

// ReadBlobAt fills p with the bytes from off of tensor i, little-endian and row-major. Reading
// outside the tensor is an error.
func (f *File) ReadBlobAt(p []byte, i int, off int64) error {
	t := &f.header.Tensors[i]
	if off < 0 || off > t.NBytes || int64(len(p)) > t.NBytes-off {
		return fmt.Errorf("read of %d bytes at %d of tensor %q, which has %d", len(p), off, t.Name, t.NBytes)
	}
	_, err := io.ReadFull(io.NewSectionReader(f.r, t.Off+off, int64(len(p))), p)
	return err
}

// Write writes a file of tensors, with names that are all different, and metadata, which may be
// nil. read fills p with the bytes from off of tensor i, as format.Source.ReadBlobAt does. The
// order of the data is that of huggingface's own writer: the widest dtypes first, then by name;
// tensors are read in it, one at a time, each whole. See Check for the tensors that are not
// written.
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

// Check reports whether Write can write a file of these tensors, before work is done for it. The
// dtypes of less than a byte, of 8-bit floats and of complex numbers are not written, and no name
// may be there twice: both are of the kind ErrUnsupported.
func Check(tensors []format.Tensor) error {
	names := make(map[string]bool, len(tensors))
	for i := range tensors {
		t := &tensors[i]
		if _, err := nlp.ParseDType(t.DType.String()); err != nil {
			return fault.New(fault.Unsupported, "tensor %q is stored as %v, which is not written", t.Name, t.DType)
		}
		if names[t.Name] {
			return fault.New(fault.Unsupported, "two tensors have the name %q", t.Name)
		}
		names[t.Name] = true
	}
	return nil
}

// view is a tensor that is read when the library writes it. The library has no place for an error,
// so the first one is kept, and nothing is read after it.
type view struct {
	tensor  *format.Tensor
	dtype   nlp.DType
	load    func() ([]byte, error)
	failure *error
}

func (v view) DType() nlp.DType { return v.dtype }
func (v view) DataLen() uint64  { return uint64(v.tensor.NBytes()) }
func (v view) Shape() []uint64  { return append([]uint64{}, v.tensor.Shape...) } // nil would be written as null

func (v view) Data() []byte {
	if *v.failure != nil {
		return nil
	}
	p, err := v.load()
	*v.failure = err
	return p
}
