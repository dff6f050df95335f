package undo

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestOrderIsThatOfTheValues visits all values of the 16-bit dtypes: the integers ascend with the
// values, and unordered undoes ordered.
func TestOrderIsThatOfTheValues(t *testing.T) {
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16} {
		last := math.Inf(-1)
		for o := range uint64(1 << 16) {
			x := unordered(o, 2)
			if ordered(x, 2) != o {
				t.Fatalf("ordered(unordered(%04x)) = %04x", o, ordered(x, 2))
			}
			v := dtype.Load(d, []byte{byte(x), byte(x >> 8)}, 0)
			if math.IsNaN(v) {
				continue
			}
			if v < last || v == last && v != 0 && !math.IsInf(v, -1) {
				t.Fatalf("%v: value %v after %v", d, v, last)
			}
			last = v
		}
	}
	for _, width := range []int{4, 8} {
		for _, x := range []uint64{0, 1, 1 << (8*width - 1), 1<<(8*width-1) + 1, 1<<(8*width-1) - 1, math.MaxUint64 >> (64 - 8*width)} {
			if got := unordered(ordered(x, width), width); got != x {
				t.Errorf("width %d: unordered(ordered(%x)) = %x", width, x, got)
			}
		}
	}
}

// TestResidualIsTheDistanceInSteps: neighbours are one step apart, −0 and +0 included.
func TestResidualIsTheDistanceInSteps(t *testing.T) {
	for _, c := range []struct {
		w, p  uint64
		width int
		want  uint64
	}{
		{0x3f80, 0x3f80, 2, 0}, {0x3f7f, 0x3f80, 2, 1}, {0x3f81, 0x3f80, 2, 2}, {0x3f82, 0x3f80, 2, 4}, {0x8000, 0x0000, 2, 1}, {0x0000, 0x8000, 2, 2},
		{0x8001, 0x0000, 2, 3}, {0xffff, 0x7fff, 2, 1<<16 - 2 - 1 + 2 - 1}, {0x3f800001, 0x3f800000, 4, 2}, {0xbf800001, 0xbf800000, 4, 1},
		{0x3ff0000000000001, 0x3ff0000000000000, 8, 2}, {1 << 63, 0, 8, 1}, {3, 5, 1, 3},
	} {
		if c.w == 0xffff { // the two ends of the circle: one step down from the bottom is the top
			c.want = 2
		}
		if got := zigzag(c.w, c.p, c.width); got != c.want {
			t.Errorf("zigzag(%x, %x, %d) = %d, want %d", c.w, c.p, c.width, got, c.want)
		}
	}
}

