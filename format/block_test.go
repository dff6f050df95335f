package format

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// coded is a frame and its content.
type coded struct{ content, frame []byte }

// frames returns frames with raw, RLE and compressed blocks of every sort: those of both levels of
// the library for texts, and those of the coder for numbers.
func frames(t *testing.T) (all []coded) {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, 3))
	text, err := os.ReadFile(specFile)
	if err != nil {
		t.Fatal(err)
	}
	usual, best := library{}, library{best: true}
	for _, n := range []int{1, 40, 300, 3000, len(text), 3 * len(text)} {
		p := bytes.Repeat(text, 3)[:n]
		all = append(all, coded{p, usual.encode(nil, p)}, coded{p, best.encode(nil, p)})
	}
	var c coder
	for _, n := range []int{10, 2000, 100_000} {
		p := floats(rng, dtype.F32, n, 0.02)
		q := make([]byte, len(p))
		split(q, p, 4)
		all = append(all, coded{q, c.encode(nil, q, 4, &usual)})
	}
	return all
}

func TestThePlainDecoderAgreesWithTheLibrary(t *testing.T) {
	for _, c := range frames(t) {
		got := make([]byte, len(c.content))
		if n, ok := decodePlainly(got, c.frame); !ok || n != len(got) || !bytes.Equal(got, c.content) {
			t.Errorf("a frame of %d bytes decodes to %d, %v, or to other bytes", len(c.content), n, ok)
		}
	}
}

// TestThePlainDecoderRefusesWithTheLibrary flips bits of frames. Both decoders accept the same
// frames with the same content, but for those whose Huffman weights end within an update.
func TestThePlainDecoderRefusesWithTheLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 8))
	d := newDecoder(1)
	defer d.close()
	accepted, refused := 0, 0
	for _, c := range frames(t) {
		got := make([]byte, len(c.content))
		for range 2_000_000 / (len(got) + 2000) {
			p := bytes.Clone(c.frame)
			for range 1 + rng.IntN(2) {
				p[prefixBytes+rng.IntN(len(p)-prefixBytes-checksumBytes)] ^= 1 << rng.IntN(8)
			}
			if walkFrame(p, 0, int64(len(got))) != nil {
				continue
			}
			n, ok := decodePlainly(got, p)
			if ok = ok && n == len(got); ok { // a right checksum, for the library
				le.PutUint32(p[len(p)-checksumBytes:], uint32(xxh64(got)))
				accepted++
			} else {
				refused++
			}
			want, err := d.z.DecodeAll(p, make([]byte, 0, len(got)))
			weights := strings.Contains(fmt.Sprint(err), "fse decompress")
			if (err == nil) != ok && !weights || err == nil && !bytes.Equal(got, want) {
				t.Fatalf("%x: the library says %v, the plain decoder %v, or the bytes differ", p, err, ok)
			}
		}
	}
	if accepted < 100 || refused < 100 {
		t.Errorf("%d frames accepted and %d refused, want some of both", accepted, refused)
	}
}

// TestThePlainDecoderChecksTheChecksum changes bytes of a frame that the library refuses.
func TestThePlainDecoderChecksTheChecksum(t *testing.T) {
	file, err := os.ReadFile("../testdata/vectors/ok-weights-end-within-an-update.lora")
	if err != nil {
		t.Fatal(err)
	}
	off, end := opened(t, file).tail.span(0)
	frame, dst := file[off:end], make([]byte, 200)
	d := newDecoder(1)
	defer d.close()
	if err := d.decode(dst, frame, 0); err != nil {
		t.Errorf("decode = %v", err)
	}
	for rule, at := range map[string]int{"R17": len(frame) - 1, "R13": len(frame) - checksumBytes - 2} {
		p := bytes.Clone(frame)
		p[at]++
		if err := d.decode(dst, p, 0); ruleOf(err) != rule {
			t.Errorf("decode with byte %d changed = %v, want %s", at, err, rule)
		}
	}
}
