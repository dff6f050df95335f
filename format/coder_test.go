package format

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// codedSamples are contents of a chunk with very different statistics.
func codedSamples() map[string][]byte {
	rng := rand.New(rand.NewPCG(3, 3))
	samples := map[string][]byte{
		"zeros":     make([]byte, 140_000),
		"random":    randomBytes(140_000, 1),
		"text":      bytes.Repeat([]byte(`{"name":"model.layers.0.q_proj"},`), 2000),
		"one value": bytes.Repeat([]byte{7}, 5),
	}
	var mixed []byte
	for i := range 200 { // segments of other statistics and of odd lengths
		n := rng.IntN(3000)
		values := 1 + rng.IntN(1<<(i%9))
		for range n {
			mixed = append(mixed, byte(rng.IntN(values)*5))
		}
	}
	samples["mixed"] = mixed
	skewed := make([]byte, 100_000)
	for i := 0; i < len(skewed); i += 1 + rng.IntN(50) {
		skewed[i] = byte(rng.IntN(4))
	}
	samples["skewed"] = skewed
	for _, n := range []int{1, 2, 3, 255, 256, 257, 1023, 1024, 1025, 16383, 16384, 16385, 65791, 65792, 128<<10 - 1, 128 << 10, 128<<10 + 1} {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.NormFloat64() * 4)
		}
		samples[fmt.Sprint("normal ", n)] = p
	}
	return samples
}

func TestFramesDecodeAndKeepTheBound(t *testing.T) {
	d := newDecoder(1)
	defer d.close()
	var c coder
	lib := library{}
	for name, p := range codedSamples() {
		for _, width := range []int{1, 2, 4, 8} {
			p := p[:len(p)/width*width]
			frame := c.encode(nil, p, width, &lib)
			if n := int64(len(frame)); n > bound(int64(len(p))) {
				t.Errorf("%s, width %d: a frame of %d bytes for %d, the bound is %d", name, width, n, len(p), bound(int64(len(p))))
			}
			got := make([]byte, len(p))
			if err := d.decode(got, frame, 0); err != nil || !bytes.Equal(got, p) {
				t.Errorf("%s, width %d: decode(encode(p)) fails or differs: %v", name, width, err)
			}
			var fresh coder
			if again := fresh.encode(nil, p, width, &library{}); !bytes.Equal(again, frame) {
				t.Errorf("%s, width %d: a used coder makes another frame than a new one", name, width)
			}
			read, err := readFrame(bytes.NewReader(append(bytes.Clone(frame), "more"...)), nil, 0, int64(len(p)))
			if err != nil || !bytes.Equal(read, frame) {
				t.Errorf("%s, width %d: readFrame finds %d bytes, %v, want %d", name, width, len(read), err, len(frame))
			}
		}
	}
}

// TestQuickFramesDecodeAndKeepTheBound: a run takes one block, and noise its own length.
func TestQuickFramesDecodeAndKeepTheBound(t *testing.T) {
	d := newDecoder(1)
	defer d.close()
	var c coder
	samples := codedSamples()
	samples["a run"] = bytes.Repeat([]byte{7}, 300<<10)
	for name, p := range samples {
		frame := c.quick(nil, p)
		if n := int64(len(frame)); n > bound(int64(len(p))) || name == "a run" && n > 64 {
			t.Errorf("%s: a frame of %d bytes for %d, the bound is %d", name, n, len(p), bound(int64(len(p))))
		}
		got := make([]byte, len(p))
		if err := d.decode(got, frame, 0); err != nil || !bytes.Equal(got, p) {
			t.Errorf("%s: decode(quick(p)) fails or differs: %v", name, err)
		}
		var fresh coder
		if again := fresh.quick(nil, p); !bytes.Equal(again, frame) {
			t.Errorf("%s: a used coder makes another frame than a new one", name)
		}
	}
}

// TestCutsFollowTheStatistics codes two halves that no common Huffman code suits.
func TestCutsFollowTheStatistics(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 64<<10)
	for i := range p {
		p[i] = byte(rng.IntN(4))
		if i >= 40_000 {
			p[i] += 100
		}
	}
	var c cutter
	segments, n := c.cut(p, 0, len(p))
	const cut = 40_000 / pieceBytes * pieceBytes // the piece that spans both halves may stand alone
	if n != len(p) || len(segments) > 3 || segments[0].n < cut || segments[0].n > cut+pieceBytes {
		t.Errorf("cut covers %d bytes in %d segments, the first of %d bytes, want %d in 2 or 3, the first of about 40000", n, len(segments), segments[0].n, len(p))
	}
}

// TestRatio keeps the compression of normal values near the limit of Huffman codes: 2.591 bits for
// the exponent, and the rest uncompressed.
func TestRatio(t *testing.T) {
	for _, c := range []struct {
		dtype dtype.Type
		want  float64
	}{
		{dtype.F32, (2.6 + 24) / 32},
		{dtype.BF16, (2.6 + 8) / 16},
		{dtype.F16, 0.845},
	} {
		p := benchChunk(c.dtype)
		coded := make([]byte, len(p))
		split(coded, p, c.dtype.Size())
		var e coder
		if got := float64(len(e.encode(nil, coded, c.dtype.Size(), nil))) / float64(len(p)); got > c.want {
			t.Errorf("a chunk of %v has the ratio %.4f, want at most %.4f", c.dtype, got, c.want)
		}
	}
}