// TestDecodeInvertsEncode: for every width, for blocks of odd lengths, for any number and size of
// residuals, with zeros of both signs and NaNs.
func TestDecodeInvertsEncode(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var c coded
	planar, spread := 0, 0
	for _, width := range []int{1, 2, 4, 8} {
		for _, n := range []int{0, 1, 2, 3, 7, 8, 255, 256, 257, 1000, 5000} {
			for _, share := range []float64{0, 0.001, 0.05, 0.5, 1} {
				for _, size := range []uint64{1, 3, 300, math.MaxUint64} {
					p := make([]byte, n*width)
					for i := range p {
						p[i] = byte(rng.Uint32())
					}
					w := bytes.Clone(p)
					changed := int64(0)
					for i := range n {
						if rng.Float64() >= share {
							continue
						}
						if z := 1 + rng.Uint64N(size); z<<(64-8*width) != 0 {
							correct(w[i*width:], z&(math.MaxUint64>>(64-8*width)), width)
						}
					}
					for i := range n {
						if !bytes.Equal(w[i*width:(i+1)*width], p[i*width:(i+1)*width]) {
							changed++
						}
					}
					c.encode(w, p, width)
					if c.planar {
						planar++
					} else if len(c.marks) > 0 {
						spread++
					}
					if c.bytes() > len(w) {
						t.Fatalf("width %d, %d elements: %d bytes of residuals", width, n, c.bytes())
					}
					if width == 2 {
						var known coded
						differs, z := make([]uint64, (n+63)/64), bytes.Repeat([]byte{0xee}, 2*n)
						for i := range n {
							if x := zigzag(load(w[2*i:], 2), load(p[2*i:], 2), 2); x != 0 {
								differs[i>>6] |= 1 << (i & 63)
								le.PutUint16(z[2*i:], uint16(x))
							}
						}
						known.encodeKnown(differs, z)
						if known.planar != c.planar || !bytes.Equal(known.marks, c.marks) || !bytes.Equal(known.sizes, c.sizes) || !bytes.Equal(known.escapes, c.escapes) {
							t.Fatalf("%d elements, share %v, size %d: known residuals have another code", n, share, size)
						}
					}
					got := bytes.Clone(p)
					corrected, err := c.decode(got, width)
					if err != nil || corrected != changed || !bytes.Equal(got, w) {
						t.Fatalf("width %d, %d elements, share %v, size %d: %d corrected of %d, %v", width, n, share, size, corrected, changed, err)
					}
				}
			}
		}
	}
	if planar == 0 || spread == 0 {
		t.Errorf("%d blocks in planes, %d in marks: both must occur", planar, spread)
	}
}

// TestDecodeRejectsPlanesThatDoNotFit: planes of the wrong length are an error and never a panic.
func TestDecodeRejectsPlanesThatDoNotFit(t *testing.T) {
	for i, c := range []coded{
		{sizes: []byte{0}},
		{escapes: []byte{1, 0}},
		{marks: []byte{4}},          // an element behind the end
		{marks: []byte{80 + 3, 80}}, // the second one is
		{marks: []byte{240}},        // 80 zeros in a block of 4
		{marks: []byte{247}},        // no mark
		{marks: []byte{255}},        // nor this
		{marks: []byte{160}},        // no size
		{marks: []byte{160}, sizes: []byte{0, 0}},
		{marks: []byte{160}, sizes: []byte{255}, escapes: []byte{1}},
		{marks: []byte{160}, sizes: []byte{0}, escapes: []byte{1, 0}},
	} {
		if _, err := c.decode(make([]byte, 8), 2); err == nil {
			t.Errorf("case %d was accepted", i)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, share := range []float64{0.002, 0.05, 0.3} {
		b.Run(fmt.Sprintf("share=%v", share), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			p := make([]byte, 1<<20)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			w := bytes.Clone(p)
			for i := 0; i < len(w); i += 2 {
				if rng.Float64() < share {
					correct(w[i:], 1+rng.Uint64N(3), 2)
				}
			}
			var c coded
			b.SetBytes(int64(len(w)))
			for b.Loop() {
				c.encode(w, p, 2)
			}
		})
	}
}

func BenchmarkEncodeKnown(b *testing.B) {
	for _, share := range []float64{0.002, 0.05, 0.3} {
		b.Run(fmt.Sprintf("share=%v", share), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			z, differs := make([]byte, 1<<20), make([]uint64, 1<<13)
			for i := range len(z) / 2 {
				if rng.Float64() < share {
					le.PutUint16(z[2*i:], uint16(1+rng.Uint64N(3)))
					differs[i>>6] |= 1 << (i & 63)
				}
			}
			var c coded
			b.SetBytes(int64(len(z)))
			for b.Loop() {
				c.encodeKnown(differs, z)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	w := bytes.Clone(p)
	for i := 0; i < len(w); i += 2 {
		if rng.Float64() < 0.05 {
			correct(w[i:], 1+rng.Uint64N(3), 2)
		}
	}
	var c coded
	c.encode(w, p, 2)
	b.SetBytes(int64(len(w)))
	for b.Loop() {
		if _, err := c.decode(p, 2); err != nil {
			b.Fatal(err)
		}
	}
}
