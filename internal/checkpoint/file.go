package checkpoint

import (
	"context"
	"fmt"
	"io"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// File is one weight file of a checkpoint. It reads like a safetensors file: a header, then the
// data of its tensors without gaps.
type File struct {
	Name    string // within the checkpoint's directory, as the output has it
	Path    string // as the user would write it
	Size    int64
	DataOff int64    // where the data begin; also the length of the header
	Tensors []Tensor // in the order of their data

	prefix string   // of the names of its tensors, which the header lacks
	data   Reader   // the whole file, header included
	header heading  // without its tensors
	notes  []string // remarks for the user

	isConverted bool  // whether the stored file is of another container than safetensors
	behind      *File // the file behind a view; nil for a stored file
	close       func() error
}

// heading is the part of a file before the data: metadata, and the list of the tensors, which a
// heading itself lacks. Each container that an output can have has its own.
type heading interface {
	// texts returns the metadata that are texts, by their keys.
	texts() map[string]string
	// with returns the header raw with one more text. key must be new. The data stay aligned.
	with(raw []byte, key, text string) ([]byte, error)
	// without returns the header raw without a text.
	without(raw []byte, key string) ([]byte, error)
	// compose returns the header of a file with the same metadata and other tensors, and sets their
	// offsets. The tensors have their names in the file. end is the length of the file.
	compose(tensors []Tensor) (raw []byte, h heading, end int64, err error)
	// compare orders dtypes so that all tensors of a file are aligned.
	compare(a, b dtype.Type) int
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

// newFile completes a file from its header. The names of tensors lack the prefix of the file.
func newFile(h heading, dataOff int64, tensors []Tensor, f *File) *File {
	f.header, f.DataOff, f.Tensors = h, dataOff, tensors
	for i := range tensors {
		tensors[i].Name, tensors[i].file = f.prefix+tensors[i].Name, f
	}
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
