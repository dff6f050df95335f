package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"sort"
	"sync"

	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/merge"
)

// expected is a tensor that the merge makes, beside the tensor of the merged checkpoint.
type expected struct {
	merge.OutputTensor
	change *resolve.Change    // by the adapters; nil for none
	base   *checkpoint.Tensor // nil if the base lacks it, or has it in another shape
	merged *checkpoint.Tensor // nil if it is missing

	// Of a tensor that is compared byte by byte:
	mu        sync.Mutex
	left      int64   // bytes that have not been compared
	different int64   // elements
	far       int64   // of these, those that are not neighbours among the numbers of the dtype
	at        []int64 // the elements that differ, unsorted; cut off at mostKept
	isDone    bool    // the differences have been explained
	found     Tensor
	fitting   *fitting // nil if the weights of the adapters were not fitted
}

// isCompared reports whether the bytes of the merged tensor can be compared with the expected ones.
func (e *expected) isCompared() bool {
	return e.merged != nil && e.merged.DType == e.DType && slices.Equal(e.merged.Shape, e.Shape)
}

// mostKept is the number of different elements whose places are kept: all, up to about 1 %. A
// merge that computes in float32 has 0.001–0.2 % of them.
func (e *expected) mostKept() int64 { return 64 + elements(e.Shape)/96 }

func elements(shape []uint64) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= int64(d)
	}
	return n
}

// comparison is an output that compares in place of writing: the merge, correctly rounded, with the
// merged checkpoint. Each worker compares the bytes that it has just made.
type comparison struct {
	ctx   context.Context
	files map[string][]*expected // in the order of their data
	// complete is called once for each tensor with differences few enough to be kept, after its
	// last byte, by the worker that compared it.
	complete func(e *expected) error
}

func (c *comparison) Create(info output.Info) (output.File, error) {
	return &comparedFile{c, c.files[info.Name]}, nil
}
func (c *comparison) Commit() error { return nil }
func (c *comparison) Abort()        {}

// comparedFile is a file of a comparison.
type comparedFile struct {
	*comparison
	tensors []*expected
}

func (f *comparedFile) Close() error { return nil }

// pieceBytes is the number of bytes that are read together.
const pieceBytes = 1 << 20

func (f *comparedFile) CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error {
	buf := make([]byte, min(n, pieceBytes))
	for n > 0 {
		p := buf[:min(n, pieceBytes)]
		if _, err := src.ReadAt(p, srcOff); err != nil {
			return err
		}
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
		off, srcOff, n = off+int64(len(p)), srcOff+int64(len(p)), n-int64(len(p))
	}
	return nil
}

func (f *comparedFile) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	first := sort.Search(len(f.tensors), func(i int) bool { return f.tensors[i].Off+f.tensors[i].NBytes > off })
	var buf []byte
	for _, e := range f.tensors[first:] {
		if e.Off >= end {
			break
		}
		if !e.isCompared() {
			continue
		}
		from, to := max(off, e.Off), min(end, e.Off+e.NBytes)
		if buf == nil {
			buf = make([]byte, min(int64(len(p)), pieceBytes))
		}
		for at := from; at < to; at += pieceBytes {
			n := min(pieceBytes, to-at)
			if err := e.merged.ReadAt(f.ctx, buf[:n], at-e.Off); err != nil {
				return 0, err
			}
			e.compare(p[at-off:at-off+n], buf[:n], at-e.Off)
		}
		if e.finish(to - from) {
			if err := f.complete(e); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

// finish counts compared bytes, and reports whether they were the last and there are differences
// to explain.
func (e *expected) finish(n int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left -= n
	return e.left == 0 && e.different > 0 && e.different <= e.mostKept()
}

// compare compares bytes of the tensor from offset off on. An element never lies in two pieces:
// blocks of a merge are whole rows, and pieces have a power of two of bytes.
func (e *expected) compare(want, got []byte, off int64) {
	if bytes.Equal(want, got) {
		return
	}
	size := max(1, int64(e.DType.Size())) // types narrower than a byte are compared by bytes
	var places []int64
	var different, far int64
	most := e.mostKept()
	for i := int64(0); i < int64(len(want)); i += 8 {
		n := min(8, int64(len(want))-i)
		if n == 8 && binary.LittleEndian.Uint64(want[i:]) == binary.LittleEndian.Uint64(got[i:]) {
			continue
		}
		for k := i; k < i+n; k += size {
			if bytes.Equal(want[k:k+size], got[k:k+size]) {
				continue
			}
			different++
			if !areNeighbours(want[k:k+size], got[k:k+size]) {
				far++
			}
			if different <= most {
				places = append(places, (off+k)/size)
			}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.different, e.far = e.different+different, e.far+far
	if e.different > most {
		e.at = nil
	} else {
		e.at = append(e.at, places...)
	}
}

// areNeighbours reports whether two floats of equal size follow each other, or are two zeros.
func areNeighbours(a, b []byte) bool {
	x, y := ordered(a), ordered(b)
	if (x < 0) != (y < 0) {
		return max(x, y) == 0 && min(x, y) == -1 // the difference of others may overflow
	}
	return x-y <= 1 && y-x <= 1
}

// ordered maps the bits of a float to an integer with the order of the floats; both zeros are 0.
func ordered(p []byte) int64 {
	var bits uint64
	for i, b := range p {
		bits |= uint64(b) << (8 * i)
	}
	sign := uint64(1) << (8*len(p) - 1)
	if bits&sign != 0 {
		return -int64(bits &^ sign)
	}
	return int64(bits)
}
