package pickle

import (
	"bytes"
	"io"

	"github.com/loratool/loratool/internal/fault"
)

// IsPickle reports whether a file that begins with start may be readable by Read: a zip archive, or
// a pickle of protocol 2 or later.
func IsPickle(start []byte) bool {
	return bytes.HasPrefix(start, []byte("PK\x03\x04")) || len(start) > 1 && start[0] == opProto && start[1] >= 2 && start[1] <= 5
}

// Read reads the names, dtypes and shapes of the tensors in a file of size bytes, but no values.
// Errors are a *fault.Error without a path, or come from r.
func Read(r io.ReaderAt, size int64) (*File, error) { return readFile(r, size, (*File).take) }

// ReadNested is Read for a file whose tensors lie anywhere in nested dictionaries and lists. Their
// names are the keys and positions on the way, joined by dots.
func ReadNested(r io.ReaderAt, size int64) (*File, error) {
	return readFile(r, size, func(f *File, top any) error {
		if err := f.takeNested("", top, 0); err != nil {
			return err
		}
		return f.checkDistinct()
	})
}

func readFile(r io.ReaderAt, size int64, take func(*File, any) error) (*File, error) {
	start := make([]byte, min(size, 4))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), start); err != nil {
		return nil, err
	}
	f := &File{r: r, size: size, byKey: make(map[string]*storage)}
	read := f.readLegacy
	if bytes.HasPrefix(start, []byte("PK")) {
		read = f.readZip
	}
	top, err := read()
	if err != nil {
		return nil, err
	}
	if err := take(f, top); err != nil {
		return nil, err
	}
	return f, f.prove()
}

// prove checks the sizes claimed by the pickle against the storages in the file.
func (f *File) prove() error {
	for _, s := range f.storages {
		if want := s.n * s.elementBytes(); want > s.NBytes {
			return fault.New(fault.Truncated, "storage %q claims %d bytes, the file holds %d", s.key, want, s.NBytes).
				WithHint("the file was not written or downloaded completely; fetch it again")
		}
	}
	var total int64
	for i := range f.Tensors {
		n := f.Tensors[i].NBytes()
		if n > maxExpansion*f.size-total {
			return fault.New(fault.Limit, "with tensor %q, %v of shape %d, all tensors are more than %d times as large as the file", f.Tensors[i].Name, f.Tensors[i].DType, f.Tensors[i].Shape, maxExpansion).
				WithHint("its values are repeated by a stride of 0; save a contiguous copy")
		}
		total += n
	}
	return nil
}
