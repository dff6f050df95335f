package quant_test

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
)

// TestExpertsInNVFP4 decodes stacks of in×out matrices of ModelOpt, with one second scale or one
// for each. The truth is computed with rationals, rounded once.
func TestExpertsInNVFP4(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const experts, in, out = 3, 48, 20
	seconds := []float32{0.037, 3.1e-4, 11.3}
	for _, n := range []int{1, experts} {
		codes, scales := make([]byte, experts*in*out/2), make([]byte, experts*in*out/16)
		for i := range codes {
			codes[i] = byte(rng.Uint32())
		}
		for i := range scales {
			scales[i] = byte(rng.IntN(0x7f))
		}
		var s stored
		s.add("x", dtype.U8, codes, experts, in/2, out)
		s.add("x_weight_scale", dtype.F8E4M3, scales, experts, in/16, out)
		s.add("x_weight_scale_2", dtype.F32, f32s(seconds[:n]...), uint64(n))
		s.add("x_input_scale", dtype.F32, f32s(1), 1)
		want := make([]float64, experts*in*out)
		for at := range want {
			e, i, o := at/(in*out), at/out%in, at%out
			code, scale := codes[(e*in/2+i/2)*out+o]>>(i%2*4)&15, scales[(e*in/16+i/16)*out+o]
			value := new(big.Rat).SetFloat64([]float64{0, .5, 1, 1.5, 2, 3, 4, 6}[code&7] * e4m3(scale))
			want[at], _ = value.Mul(value, new(big.Rat).SetFloat64(float64(seconds[e%n]))).Float64()
			if code >= 8 {
				want[at] = -want[at]
			}
		}
		for _, at := range []int64{0, 1, 19, 20, 21, 959, 960, 2001} { // pieces begin anywhere
			got := s.decodeAt(t, s.only(t), at, min(700+at%2*180, int64(len(want))-at))
			for i := range got {
				if math.Float64bits(got[i]) != math.Float64bits(want[at+int64(i)]) {
					t.Fatalf("%d second scales, from element %d on: element %d is %v, want %v", n, at, i, got[i], want[at+int64(i)])
				}
			}
		}
		if all := s.decode(t, s.only(t)); len(all) != len(want) || all[len(all)-1] != want[len(want)-1] {
			t.Errorf("%d elements, the last one is %v, want %v", len(all), all[len(all)-1], want[len(want)-1])
		}
	}
}

// e4m3 is the value of a code without sign.
func e4m3(code byte) float64 {
	if code < 8 {
		return math.Ldexp(float64(code), -9)
	}
	return math.Ldexp(1+float64(code&7)/8, int(code>>3)-7)
}

// TestWrongExpertsInNVFP4AreRefused changes one tensor of a stack.
func TestWrongExpertsInNVFP4AreRefused(t *testing.T) {
	for _, c := range []struct {
		name, tensor string
		d            dtype.Type
		shape        []uint64
		words        string
	}{
		{"scales of rows", "x.weight_weight_scale", dtype.F8E4M3, []uint64{3, 20, 3}, "want F8_E4M3 and [3 3 20]"},
		{"scales of another dtype", "x.weight_weight_scale", dtype.U8, []uint64{3, 3, 20}, "want F8_E4M3 and [3 3 20]"},
		{"two second scales", "x.weight_weight_scale_2", dtype.F32, []uint64{2}, "or one for each expert"},
		{"inputs that fill no group", "x.weight", dtype.U8, []uint64{3, 25, 20}, "want F8_E4M3 and [3 4 20]"},
	} {
		s := stored{config: quant.ReadConfig(nil, "")}
		s.add("good.weight", dtype.F8E4M3, nil, 4, 4)
		s.add("good.weight_scale", dtype.F32, nil, 1)
		for _, x := range []struct {
			name  string
			d     dtype.Type
			shape []uint64
		}{{"x.weight", dtype.U8, []uint64{3, 24, 20}}, {"x.weight_weight_scale", dtype.F8E4M3, []uint64{3, 3, 20}}, {"x.weight_weight_scale_2", dtype.F32, []uint64{1}}} {
			if x.name == c.tensor {
				x.d, x.shape = c.d, c.shape
			}
			s.add(x.name, x.d, nil, x.shape...)
		}
		t.Run(c.name, func(t *testing.T) { checkRefused(t, s.recognise(t), fault.Mismatch, c.words) })
	}
}
