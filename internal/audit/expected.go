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
	once      sync.Once
	probe     *probe // made when the first element differs; nil without ways to round
	probeErr  error
	mu        sync.Mutex
	left      int64 // bytes that have not been compared
	different int64 // elements
	far       int64 // of these, those that are not neighbours among the numbers of the dtype

	found   Tensor
	isDone  bool     // found is final
	fitting *fitting // nil if the weights of the adapters were not fitted
}

// isCompared reports whether the bytes of the merged tensor can be compared with the expected ones.
func (e *expected) isCompared() bool {
	return e.merged != nil && e.merged.DType == e.DType && slices.Equal(e.merged.Shape, e.Shape)
}

// isCoded reports whether both checkpoints have codes of a quantised weight, be they the same or
// not.
func (e *expected) isCoded() bool {
	return e.base != nil && e.merged != nil && e.base.Scheme != "" && e.merged.Scheme != ""
}

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
	// begin finds the ways to round a tensor in which an element differs; nil if there are none.
	begin func(e *expected) (*probe, error)
	// end judges a tensor with differences, after all of its bytes have been compared.
	end func(e *expected) error
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
	if len(f.within(off, off+n)) == 0 {
		return nil
	}
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
	var buf []byte
	for _, e := range f.within(off, end) {
		from, to := max(off, e.Off), min(end, e.Off+e.NBytes)
		if buf == nil {
			buf = make([]byte, min(int64(len(p)), pieceBytes))
		}
		for at := from; at < to; at += pieceBytes {
			n := min(pieceBytes, to-at)
			if err := e.merged.ReadAt(f.ctx, buf[:n], at-e.Off); err != nil {
				return 0, err
			}
			if err := f.compare(e, p[at-off:at-off+n], buf[:n], at-e.Off); err != nil {
				return 0, err
			}
		}
		if e.finish(to - from) {
			if err := f.end(e); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

// within lists the tensors that are compared and have bytes from off up to end.
func (f *comparedFile) within(off, end int64) (all []*expected) {
	first := sort.Search(len(f.tensors), func(i int) bool { return f.tensors[i].Off+f.tensors[i].NBytes > off })
	for _, e := range f.tensors[first:] {
		if e.Off >= end {
			break
		}
		if e.isCompared() && !e.isDone {
			all = append(all, e)
		}
	}
	return all
}

// finish counts compared bytes, and reports whether they were the last of a tensor with
// differences.
func (e *expected) finish(n int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left -= n
	return e.left == 0 && e.different > 0
}

// compare compares bytes of a tensor from offset off on, and explains the elements that differ. An
// element never lies in two pieces: blocks of a merge are whole rows, and pieces have a power of
// two of bytes.
func (c *comparison) compare(e *expected, want, got []byte, off int64) error {
	if bytes.Equal(want, got) {
		return nil
	}
	size := max(1, e.DType.Size()) // types narrower than a byte are compared by bytes
	places := make([]int64, 0, len(want)/size/16)
	var far int64
	for i := 0; i < len(want); i += 8 {
		x, y := word(want[i:]), word(got[i:])
		if x == y {
			continue
		}
		for k := 0; k < 8; k += size {
			a, b := cutBits(x, k, size), cutBits(y, k, size)
			if a == b {
				continue
			}
			places = append(places, (off+int64(i+k))/int64(size))
			if !areNeighbours(a, b, size) {
				far++
			}
		}
	}
	e.mu.Lock()
	e.different, e.far = e.different+int64(len(places)), e.far+far
	e.mu.Unlock()
	e.once.Do(func() { e.probe, e.probeErr = c.begin(e) })
	if e.probe == nil || e.probeErr != nil {
		return e.probeErr
	}
	return e.probe.test(c.ctx, places)
}

// word reads up to 8 bytes, the first as the lowest ones.
func word(p []byte) (x uint64) {
	if len(p) >= 8 {
		return binary.LittleEndian.Uint64(p)
	}
	for i, b := range p {
		x |= uint64(b) << (8 * i)
	}
	return x
}

// cutBits returns size bytes of a word, from byte k on.
func cutBits(x uint64, k, size int) uint64 { return x >> (8 * k) & (1<<(8*size) - 1) }

// areNeighbours reports whether two floats of size bytes follow each other, or are two zeros.
func areNeighbours(a, b uint64, size int) bool {
	x, y := ordered(a, size), ordered(b, size)
	if (x < 0) != (y < 0) {
		return max(x, y) == 0 && min(x, y) == -1 // the difference of others may overflow
	}
	return x-y <= 1 && y-x <= 1
}

// ordered maps the bits of a float to an integer with the order of the floats; both zeros are 0.
func ordered(bits uint64, size int) int64 {
	sign := uint64(1) << (8*size - 1)
	if bits&sign != 0 {
		return -int64(bits &^ sign)
	}
	return int64(bits)
}
