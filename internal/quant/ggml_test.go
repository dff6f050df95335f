package quant_test

import (
	"context"
	"math"
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
	for typ := range ggml.Type(100) {
		if !typ.CanDecode() {
			continue
		}
		elements, size := typ.Block()
		const n = 3 * ggml.MaxElements
		raw := make([]byte, n/elements*size)
		for i := range raw {
			raw[i] = byte(random.Uint32())
		}
		whole := make([]float64, n)
		typ.Decode(whole, raw)
		for at := range int64(n) {
			dst := make([]float64, 1+random.Int64N(n-at))
			if err := quant.GGML(typ, 0).Decode(t.Context(), dst, at, blocks{raw}); err != nil {
				t.Fatal(err)
			}
			for i, v := range dst {
				if want := whole[at+int64(i)]; math.Float64bits(v) != math.Float64bits(want) {
					t.Fatalf("%v: element %d of the range from %d is %v, want %v", typ, i, at, v, want)
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

// A base whose values are those of blocks loses updates that are small beside its steps. The shares
// and errors are llama.cpp's for weights of the same distribution.
func TestWhatBlocksKeepOfAnUpdate(t *testing.T) {
	const rows, cols, rank = 512, 1024, 16
	random := rand.New(rand.NewPCG(3, 4))
	normal := func(n int, sigma float64) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = sigma * random.NormFloat64()
		}
		return x
	}
	w, b, a := normal(rows*cols, 0.02), normal(rows*rank, 1), normal(rank*cols, 1)
	delta := make([]float64, rows*cols)
	for i := range rows {
		for k := range rank {
			for j := range cols {
				delta[i*cols+j] += b[i*rank+k] * a[k*cols+j]
			}
		}
	}
	var memory quant.Memory
	roundTrip := func(e quant.Encoding, x []float64) []float64 {
		narrow, values := make([]float32, len(x)), make([]float64, len(x))
		for i, v := range x {
			narrow[i] = float32(v)
		}
		e.RoundTrip(values, narrow, rows, cols, 0, &memory)
		return values
	}
	for _, c := range []struct {
		encoding         quant.Encoding
		ratio, kept, err float64
	}{
		{quant.Q8_0, .1, 1, .05}, {quant.Q8_0, .03, 1, .18}, {quant.Q8_0, .01, .98, .53}, {quant.Q8_0, .003, .21, 1.03},
		{quant.Q4_0, .1, .82, .77}, {quant.Q4_0, .03, .05, 1.06}, {quant.Q4_0, .01, .03, 1.06}, {quant.Q4_0, .003, .03, 1.07},
	} {
		base := roundTrip(c.encoding, w)
		scale := c.ratio * math.Sqrt(dot(base, base)/dot(delta, delta))
		update, merged, lost := make([]float64, len(w)), make([]float64, len(w)), make([]float64, len(w))
		for i, d := range delta {
			update[i] = scale * d
			merged[i] = base[i] + update[i]
		}
		left := roundTrip(c.encoding, merged)
		for i := range left {
			left[i] -= base[i]
			lost[i] = left[i] - update[i]
		}
		norm := dot(update, update)
		kept, err := dot(left, update)/norm, math.Sqrt(dot(lost, lost)/norm)
		if math.Abs(kept-c.kept) > .012 || math.Abs(err-c.err) > .012 {
			t.Errorf("%v, ‖Δ‖/‖W‖ = %v: kept %.3f with an error of %.3f, want %v and %v", c.encoding, c.ratio, kept, err, c.kept, c.err)
		}
	}
}

func dot(a, b []float64) (sum float64) {
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}
