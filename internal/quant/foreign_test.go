package quant_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
)

// TestOptionsOfTheLibraries decodes weights of other numbers of bits, groups and orders, which
// their libraries packed.
func TestOptionsOfTheLibraries(t *testing.T) {
	for name, want := range map[string]int{"gptq_mixed": 5, "gptq_v2_mixed": 5, "hqq_mixed": 8, "mlx_mixed": 11} {
		s := load(t, fixtures+name)
		text, err := os.ReadFile(fixtures + name + "/truth.json")
		if err != nil {
			t.Fatal(err)
		}
		truths := make(map[string]truth)
		if err := json.Unmarshal(text, &truths); err != nil {
			t.Fatal(err)
		}
		found := s.recognise(t)
		if len(found.Weights) != want || len(truths) != want || len(found.Refused) != 0 {
			t.Fatalf("%s: recognised %d weights and refused %+v, want %d", name, len(found.Weights), found.Refused, want)
		}
		for i := range found.Weights {
			w := &found.Weights[i]
			if c, ok := w.Codec.(quant.Checker); ok {
				if err := c.Check(t.Context(), parts{s, w}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			checkTruth(t, s, w, truths[w.Name])
		}
	}
}

func words(values ...uint32) (raw []byte) {
	for _, x := range values {
		raw = binary.LittleEndian.AppendUint32(raw, x)
	}
	return raw
}

// gptqWeight is a weight of 8×8 in 4 bits with one group. All codes are 9, and the zero points come
// from one word.
func gptqWeight(config string, zeros uint32) *stored {
	s := &stored{config: quant.ReadConfig([]byte(config), "")}
	s.add("x.qweight", dtype.I32, words(slices.Repeat([]uint32{0x99999999}, 8)...), 1, 8)
	s.add("x.qzeros", dtype.I32, words(zeros), 1, 1)
	s.add("x.scales", dtype.F32, f32s(1, 1, 1, 1, 1, 1, 1, 1), 1, 8)
	s.add("x.g_idx", dtype.I32, make([]byte, 32), 8)
	return s
}

func checkOf(t *testing.T, s *stored) (first []float64, err error) {
	t.Helper()
	w := s.only(t)
	err = w.Codec.(quant.Checker).Check(t.Context(), parts{s, w})
	values := make([]float64, 64)
	if decode := w.Codec.Decode(t.Context(), values, 0, parts{s, w}); (decode == nil) != (err == nil) {
		t.Errorf("Check says %v, and Decode %v", err, decode)
	}
	for o := range 8 {
		first = append(first, values[8*o])
	}
	return first, err
}

// TestTheBorrowOfZeroPoints: v1 stores zero points less 1. The zeros 0, 8, 0, 0, … are
// 0xeeeeef6f… after one subtraction from the word, and 0xffffff7f after one from each.
func TestTheBorrowOfZeroPoints(t *testing.T) {
	v1, v2 := `{"quant_method":"gptq","bits":4}`, `{"quant_method":"gptq","checkpoint_format":"gptq_v2"}`
	byModel := `{"quant_method":"gptq","checkpoint_format":"gptq","meta":{"quantizer":["gptqmodel:1.4.0"]}}`
	for _, c := range []struct {
		config string
		zeros  uint32
		want   []float64 // nil for a refusal
	}{
		{v1, 0x77777777, []float64{1, 1, 1, 1, 1, 1, 1, 1}},
		{v2, 0x88888888, []float64{1, 1, 1, 1, 1, 1, 1, 1}},
		{`{"method":"gptq","format":"gptq_v2"}`, 0x88888888, []float64{1, 1, 1, 1, 1, 1, 1, 1}},
		{v2, 0xfedcba90, []float64{9, 0, -1, -2, -3, -4, -5, -6}},
		{v1, 0xf6543210, []float64{8, 7, 6, 5, 4, 3, 2, 9}}, // the carry of the last leaves the word
		{v1, 0xeeeeef6f, nil},
		{v1, 0xffffff7f, nil},
		{byModel, 0xeeeeef6f, []float64{9, 1, 9, 9, 9, 9, 9, 9}},
	} {
		got, err := checkOf(t, gptqWeight(c.config, c.zeros))
		switch {
		case c.want == nil && (!errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), "x.weight") || fault.Hint(err) == ""):
			t.Errorf("zero points %#x: %v, want a refusal", c.zeros, err)
		case c.want != nil && (err != nil || !slices.Equal(got, c.want)):
			t.Errorf("zero points %#x of %s: the values are %v, %v, want %v", c.zeros, c.config, got, err, c.want)
		}
	}
}

