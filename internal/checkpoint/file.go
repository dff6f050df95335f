package checkpoint

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/safetensors"
)

// File is one weight file of a checkpoint. It reads as a safetensors file: a header, and the data
// of its tensors without gaps.
type File struct {
	Name    string // within the checkpoint's directory
	Path    string // as the user would write it
	Size    int64
	DataOff int64    // where the data begin, and the length of the header
	Tensors []Tensor // in the order of their data

	data   Reader              // the whole file, header included
	header *safetensors.Header // without its tensors
	behind *File               // that a view shows; nil for a file that is read as it is stored
	close  func() error
}

// Reader hands out bytes by position. Several goroutines may read at once.
type Reader interface {
	// ReadAt fills p with the bytes from off on, or fails. A read that waits for others, such as
	// one over a network, ends when the context does.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Tensor is a tensor of a checkpoint.
type Tensor struct {
	Name   string
	DType  dtype.Type
	Shape  []uint64
	Off    int64 // from the start of its file
	NBytes int64

	file *File
}

// ReadAt fills p with the bytes of the tensor from off on.
func (t *Tensor) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || int64(len(p)) > t.NBytes-off {
		return fmt.Errorf("internal error: %d bytes at %d of %q, which has %d", len(p), off, t.Name, t.NBytes)
	}
	return t.file.ReadAt(ctx, p, t.Off+off)
}

// Reader reads the tensor from its start to its end.
func (t *Tensor) Reader(ctx context.Context) io.Reader {
	return io.NewSectionReader(t.file.ReaderAt(ctx), t.Off, t.NBytes)
}

// Path is the file that the tensor is in, as the user would write it.
func (t *Tensor) Path() string { return t.file.Path }

// Elements is the number of elements; a tensor without dimensions has one.
func (t *Tensor) Elements() int64 {
	n, _ := dtype.NElements(t.Shape) // checked when the header was read
	return int64(n)
}

// newFile completes a file from its header.
func newFile(h *safetensors.Header, f *File) *File {
	f.DataOff, f.Tensors = h.DataOff, make([]Tensor, len(h.Tensors))
	for i, t := range h.Tensors {
		f.Tensors[i] = Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape, Off: t.Off, NBytes: t.NBytes, file: f}
	}
	h.Tensors = nil
	f.header = h
	return f
}

// ReadAt fills p with the bytes of the file from off on.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault.InFile(f.data.ReadAt(ctx, p, off), f.Path)
}

// ReaderAt reads the file under a context. Where the file is read as it is stored, that is what it
// was opened with: an *os.File, of which the system copies ranges without reading them.
func (f *File) ReaderAt(ctx context.Context) io.ReaderAt {
	if s, ok := f.data.(stored); ok {
		return s.r
	}
	return bound{ctx, f}
}

// Like describes the file for one that is made from it. A view permits what the file behind it
// does.
func (f *File) Like() fileio.Like {
	if f.behind != nil {
		return fileio.Like{Mode: f.behind.Like().Mode}
	}
	return fileio.LikeFile(f.opened())
}

// HoleBytes is how much of the file takes no room on the disk.
func (f *File) HoleBytes() int64 { return fileio.HoleBytes(f.opened()) }

// opened is the reader that the file was opened with, nil for a view.
func (f *File) opened() any {
	if s, ok := f.data.(stored); ok {
		return s.r
	}
	return nil
}

// stored reads a source without a context: a read under way goes on when the context ends.
type stored struct{ r io.ReaderAt }

func (s stored) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := io.ReadFull(io.NewSectionReader(s.r, off, int64(len(p))), p)
	return err
}

// bound is a file under a context.
type bound struct {
	ctx  context.Context
	file *File
}

func (b bound) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), b.file.Size-off)))
	if err := b.file.ReadAt(b.ctx, p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// TensorAt names the tensor that holds a byte of the file; "" stands for the header.
func (f *File) TensorAt(off int64) string {
	for i := range f.Tensors {
		if t := &f.Tensors[i]; off >= t.Off && off < t.Off+t.NBytes {
			return t.Name
		}
	}
	return ""
}

// Header is what a weight file holds before its data. Besides the tensors it says what was merged
// into the file.
type Header struct {
	Raw    []byte // as the file stores it
	parsed *safetensors.Header
}

// Header reads the header of the file.
func (f *File) Header(ctx context.Context) (*Header, error) {
	raw := make([]byte, f.DataOff)
	if err := f.ReadAt(ctx, raw, 0); err != nil {
		return nil, err
	}
	return &Header{raw, f.header}, nil
}

// ParseHeader proves a header that stands alone, such as the one that a file had before a merge.
// Errors name no path.
func ParseHeader(raw []byte) (*Header, error) {
	h, err := safetensors.ReadAlone(raw)
	if err != nil {
		return nil, err
	}
	return &Header{raw, h}, nil
}

// Fits reports whether a parsed header describes the data of the file: the same tensors, each in
// the same place after the header.
func (f *File) Fits(h *Header) bool {
	if len(h.parsed.Tensors) != len(f.Tensors) {
		return false
	}
	have := make(map[string]*Tensor, len(f.Tensors))
	for i := range f.Tensors {
		have[f.Tensors[i].Name] = &f.Tensors[i]
	}
	return !slices.ContainsFunc(h.parsed.Tensors, func(t safetensors.Tensor) bool {
		s := have[t.Name]
		return s == nil || s.DType != t.DType || !slices.Equal(s.Shape, t.Shape) || s.Off-f.DataOff != t.Off-h.parsed.DataOff
	})
}
