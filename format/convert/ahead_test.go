package convert

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/parallel"
)

// countedFile counts the reads of a file and their bytes.
type countedFile struct {
	io.ReaderAt
	reads, bytes atomic.Int64
}

func (c *countedFile) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.ReaderAt.ReadAt(p, off)
}

func countedInput(size int) (*countedFile, *fileio.Input, []byte) {
	rng := rand.New(rand.NewPCG(5, 6))
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	c := &countedFile{ReaderAt: bytes.NewReader(content)}
	return c, &fileio.Input{ReaderAt: c, Closer: io.NopCloser(nil), Size: int64(size)}, content
}

// TestReadingAheadReturnsTheBytesOfTheFile: whatever the order, length and number of callers.
func TestReadingAheadReturnsTheBytesOfTheFile(t *testing.T) {
	_, f, content := countedInput(1 << 20)
	var a ahead
	err := parallel.For(t.Context(), 4, 4, func(_, k int) error {
		rng := rand.New(rand.NewPCG(7, uint64(k)))
		p, off := make([]byte, aheadBytes), 0
		for range 20_000 {
			n := rng.IntN(1 << rng.IntN(16))
			if rng.IntN(4) == 0 {
				off = rng.IntN(len(content))
			}
			if off+n > len(content) {
				off = len(content) - n
			}
			if err := a.readFull(f, p[:n], int64(off)); err != nil {
				return err
			}
			if !bytes.Equal(p[:n], content[off:off+n]) {
				t.Errorf("%d bytes at %d differ from those of the file", n, off)
			}
			off += n
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestReadingAheadTakesFewReads: small tensors in the order of the file share reads, even if the
// reader takes turns between two parts; tensors far from each other cost no more than their bytes.
func TestReadingAheadTakesFewReads(t *testing.T) {
	const size, n = 1 << 20, 1 << 10
	c, f, _ := countedInput(size)
	var a ahead
	p := make([]byte, n)
	for off := int64(0); off < size/2; off += n {
		for _, at := range []int64{off, off + size/2} {
			if err := a.readFull(f, p, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, most := c.reads.Load(), int64(size/aheadBytes+4); got > most {
		t.Errorf("reading %d bytes in pieces of %d took %d reads, want at most %d", size, n, got, most)
	}
	c.reads.Store(0)
	c.bytes.Store(0)
	a = ahead{}
	for off := int64(size) - n; off >= 0; off -= 3 * aheadBytes {
		if err := a.readFull(f, p, off); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := c.bytes.Load(), c.reads.Load()*n; got != want {
		t.Errorf("%d reads far from each other fetched %d bytes, want %d", c.reads.Load(), got, want)
	}
}