// TestGroupsBeyondTheEndAreRefused: g_idx says −1, 1 and 2^30 where there is one group.
func TestGroupsBeyondTheEndAreRefused(t *testing.T) {
	for _, g := range []uint32{0xffffffff, 1, 1 << 30} {
		s := gptqWeight(`{"quant_method":"gptq"}`, 0x77777777)
		binary.LittleEndian.PutUint32(s.data["x.g_idx"][20:], g)
		_, err := checkOf(t, s)
		if !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "x.weight") || !strings.Contains(err.Error(), "input 5") {
			t.Errorf("group %d: %v, want a refusal that names the weight and input 5", int32(g), err)
		}
	}
}

// TestGroupsOutOfOrderAreRefused: desc_act is false, and g_idx says otherwise. Programs that have
// kernels for groups in order do not read it.
func TestGroupsOutOfOrderAreRefused(t *testing.T) {
	for config, isRefused := range map[string]bool{
		`{"quant_method":"gptq","desc_act":false,"group_size":4}`:                           true,
		`{"quant_method":"gptq","desc_act":false}`:                                          true,
		`{"quant_method":"gptq","desc_act":true,"group_size":4}`:                            false,
		`{"quant_method":"gptq","desc_act":false,"dynamic":{"-:.*lm_head":{}}}`:             true,
		`{"quant_method":"gptq","group_size":4}`:                                            false,
		`{"quant_method":"gptq","desc_act":false,"bits":8,"dynamic":{"+:.*x":{"bits":4}}}`:  false,
		`{"quant_method":"gptq","desc_act":false,"bits":8,"extra_config":{"x":{"bits":4}}}`: false,
		`{"quant_method":"gptq","desc_act":true,"group_size":4,"dynamic":null,"bits":4}`:    false,
	} {
		var s stored
		s.config = quant.ReadConfig([]byte(config), "")
		s.add("x.qweight", dtype.I32, words(0x99999999, 0x99999999, 0x99999999, 0x99999999, 0x99999999, 0x99999999, 0x99999999, 0x99999999), 1, 8)
		s.add("x.qzeros", dtype.I32, words(0x77777777, 0x77777777), 2, 1)
		s.add("x.scales", dtype.F32, f32s(1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2), 2, 8)
		s.add("x.g_idx", dtype.I32, words(0, 0, 0, 0, 1, 0, 1, 1), 8)
		_, err := checkOf(t, &s)
		if isRefused != (err != nil) || isRefused && !(errors.Is(err, fault.Mismatch) && strings.Contains(err.Error(), "input 5 into group 0, want 1")) {
			t.Errorf("%s: %v", config, err)
		}
	}
}

// TestTheOrderOfAWQ: output k has the code k in each word, and input i the scale of its group.
func TestTheOrderOfAWQ(t *testing.T) {
	var s stored
	word := uint32(0)
	for j, o := range []uint32{0, 2, 4, 6, 1, 3, 5, 7} {
		word |= o << (4 * j)
	}
	s.add("x.qweight", dtype.I32, words(slices.Repeat([]uint32{word}, 4)...), 4, 1)
	s.add("x.qzeros", dtype.I32, words(0x11111111, 0), 2, 1)
	s.add("x.scales", dtype.F32, f32s(1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2), 2, 8)
	got := s.decode(t, s.only(t))
	for o := range 8 {
		k := float64(o)
		if want := []float64{k - 1, k - 1, 2 * k, 2 * k}; !slices.Equal(got[4*o:][:4], want) {
			t.Errorf("output %d is %v, want %v", o, got[4*o:][:4], want)
		}
	}
}

