package format

import (
	"bytes"
	"context"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// zeros is a source of one adapter with n bytes of zeros in tensors of 16 MiB. It needs no memory
// for them.
type zeros struct{ manifest Manifest }

func newZeros(n int) *zeros {
	z := &zeros{}
	a := Adapter{Method: "lora"}
	for i := range n >> 24 {
		z.manifest.Tensors = append(z.manifest.Tensors, Tensor{Name: string(rune('a' + i)), DType: dtype.F32, Shape: []uint64{1 << 22}})
		a.Beside = append(a.Beside, Beside{Action: Opaque, Tensor: i})
	}
	z.manifest.Adapters = []Adapter{a}
	return z
}

func (z *zeros) Manifest() *Manifest                       { return &z.manifest }
func (z *zeros) Close() error                              { return nil }
func (z *zeros) ReadBlobAt(p []byte, _ int, _ int64) error { clear(p); return nil }

// TestMemoryDoesNotGrowWithTheData reads 64 MiB of zeros from a legitimate file of a few bytes. All
// allocations together are a fraction of that size.
func TestMemoryDoesNotGrowWithTheData(t *testing.T) {
	const n, limit = 64 << 20, 20 << 20
	var file bytes.Buffer
	check := func(what string, f func()) {
		t.Helper()
		if got := allocated(f); got > limit {
			t.Errorf("%s takes %d bytes of memory for %d, want at most %d", what, got, n, limit)
		}
	}
	src := newZeros(n)
	check("Write", func() {
		if _, err := Write(context.Background(), &file, src, WriterOptions{Workers: 2}); err != nil {
			t.Fatal(err)
		}
	})
	p := file.Bytes()
	if len(p) > n/1000 {
		t.Errorf("the file has %d bytes", len(p))
	}
	opts := ReaderOptions{Workers: 2}
	check("Verify", func() {
		if _, err := Verify(context.Background(), bytes.NewReader(p), int64(len(p)), opts); err != nil {
			t.Fatal(err)
		}
	})
	check("a stream", func() {
		s, err := NewStreamReader(bytes.NewReader(p), opts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.each(context.Background(), func(int, int64, []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
	check("reading by position", func() {
		r, err := NewReader(bytes.NewReader(p), int64(len(p)), opts)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		buffer := make([]byte, 1<<20)
		for off := int64(0); off < 1<<24; off += int64(len(buffer)) {
			if err := r.ReadBlobAt(buffer, 3, off); err != nil {
				t.Fatal(err)
			}
		}
	})
	if _, err := NewReader(bytes.NewReader(p), int64(len(p)), ReaderOptions{MaxRawBytes: n - 1}); ruleOf(err) != "R56" {
		t.Errorf("NewReader with a lower limit = %v, want R56", err)
	}
}

// TestALyingHeadCostsNothing: a length in a file is a claim, and buys no memory.
func TestALyingHeadCostsNothing(t *testing.T) {
	p := appendHead(nil, head{chunkLog2: 24, manifestBytes: 16 << 20}, nil)
	le.PutUint32(p[4:], uint32(headBytes-skipBytes+16<<20))
	p = append(p, make([]byte, 100)...)
	if n := allocated(func() {
		if err := verifyBytes(p); ruleOf(err) != "R1" {
			t.Errorf("Verify = %v, want R1", err)
		}
		if err := streamBytes(p); ruleOf(err) != "R1" {
			t.Errorf("stream = %v, want R1", err)
		}
	}); n > 1<<20 {
		t.Errorf("a file of %d bytes takes %d bytes of memory", len(p), n)
	}
}
