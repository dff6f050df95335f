package pickle

import (
	"io"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// Base is a file whose tensors can be read by rows. Its methods are all that a reader of bases
// needs.
type Base struct{ file *File }

// ReadBase is Read for a file of any size. A tensor that is not contiguous would have to be
// gathered in memory, so the file is refused.
func ReadBase(r io.ReaderAt, size int64) (*Base, error) {
	f, err := Read(r, size)
	if err != nil {
		return nil, err
	}
	for i := range f.Tensors {
		if t := &f.Tensors[i]; !t.isContiguous() {
			return nil, fault.New(fault.Unsupported, "the pickle holds %q of shape %d with the strides %d, want a contiguous tensor", t.Name, t.Shape, t.strides).
				WithHint("load the model in Python, call contiguous() on its tensors, and save it again")
		}
	}
	return &Base{f}, nil
}

// Len returns the number of tensors.
func (b *Base) Len() int { return len(b.file.Tensors) }

// Tensor describes tensor i, in the order of the pickle.
func (b *Base) Tensor(i int) (name string, d dtype.Type, shape []uint64) {
	t := &b.file.Tensors[i]
	return t.Name, t.DType, t.Shape
}

// ReadAt fills p with the values of tensor i from byte offset off, as File.ReadAt does.
func (b *Base) ReadAt(p []byte, i int, off int64) error { return b.file.ReadAt(p, i, off) }

// Notes returns remarks for the user about the file.
func (b *Base) Notes() []string { return b.file.Notes("tensors of the model") }