// TestValuesAreRoundedOnceToFloat64: scales and offsets of F32 with exponents so far apart that the
// exact value needs more than 53 bits.
func TestValuesAreRoundedOnceToFloat64(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 40 {
		checkRoundedOnce(t, float32((1+rng.Float64())*8), float32((1+rng.Float64())*math.Ldexp(1, -38-rng.IntN(8))))
	}
}

func checkRoundedOnce(t *testing.T, scale, offset float32) {
	t.Helper()
	exact := func(x float64) *big.Rat { return new(big.Rat).SetFloat64(x) }
	codes := make([]byte, 32)
	for i := range codes {
		codes[i] = byte(i*8 + 3)
	}
	m := stored{config: quant.ReadConfig([]byte(`{"bits":8,"group_size":32}`), "")}
	m.add("x.weight", dtype.U32, codes, 1, 8)
	m.add("x.scales", dtype.F32, f32s(scale), 1, 1)
	m.add("x.biases", dtype.F32, f32s(offset), 1, 1)
	h := stored{config: quant.ReadConfig([]byte(`{"quant_method":"hqq"}`), "")}
	h.add("x.W_q", dtype.U8, codes, 1, 32)
	h.add("x.scale", dtype.F32, f32s(scale), 1, 1)
	h.add("x.zero", dtype.F32, f32s(offset), 1, 1)
	for name, n := range map[string]int{"nbits": 8, "group_size": 32, "axis": 1} {
		h.add("x."+name, dtype.I32, words(uint32(n)))
	}
	h.add("x.shape", dtype.I64, []byte{1, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0}, 2)
	ours, theirs := m.decode(t, m.only(t)), h.decode(t, h.only(t))
	for i, code := range codes {
		sum := new(big.Rat).Mul(exact(float64(code)), exact(float64(scale)))
		want, isExact := sum.Add(sum, exact(float64(offset))).Float64()
		if ours[i] != want || isExact {
			t.Errorf("MLX: the value of code %d is %x, want %x, which is rounded", code, ours[i], want)
		}
		difference := new(big.Rat).Sub(exact(float64(code)), exact(float64(offset)))
		if want, _ = difference.Mul(difference, exact(float64(scale))).Float64(); theirs[i] != want {
			t.Errorf("HQQ: the value of code %d is %x, want %x", code, theirs[i], want)
		}
	}
}

// TestScalesThatAreNotFinite give what the formulas give.
func TestScalesThatAreNotFinite(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	s := gptqWeight(`{"quant_method":"gptq"}`, 0x77777778)
	copy(s.data["x.scales"], f32s(inf, inf, nan, 0, -1))
	got, err := checkOf(t, s)
	if err != nil || got[0] == got[0] || !math.IsInf(got[1], 1) || got[2] == got[2] || got[3] != 0 || got[4] != -1 {
		t.Errorf("the values are %v, %v, want NaN, +Inf, NaN, 0, -1", got, err)
	}
}

