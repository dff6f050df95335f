// Package pickle reads the tensors of a file that torch.save wrote, and nothing else in it. A
// pickle is a program that builds objects by calling functions it names. This reader knows the few
// names that tensors are built from (globals.go), never runs them, and refuses a file with any
// other name. It needs memory in proportion to the bytes of the file, whatever numbers the file
// contains. It reads values from their place in the file, on demand.
//
// It reads both containers of torch: the zip archive written since torch 1.6 (data.pkl, and one
// stored entry per storage), and the older sequence of pickles followed by the storages.
package pickle

import (
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/archive"
	"github.com/loratool/loratool/internal/fault"
)

// Tensor is one tensor of a file.
type Tensor struct {
	Name  string
	DType dtype.Type
	Shape []uint64
	view
}

// NBytes returns the size of the tensor's values in bytes. The storage behind the tensor may be
// larger, or smaller if the tensor repeats values.
func (t *Tensor) NBytes() int64 { return t.elements() * int64(t.DType.Size()) }

func (t *Tensor) elements() int64 {
	n, _ := dtype.NElements(t.Shape) // checked when the tensor was made
	return int64(n)
}

// File is a checked file: every tensor lies within a storage, and every storage within the file.
type File struct {
	Tensors []Tensor // in the order of the pickle
	Left    []string // keys of values beside the tensors, such as "epoch"

	// Unchecked reports that the archive has no checksums: with
	// torch.serialization.set_crc32_options(False), torch writes 0 for each of them.
	Unchecked bool

	r        io.ReaderAt
	size     int64
	storages []*storage
	byKey    map[string]*storage

	mu       sync.Mutex // guards gathered
	gathered []gathered // the latest is last
}

// gathered holds the values of a tensor that is not stored in row-major order.
type gathered struct {
	tensor int
	values []byte
}

// maxGathered bounds how many gathered tensors are kept, for readers that each read one from
// beginning to end.
const maxGathered = 4

// maxExpansion bounds the size of all tensors relative to the file. Views may share storages, but a
// view that repeats one value a billion times is a claim, not a weight.
const maxExpansion = 16

// Notes returns remarks for the user about what the file holds or lacks beside its tensors. what
// says what the tensors are.
func (f *File) Notes(what string) (notes []string) {
	if f.Unchecked {
		notes = append(notes, "the archive has no checksums (torch.serialization.set_crc32_options), so damage to its values would go unnoticed")
	}
	if len(f.Left) > 0 {
		notes = append(notes, fmt.Sprintf("the pickle also holds values that are not %s; they are left out: %s", what, fault.List(f.Left, 3)))
	}
	return notes
}

