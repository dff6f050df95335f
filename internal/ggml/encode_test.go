package ggml_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"testing"

	"github.com/loratool/loratool/internal/ggml"
)

// randomRows are the numbers of make_truth.py: rows of 256, with ties, subnormal numbers, zeros of
// both signs, NaN and infinities.
func randomRows() map[string][]float32 {
	p := randomBytes("rows", 1024*1024)
	rows := make(map[string][]float32)
	add := func(kind string, bits uint32) { rows[kind] = append(rows[kind], math.Float32frombits(bits)) }
	for i := range len(p) / 4 {
		word := func(i int) uint32 { return binary.LittleEndian.Uint32(p[4*i:]) }
		small := func(i int) uint32 { return word(i)&0x807fffff | (word(i)>>23&7+120)<<23 }
		w := word(i)
		add("any bits", w)
		add("below one", small(i))
		add("sixteenths", math.Float32bits(float32(int8(w))/16))
		add("few", math.Float32bits(float32(int8(w)/16)))
		add("subnormal", w&0x807fffff)
		if row := i / 256 * 256; word(row)%256 == uint32(i-row) {
			add("one", small(i))
		} else {
			add("one", w&(1<<31))
		}
		add("constant", small(i/32*32))
		add("huge", w&0x807fffff|(w>>23&3+251)<<23)
		first := word(i / 32 * 32)
		add("under powers of two", first&0xff800000|(0x7fffff-first&63)) // where log₂ rounds up
		add("around the least scales", w&0x807fffff|w>>23&15<<23)
	}
	return rows
}

func TestEncodeAgreesWithLlamaCpp(t *testing.T) {
	all := readTruth(t)
	n := 0
	for kind, rows := range randomRows() {
		for name, want := range all {
			typ := typeOf(t, name)
			if typ.CanEncode() != (want.Encoded != nil) {
				t.Errorf("%s: CanEncode = %v", name, typ.CanEncode())
			}
			if !typ.CanEncode() {
				continue
			}
			n++
			elements, size := typ.Block()
			blocks := make([]byte, int64(len(rows))/elements*size)
			typ.Encode(blocks, rows)
			if sum := sha256.Sum256(blocks); hex.EncodeToString(sum[:]) != want.Encoded[kind] {
				t.Errorf("%s: the blocks of numbers of the kind %q are not those of llama.cpp", name, kind)
			}
		}
	}
	if n != 10*11 {
		t.Errorf("compared %d times, want %d", n, 10*11)
	}
}

// Blocks that were decoded become the same again, as far as llama.cpp's do: a merge that changes
// nothing leaves the file as it is.
func TestEncodeKeepsItsOwnBlocks(t *testing.T) {
	for _, typ := range []ggml.Type{ggml.Q8_0, ggml.Q4_0, ggml.Q4_1, ggml.Q5_0, ggml.Q5_1, ggml.MXFP4} {
		rows := randomRows()["sixteenths"]
		elements, size := typ.Block()
		first := make([]byte, int64(len(rows))/elements*size)
		typ.Encode(first, rows)
		for i, v := range decode(typ, first) {
			rows[i] = float32(v)
		}
		again := make([]byte, len(first))
		typ.Encode(again, rows)
		differ := 0
		for at := 0; at < len(first); at += int(size) {
			if string(first[at:at+int(size)]) != string(again[at:at+int(size)]) {
				differ++
			}
		}
		if differ > 0 {
			t.Errorf("%v: %d of %d blocks differ", typ, differ, len(first)/int(size))
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	rows := randomRows()["below one"]
	for typ := range ggml.Type(100) {
		if !typ.CanEncode() {
			continue
		}
		elements, size := typ.Block()
		blocks := make([]byte, int64(len(rows))/elements*size)
		b.Run(typ.String(), func(b *testing.B) {
			for b.Loop() {
				typ.Encode(blocks, rows)
			}
			b.ReportMetric(float64(b.N)*float64(len(rows))/b.Elapsed().Seconds()/1e6, "Mvalues/s")
		})
	}
}