// TestForeignPartnersAreRefused changes one tensor of a weight, and wants the weight and the fault
// named.
func TestForeignPartnersAreRefused(t *testing.T) {
	gptq := func(config string) func() *stored {
		return func() *stored { return gptqWeight(config, 0x77777777) }
	}
	v1 := gptq(`{"quant_method":"gptq","checkpoint_format":"gptq"}`)
	awq := func() *stored {
		s := &stored{config: quant.ReadConfig([]byte(`{"quant_method":"awq","version":"gemm","group_size":4}`), "")}
		s.add("x.qweight", dtype.I32, nil, 8, 2)
		s.add("x.qzeros", dtype.I32, nil, 2, 2)
		s.add("x.scales", dtype.F16, nil, 2, 16)
		return s
	}
	mlx := func() *stored {
		s := &stored{config: quant.ReadConfig([]byte(`{"bits":4,"group_size":32}`), "")}
		s.add("x.weight", dtype.U32, nil, 3, 8)
		s.add("x.scales", dtype.F16, nil, 3, 2)
		s.add("x.biases", dtype.F16, nil, 3, 2)
		return s
	}
	hqq := func() *stored {
		s := &stored{config: quant.ReadConfig([]byte(`{"quant_config":{"weight_quant_params":{"nbits":4,"group_size":8,"axis":1}}}`), "")}
		s.config.Shape = []uint64{4, 16}
		s.add("x.W_q", dtype.U8, nil, 4, 8)
		s.add("x.scale", dtype.F16, nil, 8, 1)
		s.add("x.zero", dtype.F16, nil, 8, 1)
		return s
	}
	set := func(name string, d dtype.Type, shape ...uint64) func(*stored) {
		return func(s *stored) {
			s.tensors = slices.DeleteFunc(s.tensors, func(x quant.Tensor) bool { return x.Name == name })
			if d != dtype.Invalid {
				s.add(name, d, nil, shape...)
			}
		}
	}
	config := func(text string) func(*stored) {
		return func(s *stored) {
			shape := s.config.Shape
			s.config = quant.ReadConfig([]byte(text), "")
			s.config.Shape = shape
		}
	}
	for _, c := range []struct {
		build  func() *stored
		change func(*stored)
		words  string
	}{
		{v1, set("x.scales", dtype.Invalid), "x.scales"},
		{v1, set("x.qzeros", dtype.Invalid), "x.qzeros"},
		{v1, set("x.qweight", dtype.U8, 1, 8), "want I32"},
		{v1, set("x.scales", dtype.I32, 1, 8), "want F16"},
		{v1, set("x.scales", dtype.F16, 8), "want matrices"},
		{v1, set("x.scales", dtype.F16, 2, 8), "groups"},
		{v1, set("x.scales", dtype.F16, 1, 7), "no number of bits"},
		{v1, set("x.qweight", dtype.I32, 1, 9), "neither GPTQ's"},
		{v1, set("x.qweight", dtype.I32, 0, 8), "want matrices"},
		{v1, set("x.g_idx", dtype.I32, 7), "want I32 of shape [8]"},
		{v1, set("x.g_idx", dtype.I64, 8), "want I32 of shape [8]"},
		{v1, config(`{"quant_method":"gptq","checkpoint_format":"marlin"}`), "marlin"},
		{v1, config(`{"quant_method":"spqr"}`), "spqr"},
		{v1, config(`{}`), "config.json"},
		{v1, config(`{"quant_method":"gptq","bits":8}`), "its codes have 4 bits, want 8"},
		{v1, config(`{"quant_method":"gptq","bits":4,"group_size":4}`), "its 8 inputs are in 1 group, want 2"},
		{awq, config(`{"quant_method":"awq","bits":8,"group_size":4}`), "its codes have 4 bits, want 8"},
		{awq, config(`{"quant_method":"awq","bits":4,"group_size":-1}`), "its 8 inputs are in 2 groups, want 1"},
		{v1, func(s *stored) {
			set("x.qzeros", dtype.I32, 1, 3)(s)
			set("x.scales", dtype.F16, 1, 32)(s)
			set("x.qweight", dtype.I32, 3, 32)(s)
		}, "3 bits"},
		{awq, config(`{"quant_method":"awq","version":"gemv"}`), "gemv"},
		{awq, config(`{"quant_method":"awq","version":"marlin"}`), "marlin"},
		{awq, set("x.qweight", dtype.I16, 8, 2), "gemv_fast"},
		{awq, set("x.qweight", dtype.I32, 8, 3), "neither"},
		{awq, set("x.qweight", dtype.I32, 9, 2), "its 9 inputs are in 2 groups, want 3"},
		{mlx, set("x.biases", dtype.Invalid), "x.biases"},
		{mlx, set("x.biases", dtype.BF16, 3, 2), "want those of the scales"},
		{mlx, set("x.scales", dtype.F16, 2, 2), "same rows"},
		{mlx, func(s *stored) { set("x.scales", dtype.F16, 3, 3)(s); set("x.biases", dtype.F16, 3, 3)(s) }, "12 words"},
		{mlx, set("x.scales", dtype.I32, 3, 2), "want scales of F16"},
		{mlx, set("x.scales", dtype.U8, 3, 2), "biases"},
		{mlx, set("x.scales", dtype.U8, 3, 3), "mxfp4"},
		{mlx, set("x.weight", dtype.U32, 8), "a matrix of words"},
		{mlx, config(`{}`), "config.json does not say"},
		{mlx, config(`{"bits":-4,"group_size":32}`), "-4 bits"},
		{mlx, config(`{"bits":4,"group_size":32,"x":{"bits":8,"group_size":32}}`), "16 words"},
		{mlx, config(`{"bits":4,"group_size":32,"mode":"mxfp4"}`), "mode"},
		{hqq, set("x.zero", dtype.Invalid), "missing"},
		{hqq, set("x.zero", dtype.F32, 8, 1), "want F16"},
		{hqq, set("x.scale", dtype.F16, 1, 8), "its zeros"},
		{hqq, set("x.W_q", dtype.U8, 4, 9), "36 bytes"},
		{hqq, config(`{}`), "0 bits"},
		{hqq, func(s *stored) { s.config.Shape = nil }, "its shape"},
		{hqq, func(s *stored) { s.config.Shape = []uint64{1 << 40, 1 << 40} }, "its shape"},
		{hqq, func(s *stored) {
			s.add("x.shape", dtype.I64, []byte{255, 255, 255, 255, 255, 255, 255, 255, 16, 0, 0, 0, 0, 0, 0, 0}, 2)
		}, "its shape"},
		{hqq, func(s *stored) { s.add("x.axis", dtype.I32, words(2)) }, "axis"},
		{hqq, func(s *stored) { s.add("x.quant_zero", dtype.U8, []byte{1}) }, "quantised themselves"},
	} {
		s := c.build()
		s.add("good.weight", dtype.F8E4M3, nil, 4, 4)
		s.add("good.weight_scale", dtype.F32, nil, 1)
		if found := s.recognise(t); len(found.Weights) != 2 || len(found.Refused) != 0 {
			t.Fatalf("before the change: recognised %+v", found)
		}
		c.change(s)
		found := s.recognise(t)
		if len(found.Refused) == 0 || found.Refused[0].Name != "x.weight" {
			t.Errorf("%q: refused %+v, want x.weight", c.words, found.Refused)
			continue
		}
		if err := found.Refused[0].Err; !strings.Contains(err.Error(), c.words) || fault.Hint(err) == "" {
			t.Errorf("the error is %v, want one with %q and a hint", err, c.words)
		}
		if len(found.Weights) != 1 || found.Weights[0].Name != "good.weight" {
			t.Errorf("%q: recognised %+v, want good.weight", c.words, found.Weights)
		}
	}
}

