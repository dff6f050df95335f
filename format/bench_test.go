package format

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// The benchmarks work on the likeness of a trained adapter of a 7B model: tensors of 16×4096 from
// N(0, σ), chunks of 1 MiB. Encode and Decode are one chunk on one core, with transform,
// compression and checksum; Write, Read and Verify are whole files with their SHA-256.

var benchTypes = []dtype.Type{dtype.F32, dtype.BF16, dtype.F16}

func benchChunk(t dtype.Type) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 0, 1<<20)
	for sigma := 0.01; len(p) < 1<<20; sigma *= 1.1 {
		p = append(p, floats(rng, t, 16*4096, sigma)...)
	}
	return p
}

func BenchmarkEncode(b *testing.B) {
	for _, t := range benchTypes {
		b.Run(fmt.Sprintf("dtype=%v", t), func(b *testing.B) {
			p := benchChunk(t)
			coded, frame := make([]byte, len(p)), make([]byte, 0, bound(int64(len(p))))
			var c coder
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				split(coded, p, t.Size())
				frame = c.encode(frame[:0], coded, t.Size(), nil)
			}
			b.ReportMetric(float64(len(frame))/float64(len(p)), "ratio")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, t := range benchTypes {
		b.Run(fmt.Sprintf("dtype=%v", t), func(b *testing.B) {
			p := benchChunk(t)
			coded, out := make([]byte, len(p)), make([]byte, len(p))
			split(coded, p, t.Size())
			var c coder
			frame := c.encode(nil, coded, t.Size(), nil)
			d := newDecoder(1)
			defer d.close()
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				if err := d.decode(coded, frame, 0); err != nil {
					b.Fatal(err)
				}
				join(out, coded, t.Size())
			}
			if !bytes.Equal(out, p) {
				b.Fatal("the chunk came back changed")
			}
		})
	}
}

func benchFiles(b *testing.B, f func(b *testing.B, src *memory)) {
	for _, t := range benchTypes[:2] {
		b.Run(fmt.Sprintf("dtype=%v", t), func(b *testing.B) {
			src := plain(t, 64, 4096, 16, 1)
			var n int64
			for _, p := range src.blobs {
				n += int64(len(p))
			}
			b.SetBytes(n)
			b.ReportAllocs()
			f(b, src)
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	benchFiles(b, func(b *testing.B, src *memory) {
		for b.Loop() {
			if _, err := Write(context.Background(), io.Discard, src, WriterOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	benchFiles(b, func(b *testing.B, src *memory) {
		file, _ := written(b, src, WriterOptions{})
		r := opened(b, file)
		p := make([]byte, 16*4096*4)
		for b.Loop() {
			for i := range src.blobs {
				if err := r.ReadBlobAt(p[:r.manifest.Tensors[i].NBytes()], i, 0); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	benchFiles(b, func(b *testing.B, src *memory) {
		file, _ := written(b, src, WriterOptions{})
		for b.Loop() {
			if err := verifyBytes(file); err != nil {
				b.Fatal(err)
			}
		}
	})
}
