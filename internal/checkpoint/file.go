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

// File is one weight file of a checkpoint. It reads like a safetensors file: a header, then the
// data of its tensors without gaps.
type File struct {
	Name    string // within the checkpoint's directory, as the output has it
	Path    string // as the user would write it
	Size    int64
	DataOff int64    // where the data begin; also the length of the header
	Tensors []Tensor // in the order of their data

	prefix string              // of the names of its tensors, which the header lacks
	data   Reader              // the whole file, header included
	header *safetensors.Header // without its tensors
	notes  []string            // remarks for the user

	isConverted bool  // whether the stored file is of another container than safetensors
	behind      *File // the file behind a view; nil for a stored file
	close       func() error
}

// Reader reads bytes by position. Several goroutines may call it at once.
type Reader interface {
	// ReadAt fills p with the bytes from offset off, or fails. A read that may wait, for example
	// for a network, ends when ctx ends.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Tensor is a tensor of a checkpoint.
type Tensor struct {
	Name   string
	DType  dtype.Type
	Shape  []uint64
	Off    int64 // from the start of its file
	NBytes int64
	Scheme string // how its values are quantised in the files, such as "MXFP4"; "" for plain values

	file *File
}

// ReadAt fills p with the bytes of the tensor from offset off.
func (t *Tensor) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || int64(len(p)) > t.NBytes-off {
		return fmt.Errorf("internal error: read of %d bytes at offset %d of %q, which has %d bytes", len(p), off, t.Name, t.NBytes)
	}
	return t.file.ReadAt(ctx, p, t.Off+off)
}

// Reader returns a reader of the whole tensor.
func (t *Tensor) Reader(ctx context.Context) io.Reader {
	return io.NewSectionReader(t.file.ReaderAt(ctx), t.Off, t.NBytes)
}

// Path returns the path of the tensor's file, as the user would write it.
func (t *Tensor) Path() string { return t.file.Path }

// Elements returns the number of elements; a tensor without dimensions has one.
func (t *Tensor) Elements() int64 {
	n, _ := dtype.NElements(t.Shape) // checked in the header
	return int64(n)
}

// newFile completes a file from its header.
func newFile(h *safetensors.Header, f *File) *File {
	f.DataOff, f.Tensors = h.DataOff, make([]Tensor, len(h.Tensors))
	for i, t := range h.Tensors {
		f.Tensors[i] = Tensor{Name: f.prefix + t.Name, DType: t.DType, Shape: t.Shape, Off: t.Off, NBytes: t.NBytes, file: f}
	}
	h.Tensors = nil
	f.header = h
	return f
}

// ReadAt fills p with the bytes of the file from offset off.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault.InFile(f.data.ReadAt(ctx, p, off), f.Path)
}

// ReaderAt returns a reader of the file that stops when ctx ends. For a stored file it returns the
// reader that the file was opened with: the system can copy ranges of an *os.File without passing
// them through the process.
func (f *File) ReaderAt(ctx context.Context) io.ReaderAt {
	if s, ok := f.data.(stored); ok {
		return s.r
	}
	return bound{ctx, f}
}

// Like returns the properties that a file made from this one inherits. A view has the permissions
// of the file behind it.
func (f *File) Like() fileio.Like {
	if f.behind != nil {
		return fileio.Like{Mode: f.behind.Like().Mode}
	}
	return fileio.LikeFile(f.opened())
}

// HoleBytes returns how many bytes of the file take no space on disk.
func (f *File) HoleBytes() int64 { return fileio.HoleBytes(f.opened()) }

// opened returns the reader that the file was opened with, nil for a view.
func (f *File) opened() any {
	if s, ok := f.data.(stored); ok {
		return s.r
	}
	return nil
}

// stored reads from a source that knows no context: a read in progress continues when the context
// ends.
type stored struct{ r io.ReaderAt }

func (s stored) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := io.ReadFull(io.NewSectionReader(s.r, off, int64(len(p))), p)
	return err
}

// bound is a file with a context.
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

// TensorAt returns the name of the tensor that holds a byte of the file; "" stands for the header.
func (f *File) TensorAt(off int64) string {
	for i := range f.Tensors {
		if t := &f.Tensors[i]; off >= t.Off && off < t.Off+t.NBytes {
			return t.Name
		}
	}
	return ""
}

// Header is the part of a weight file before its data. It names the tensors and the merges that the
// file records.
type Header struct {
	Raw    []byte // as stored in the file
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

// ParseHeader checks a header on its own, such as the header from before a merge. Errors name no
// path.
func ParseHeader(raw []byte) (*Header, error) {
	h, err := safetensors.ReadAlone(raw)
	if err != nil {
		return nil, err
	}
	return &Header{raw, h}, nil
}

// Fits reports whether h describes the data of the file: the same tensors, each at the same place
// after the header.
func (f *File) Fits(h *Header) bool {
	if len(h.parsed.Tensors) != len(f.Tensors) {
		return false
	}
	have := make(map[string]*Tensor, len(f.Tensors))
	for i := range f.Tensors {
		have[f.Tensors[i].Name] = &f.Tensors[i]
	}
	return !slices.ContainsFunc(h.parsed.Tensors, func(t safetensors.Tensor) bool {
		s := have[f.prefix+t.Name]
		return s == nil || s.DType != t.DType || !slices.Equal(s.Shape, t.Shape) || s.Off-f.DataOff != t.Off-h.parsed.DataOff
	})
}