// TestEmbeddingsOfGPTQAreRefused: GPTQModel stores them tokens×features, which no shape tells from
// in×out.
func TestEmbeddingsOfGPTQAreRefused(t *testing.T) {
	s := gptqWeight(`{"quant_method":"gptq"}`, 0x77777777)
	for i := range s.tensors {
		name := strings.Replace(s.tensors[i].Name, "x.", "model.embed_tokens.", 1)
		s.data[name], s.tensors[i].Name = s.data[s.tensors[i].Name], name
	}
	found := s.recognise(t)
	if len(found.Weights) != 0 || len(found.Refused) != 1 || !errors.Is(found.Refused[0].Err, fault.Unsupported) || len(found.Refused[0].Parts) != 4 {
		t.Errorf("recognised %+v, want a refusal of all tensors", found)
	}
}

// FuzzForeign changes dtypes, shapes and contents of the tensors of one weight. What is recognised
// decodes within its parts, and fails only as Check says.
func FuzzForeign(f *testing.F) {
	I32, F16, U32, U8, I64 := byte(0), byte(1), byte(2), byte(3), byte(4)
	types := []dtype.Type{dtype.I32, dtype.F16, dtype.U32, dtype.U8, dtype.I64, dtype.F32, dtype.BF16, dtype.I16}
	schemes := [][]string{
		{"a.qweight", "a.qzeros", "a.scales", "a.g_idx"}, {"a.weight", "a.scales", "a.biases"},
		{"a.W_q", "a.scale", "a.zero", "a.shape", "a.nbits", "a.axis", "a.group_size"},
	}
	f.Add(byte(0), []byte{I32, 2, 1, 8, I32, 2, 1, 1, F16, 2, 1, 8, I32, 1, 8}, []byte(`{"quant_method":"gptq"}`), []byte{0})
	f.Add(byte(0), []byte{I32, 2, 8, 1, I32, 2, 2, 1, F16, 2, 2, 8}, []byte(`{"quant_method":"awq"}`), []byte{1, 2})
	f.Add(byte(1), []byte{U32, 2, 3, 8, F16, 2, 3, 2, F16, 2, 3, 2}, []byte(`{"bits":4,"group_size":32}`), []byte{3})
	f.Add(byte(1), []byte{U32, 2, 3, 4, U8, 2, 3, 1}, []byte(`{"bits":4,"group_size":32,"mode":"mxfp4"}`), []byte{130})
	f.Add(byte(2), []byte{U8, 2, 4, 8, F16, 2, 8, 1, F16, 2, 8, 1, I64, 1, 2}, []byte(`{"quant_config":{"weight_quant_params":{"nbits":4,"group_size":8}}}`), []byte{8, 0, 0, 0, 0, 0, 0, 0})
	f.Add(byte(0), []byte("&\xbfH\xc7\xd5"), []byte("&\xbfH\xc7\xd5n\xb0\xa6"), []byte("&")) // codes in a float dtype
	f.Fuzz(func(t *testing.T, scheme byte, shapes, config, data []byte) {
		s := stored{config: quant.ReadConfig(config, "")}
		for _, name := range schemes[int(scheme)%len(schemes)] {
			if len(shapes) < 2 {
				break
			}
			d, dims := types[int(shapes[0])%len(types)], min(int(shapes[1])%4, len(shapes)-2)
			var shape []uint64
			for _, n := range shapes[2 : 2+dims] {
				shape = append(shape, uint64(n%65))
			}
			shapes = shapes[2+dims:]
			if n, _ := dtype.NElements(shape); n > 1<<14 {
				continue
			}
			s.add(name, d, nil, shape...)
			for i := range s.data[name] {
				if len(data) > 0 {
					s.data[name][i] = data[i%len(data)]
				}
			}
		}
		for _, w := range s.recognise(t).Weights {
			n, ok := dtype.NElements(w.Shape)
			if !ok || n > 1<<20 {
				t.Fatalf("%q has the shape %d", w.Name, w.Shape)
			}
			if c, ok := w.Codec.(quant.Checker); ok && c.Check(t.Context(), parts{&s, &w}) != nil {
				w.Codec.Decode(t.Context(), make([]float64, n), 0, parts{&s, &w})
				continue
			}
			whole := s.decode(t, &w)
			if half := s.decodeAt(t, &w, int64(n/2), int64(n-n/2)); digest(half, dtype.F64) != digest(whole[n/2:], dtype.F64) {
				t.Fatalf("the second half of %q decodes differently", w.Name)
			}
		}
	})
}
