package quant_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/ggml"
	"github.com/loratool/loratool/internal/quant"
)

// blocks are the parts of a weight in memory.
type blocks [][]byte

func (b blocks) ReadPart(_ context.Context, dst []byte, part int, off int64) error {
	copy(dst, b[part][off:off+int64(len(dst))])
	return nil
}

// Any range of a tensor has the values that the whole has.
func TestGGMLDecodesEveryRange(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, typ := range []ggml.Type{ggml.Q8_0, ggml.Q4_0, ggml.F16} {
		elements, size := typ.Block()
		const n = 3 * ggml.MaxElements
		raw := make([]byte, n/elements*size)
		for i := range raw {
			raw[i] = byte(random.Uint32()) &^ 0x40 // no infinities or NaNs
		}
		whole := make([]float64, n)
		typ.Decode(whole, raw)
		for at := range int64(n) {
			dst := make([]float64, 1+random.Int64N(n-at))
			if err := quant.GGML(typ, 0).Decode(t.Context(), dst, at, blocks{raw}); err != nil {
				t.Fatal(err)
			}
			for i, v := range dst {
				if v != whole[at+int64(i)] {
					t.Fatalf("%v: element %d of the range from %d is %v, want %v", typ, i, at, v, whole[at+int64(i)])
				}
			}
		}
	}
}

// Each scale belongs to a number of elements.
func TestGGMLMultipliesByScales(t *testing.T) {
	raw := make([]byte, 4*34) // four blocks of ones
	for i := range raw {
		raw[i] = 1
		if i%34 < 2 {
			raw[i] = []byte{0x00, 0x3c}[i%34]
		}
	}
	scales := []byte{0, 0, 0, 0x40, 0, 0, 0, 0x41} // 2 and 8
	dst := make([]float64, 100)
	if err := quant.GGML(ggml.Q8_0, 64).Decode(t.Context(), dst, 20, blocks{raw, scales}); err != nil {
		t.Fatal(err)
	}
	for i, v := range dst {
		if want := map[bool]float64{true: 2, false: 8}[20+i < 64]; v != want {
			t.Errorf("element %d is %v, want %v", 20+i, v, want)
		}
	}
}
