package checkpoint

import (
	"io"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/safetensors"
)

// File is one weight file of a checkpoint. It reads as a safetensors file: a header, and the data of
// its tensors without gaps.
type File struct {
	Name    string // within the checkpoint's directory
	Path    string // as the user would write it
	Size    int64
	DataOff int64       // where the data begin, and the length of the header
	Tensors []Tensor    // in the order of their data
	Data    io.ReaderAt // the whole file, header included

	header *safetensors.Header // without its tensors
	close  func() error
}

// Tensor is a tensor of a checkpoint.
type Tensor struct {
	Name   string
	DType  dtype.Type
	Shape  []uint64
	Off    int64 // from the start of its file
	NBytes int64
}

// Elements is the number of elements; a tensor without dimensions has one.
func (t *Tensor) Elements() int64 {
	n, _ := dtype.NElements(t.Shape) // checked when the header was read
	return int64(n)
}

// newFile completes a file by what its header says.
func newFile(h *safetensors.Header, f File) *File {
	f.DataOff, f.Tensors = h.DataOff, make([]Tensor, len(h.Tensors))
	for i, t := range h.Tensors {
		f.Tensors[i] = Tensor(t)
	}
	h.Tensors = nil
	f.header = h
	return &f
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
func (f *File) Header() (*Header, error) {
	raw := make([]byte, f.DataOff)
	if _, err := io.ReadFull(io.NewSectionReader(f.Data, 0, f.DataOff), raw); err != nil {
		return nil, fault.InFile(err, f.Path)
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

// Fits reports whether a parsed header describes the data of the file: the same tensors, each in the
// same place after the header.
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