// TestCodingTakesMemoryOnce: a worker allocates once for all chunks. The library's pools may lose a
// table now and then.
func TestCodingTakesMemoryOnce(t *testing.T) {
	p := benchChunk(dtype.BF16)
	coded, frame := make([]byte, len(p)), make([]byte, 0, bound(int64(len(p))))
	var c coder
	d := newDecoder(1)
	defer d.close()
	encode := func() {
		split(coded, p, 2)
		frame = c.encode(frame[:0], coded, 2, nil)
	}
	decode := func() {
		if err := d.decode(coded, frame, 0); err != nil {
			t.Fatal(err)
		}
		join(p, coded, 2)
	}
	encode()
	decode()
	for what, f := range map[string]func(){"encoding": encode, "decoding": decode} {
		if n := allocated(f); n > 64<<10 {
			t.Errorf("%s a chunk of %d bytes takes %d bytes of memory", what, len(p), n)
		}
	}
}

// TestWalkFindsWhatADecoderAccepts holds frames that a general decoder accepts as one frame with
// the right content.
func TestWalkFindsWhatADecoderAccepts(t *testing.T) {
	content := []byte("content")
	n := int64(len(content))
	raw := func(last bool, p string) string {
		h := len(p) << 3
		if last {
			h |= 1
		}
		return string([]byte{byte(h), byte(h >> 8), byte(h >> 16)}) + p
	}
	sum := string(le.AppendUint32(nil, uint32(xxh64(content))))
	empty := string(le.AppendUint32(nil, uint32(xxh64(nil))))
	const magic = "\x28\xb5\x2f\xfd"
	good := magic + "\x24\x07" + raw(true, "content") + sum
	for _, c := range []struct{ what, frame, rule string }{
		{"a frame", good, ""},
		{"a wide content size", magic + "\xe4\x07\x00\x00\x00\x00\x00\x00\x00" + raw(true, "content") + sum, ""},
		{"empty blocks", magic + "\x24\x07" + raw(false, "") + raw(false, "content") + raw(true, "") + sum, ""},
		{"two blocks", magic + "\x24\x07" + raw(false, "con") + raw(true, "tent") + sum, ""},
		{"nothing", "", "R10"},
		{"an empty frame behind", good + magic + "\x24\x00" + raw(true, "") + empty, "R15"},
		{"a skippable frame behind", good + "\x50\x2a\x4d\x18\x00\x00\x00\x00", "R15"},
		{"a skippable frame before", "\x50\x2a\x4d\x18\x00\x00\x00\x00" + good, "R10"},
		{"two frames", magic + "\x24\x03" + raw(true, "con") + sum + good, "R12"},
		{"no checksum", magic + "\x20\x07" + raw(true, "content"), "R11"},
		{"a window", magic + "\x04\x00" + raw(true, "content") + sum, "R11"},
		{"a dictionary", magic + "\x25\x00\x07" + raw(true, "content") + sum, "R11"},
		{"the unused bit", magic + "\x34\x07" + raw(true, "content") + sum, "R11"},
		{"the reserved bit", magic + "\x2c\x07" + raw(true, "content") + sum, "R11"},
		{"another content size", magic + "\x24\x08" + raw(true, "content") + sum, "R12"},
		{"too little", magic + "\x24\x07" + raw(true, "conten") + sum, "R14"},
		{"too much", magic + "\x24\x07" + raw(false, "content") + raw(true, "!") + sum, "R14"},
		{"a large block", magic + "\x24\x07" + raw(true, "content!") + sum, "R13"},
		{"a reserved block", magic + "\x24\x07\x3f\x00\x00content" + sum, "R13"},
		{"no last block", magic + "\x24\x07" + raw(false, "content") + sum, "R13"}, // the checksum is no block header
		{"no last block, nothing behind", magic + "\x24\x07" + raw(false, "content"), "R15"},
		{"treeless literals first", magic + "\x24\x07\x2d\x00\x00\x03\x00\x00\x00\x00" + sum, "R13"},
		{"a wrong checksum", good[:len(good)-1] + "\x00", "R17"},
		{"a cut", good[:len(good)-1], "R15"},
	} {
		d := newDecoder(1)
		got := make([]byte, n)
		err := d.decode(got, []byte(c.frame), 0)
		d.close()
		if ruleOf(err) != c.rule {
			t.Errorf("%s: decode = %v, want %q", c.what, err, c.rule)
		}
		if c.rule == "" && !bytes.Equal(got, content) {
			t.Errorf("%s: decode gives %q, want %q", c.what, got, content)
		}
	}
}

// TestAMillionEmptyBlocksAreTooLong: the length of a frame is bounded before it is read.
func TestAMillionEmptyBlocksAreTooLong(t *testing.T) {
	frame := append([]byte("\x28\xb5\x2f\xfd\x24\x07"), make([]byte, 3_000_000)...)
	r := bytes.NewReader(frame)
	if _, err := readFrame(r, nil, 0, 7); ruleOf(err) != "R16" {
		t.Errorf("readFrame = %v, want R16", err)
	}
	if read := len(frame) - r.Len(); read > int(bound(7)) {
		t.Errorf("readFrame has read %d bytes, want at most %d", read, bound(7))
	}
}
