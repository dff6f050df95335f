// Package safetensors reads safetensors files by position, strictly, and writes them; the same
// tensors always give the same bytes. It serves the authors of dialects. To open an adapter, use
// package convert.
package safetensors

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/safetensors"
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

// pieceBytes is the number of bytes that Write reads at a time.
const pieceBytes = 1 << 20

// Write writes a file of tensors with distinct names, and metadata, which may be nil. It calls read
// to fill p with the bytes of tensor i from offset off, as format.Source.ReadBlobAt does. The data
// are in the order of Hugging Face's own writer: the widest dtypes first, then by name. Write reads
// the tensors in this order, and each as a whole if the dtypes are those of the library behind it,
// else in pieces. Check tells which tensors it cannot write.
func Write(ctx context.Context, w io.Writer, tensors []format.Tensor, metadata map[string]string, read func(p []byte, i int, off int64) error) error {
	if err := Check(tensors); err != nil {
		return err
	}
	if types, ok := libraryTypes(tensors); ok {
		return writeByLibrary(ctx, w, tensors, types, metadata, read)
	}
	order := make([]int, len(tensors))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := &tensors[i], &tensors[j]
		return safetensors.CompareData(a.DType, b.DType, a.Name, b.Name)
	})
	header, err := headerOf(tensors, order, metadata)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(w, pieceBytes)
	if _, err := buffered.Write(header); err != nil {
		return err
	}
	piece := make([]byte, pieceBytes)
	for _, i := range order {
		for off, n := int64(0), tensors[i].NBytes(); off < n; off += pieceBytes {
			p := piece[:min(pieceBytes, n-off)]
			if err := errors.Join(ctx.Err(), read(p, i, off)); err != nil {
				return err
			}
			if _, err := buffered.Write(p); err != nil {
				return err
			}
		}
	}
	return buffered.Flush()
}

// headerOf makes the header for tensors whose data lie in the given order.
func headerOf(tensors []format.Tensor, order []int, metadata map[string]string) ([]byte, error) {
	for key, value := range metadata {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return nil, fault.New(fault.Unsupported, "the metadata %q is not UTF-8", key)
		}
	}
	if len(metadata) == 0 {
		metadata = nil
	}
	entries := make([]safetensors.Tensor, len(order))
	for k, i := range order {
		t := &tensors[i]
		entries[k] = safetensors.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape, NBytes: t.NBytes()}
	}
	header := safetensors.Compose(entries, metadata)
	if n := len(header) - 8; n > safetensors.MaxHeaderBytes {
		return nil, fault.New(fault.Limit, "the header takes %d bytes, the format allows %d", n, safetensors.MaxHeaderBytes)
	}
	return header, nil
}

// Check reports whether Write can write these tensors, before any work is done. It refuses a name
// that occurs twice, that is not UTF-8, or that the format keeps for the metadata, and a tensor
// without a whole number of bytes, such as three elements of F4. Errors have kind ErrUnsupported.
func Check(tensors []format.Tensor) error {
	names := make(map[string]bool, len(tensors))
	for i := range tensors {
		t := &tensors[i]
		n, ok := dtype.NElements(t.Shape)
		if ok {
			_, ok = t.DType.NBytes(n)
		}
		switch {
		case t.DType == dtype.Invalid || !ok:
			return fault.New(fault.Unsupported, "tensor %q: %v of shape %d is not a whole number of bytes that a file can hold", t.Name, t.DType, t.Shape)
		case names[t.Name]:
			return fault.New(fault.Unsupported, "two tensors have the name %q", t.Name)
		case t.Name == safetensors.MetadataName || !utf8.ValidString(t.Name):
			return fault.New(fault.Unsupported, "a tensor cannot have the name %q", t.Name)
		}
		names[t.Name] = true
	}
	return nil
}