// ReadAt fills p with the values of tensor i from byte offset off, little-endian and row-major.
// Several goroutines may call it at once. The first read of a storage in an archive checks its
// checksum. A tensor stored in another order is gathered in memory on its first read. It stays
// there until its last byte is read, or until several other tensors have been gathered.
func (f *File) ReadAt(p []byte, i int, off int64) error {
	t := &f.Tensors[i]
	if len(p) == 0 {
		return nil
	}
	if err := t.storage.checkOnce(f.r); err != nil {
		return err
	}
	if t.isContiguous() {
		at := t.storage.Off + t.offset*int64(t.DType.Size())
		_, err := io.ReadFull(io.NewSectionReader(f.r, at+off, int64(len(p))), p)
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	at := slices.IndexFunc(f.gathered, func(g gathered) bool { return g.tensor == i })
	if at < 0 {
		values, err := f.gather(t)
		if err != nil {
			return err
		}
		if len(f.gathered) == maxGathered {
			f.gathered = slices.Delete(f.gathered, 0, 1)
		}
		at = len(f.gathered)
		f.gathered = append(f.gathered, gathered{i, values})
	}
	values := f.gathered[at].values
	copy(p, values[off:])
	if off+int64(len(p)) == int64(len(values)) {
		f.gathered = slices.Delete(f.gathered, at, at+1)
	}
	return nil
}

// view describes where the values of a tensor lie: element (i, j, …) is element offset +
// i·strides[0] + j·strides[1] + … of a storage.
type view struct {
	storage *storage
	offset  int64
	strides []int64
}

// storage is a range of bytes of the file that holds elements.
type storage struct {
	key   string
	dtype dtype.Type // Invalid for raw bytes, whose tensors have the dtype
	n     int64      // elements, as the pickle claims

	archive.Extent // its place in the file

	once    sync.Once
	checked error
}

// checkOnce compares the checksum of the storage.
func (s *storage) checkOnce(r io.ReaderAt) error {
	s.once.Do(func() { s.checked = s.Check(r) })
	return s.checked
}

func (s *storage) elementBytes() int64 { return int64(max(s.dtype.Size(), 1)) }

// isContiguous reports whether the values lie in row-major order.
func (t *Tensor) isContiguous() bool {
	want := int64(1)
	for i, d := range slices.Backward(t.Shape) {
		if d == 0 {
			return true
		}
		if d > 1 && t.strides[i] != want {
			return false
		}
		want *= int64(d)
	}
	return true
}

// end returns the index of the last element of the storage that the view reads, plus one. It is 0
// for a view without elements, whose offset may be anything. ok is false if the index exceeds an
// int64.
func (v *view) end(shape []uint64) (int64, bool) {
	last := v.offset
	for i, d := range shape {
		if d == 0 {
			return 0, true
		}
		if s := v.strides[i]; s > 0 && d > 1 {
			if int64(d-1) > (math.MaxInt64-1-last)/s {
				return 0, false
			}
			last += int64(d-1) * s
		}
	}
	return last + 1, true
}

// axis is a dimension of a view: its length, and the distance in bytes between neighbours in the
// file and in the result.
type axis struct{ n, from, to int64 }

// gather returns the values of a view in row-major order. It iterates over the largest strides
// first, and so reads each part of the storage about once.
func (f *File) gather(t *Tensor) ([]byte, error) {
	size := int64(t.DType.Size())
	var axes []axis
	to := size
	for i, d := range slices.Backward(t.Shape) {
		if d > 1 {
			axes = append(axes, axis{int64(d), t.strides[i] * size, to})
		}
		to *= int64(d)
	}
	slices.SortStableFunc(axes, func(a, b axis) int { return int(min(1, max(-1, b.from-a.from))) })
	g := &gatherer{dst: make([]byte, t.NBytes()), size: size, window: window{r: f.r, end: t.storage.Off + t.storage.NBytes}}
	return g.dst, g.walk(axes, t.storage.Off+t.offset*size, 0)
}

type gatherer struct {
	dst    []byte
	size   int64
	window window
}

func (g *gatherer) walk(axes []axis, from, to int64) error {
	if len(axes) == 1 { // there is at least one axis, because a tensor of one element is contiguous
		return g.line(axes[0], from, to)
	}
	for range axes[0].n {
		if err := g.walk(axes[1:], from, to); err != nil {
			return err
		}
		from += axes[0].from
		to += axes[0].to
	}
	return nil
}

// line copies the elements along one axis, as many at once as a window holds.
func (g *gatherer) line(a axis, from, to int64) error {
	most := a.n
	if a.from > 0 {
		most = min(most, (windowBytes-g.size)/a.from+1)
	}
	for left := a.n; left > 0; left -= most {
		n := min(left, most)
		p, err := g.window.at(from, (n-1)*a.from+g.size)
		if err != nil {
			return err
		}
		for i := range n {
			copy(g.dst[to:to+g.size], p[i*a.from:])
			to += a.to
		}
		from += n * a.from
	}
	return nil
}

// windowBytes is the size of the part of a storage that is in memory during gather.
const windowBytes = 1 << 16

// window is a part of a file in memory.
type window struct {
	r     io.ReaderAt
	end   int64 // of the readable range
	start int64
	bytes []byte
}

// at returns n bytes from offset off, valid until the next call.
func (w *window) at(off, n int64) ([]byte, error) {
	if at := off - w.start; at >= 0 && at+n <= int64(len(w.bytes)) {
		return w.bytes[at : at+n], nil
	}
	want := min(windowBytes, w.end-off)
	if int64(cap(w.bytes)) < want {
		w.bytes = make([]byte, want)
	}
	w.start, w.bytes = off, w.bytes[:want]
	if _, err := io.ReadFull(io.NewSectionReader(w.r, off, want), w.bytes); err != nil {
		w.bytes = w.bytes[:0]
		return nil, err
	}
	return w.bytes[:n], nil
}
