package format

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// slowSplit follows section 9 of the specification word for word.
func slowSplit(src []byte, width int) []byte {
	k, w := len(src)/width, uint(8*width)
	dst := make([]byte, len(src))
	for i := range k {
		var e uint64
		for b := range width {
			e |= uint64(src[i*width+b]) << (8 * b)
		}
		top := e >> (w - 1)
		e = e<<1&^0 | top
		for p := range width {
			dst[p*k+i] = byte(e >> (w - 8*uint(p) - 8))
		}
	}
	return dst
}

func randomBytes(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func TestSplitFollowsTheSpecAndJoinInvertsIt(t *testing.T) {
	for _, width := range []int{2, 4, 8} {
		for k := range 70 {
			src := randomBytes(k*width, uint64(k))
			got, back := make([]byte, len(src)), make([]byte, len(src))
			split(got, src, width)
			if want := slowSplit(src, width); !bytes.Equal(got, want) {
				t.Fatalf("split(%d elements of %d bytes) = %x, want %x", k, width, got, want)
			}
			join(back, got, width)
			if !bytes.Equal(back, src) {
				t.Fatalf("join(split(%d elements of %d bytes)) = %x, want %x", k, width, back, src)
			}
		}
	}
}

// TestSplitOfTheSpecExamples checks the table of section 9.
func TestSplitOfTheSpecExamples(t *testing.T) {
	for _, c := range []struct {
		dtype       dtype.Type
		raw, planes string
	}{
		{dtype.F32, "\x00\x00\x80\x3f\x00\x00\x20\xc0", "\x7f\x80\x00\x40\x00\x00\x00\x01"},
		{dtype.BF16, "\x80\x3f\x20\xc0", "\x7f\x80\x00\x41"},
		{dtype.F16, "\x00\x3c\x00\xc1", "\x78\x82\x00\x01"},
	} {
		got := make([]byte, len(c.raw))
		split(got, []byte(c.raw), c.dtype.Size())
		if string(got) != c.planes {
			t.Errorf("split(%v % x) = % x, want % x", c.dtype, c.raw, got, c.planes)
		}
	}
}

func BenchmarkSplit(b *testing.B) { benchmarkPlanes(b, split) }
func BenchmarkJoin(b *testing.B)  { benchmarkPlanes(b, join) }

func benchmarkPlanes(b *testing.B, f func(dst, src []byte, width int)) {
	for _, t := range []dtype.Type{dtype.BF16, dtype.F32, dtype.F64} {
		b.Run(fmt.Sprintf("dtype=%v", t), func(b *testing.B) {
			src, dst := randomBytes(1<<20, 1), make([]byte, 1<<20)
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				f(dst, src, t.Size())
			}
		})
	}
}

func TestXXH64(t *testing.T) {
	// The checksums of the worked example, and the reference value for empty input.
	coded := []byte("\x7f\x80\x7e\x81\x00\x40\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00")
	for _, c := range []struct {
		in   []byte
		want uint64
		mask uint64
	}{
		{nil, 0xef46db3751d8e999, 1<<64 - 1},
		{coded, 0xda436376, 1<<32 - 1},
		{[]byte("hi\n"), 0x92503d34, 1<<32 - 1},
	} {
		if got := xxh64(c.in) & c.mask; got != c.want {
			t.Errorf("xxh64(%q) = %x, want %x", c.in, got, c.want)
		}
	}
}
