package quant_test

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
)

func i64s(values ...int64) (raw []byte) {
	for _, x := range values {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(x))
	}
	return raw
}

func i32s(values ...int32) (raw []byte) {
	for _, x := range values {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(x))
	}
	return raw
}

// drop removes a tensor.
func (s *stored) drop(name string) {
	s.tensors = slices.DeleteFunc(s.tensors, func(x quant.Tensor) bool { return x.Name == name })
}

// set gives a tensor another dtype, shape and data.
func (s *stored) set(name string, d dtype.Type, data []byte, shape ...uint64) {
	s.drop(name)
	s.add(name, d, data, shape...)
}

// int4 is a 4×64 weight of compressed-tensors in groups of 32, with zero points, whose groups are
// the columns from 32 on, and those before.
func int4(s *stored) {
	s.add("x.weight_packed", dtype.I32, nil, 4, 8)
	s.add("x.weight_scale", dtype.F32, f32s(1, 2, 3, 4, 5, 6, 7, 8), 4, 2)
	s.add("x.weight_shape", dtype.I64, i64s(4, 64), 2)
	s.add("x.weight_zero_point", dtype.I32, i32s(0x3210, 0x7654), 1, 2)
	groups := slices.Repeat([]int32{1}, 64)
	clear(groups[32:])
	s.add("x.weight_g_idx", dtype.I32, i32s(groups...), 64)
	s.config.Bits, s.config.Groups = []uint64{4}, []uint64{32}
}

// nvfp4 is a 4×32 weight of ModelOpt or compressed-tensors.
func nvfp4(s *stored, codes, second string) {
	s.add(codes, dtype.U8, nil, 4, 16)
	s.add("x.weight_scale", dtype.F8E4M3, nil, 4, 2)
	s.add(second, dtype.F32, f32s(1))
}

// TestZeroPointsAndGroupsBelongToTheirColumns reads the weight of int4, whose codes are all −8.
func TestZeroPointsAndGroupsBelongToTheirColumns(t *testing.T) {
	var s stored
	int4(&s)
	values := s.decode(t, s.only(t))
	for i, x := range values {
		row, group := i/64, 1-i%64/32
		zero, scale := 4*group+row, 2*row+group+1
		if want := float64(-zero * scale); x != want {
			t.Fatalf("element %d is %v, want %v", i, x, want)
		}
	}
	s.set("x.weight_g_idx", dtype.I32, i32s(slices.Repeat([]int32{-1}, 64)...), 64)
	w := s.only(t)
	if got := s.decode(t, w)[0]; got != 0 || !slices.Contains(w.Beside, "x.weight_g_idx") {
		t.Errorf("without a list of groups element 0 is %v, want 0, and the list among %q", got, w.Beside)
	}
}

// TestWrongPartsOfPackedWeightsAreRefused changes one thing of a weight at a time.
func TestWrongPartsOfPackedWeightsAreRefused(t *testing.T) {
	ct := func(s *stored) { nvfp4(s, "x.weight_packed", "x.weight_global_scale") }
	modelOpt := func(s *stored) { nvfp4(s, "x.weight", "x.weight_scale_2") }
	mx := func(s *stored) {
		s.add("x.weight_packed", dtype.U8, nil, 4, 32)
		s.add("x.weight_scale", dtype.U8, nil, 4, 2)
	}
	int8 := func(s *stored) {
		s.add("x.weight", dtype.I8, nil, 4, 8)
		s.add("x.weight_scale", dtype.BF16, nil, 4, 1)
	}
	torchAO := func(s *stored) {
		s.add("x._weight_qdata", dtype.I8, nil, 4, 8)
		s.add("x._weight_scale", dtype.F32, nil, 4, 1)
		s.add("x._weight_zero_point", dtype.I8, nil, 4, 1)
	}
	quanto := func(s *stored) {
		s.add("x.weight._data", dtype.I8, nil, 4, 8)
		s.add("x.weight._scale", dtype.F16, nil, 4, 1)
	}
	for _, c := range []struct {
		name   string
		build  func(s *stored)
		change func(s *stored)
		kind   error
		words  string
	}{
		{"no scales", int4, func(s *stored) { s.drop("x.weight_scale") }, fault.Mismatch, `"x.weight_scale" are missing`},
		{"no shape", int4, func(s *stored) { s.drop("x.weight_shape") }, fault.Mismatch, `"x.weight_shape" is missing`},
		{"a shape of floats", int4, func(s *stored) { s.set("x.weight_shape", dtype.F32, nil, 2) }, fault.Mismatch, "I64 or I32"},
		{"a long shape", int4, func(s *stored) { s.set("x.weight_shape", dtype.I64, nil, 4) }, fault.Mismatch, "[4], want 2 or 3"},
		{"a negative shape", int4, func(s *stored) { s.set("x.weight_shape", dtype.I64, i64s(4, -64), 2) }, fault.Mismatch, "-64"},
		{"more rows", int4, func(s *stored) { s.set("x.weight_shape", dtype.I64, i64s(5, 64), 2) }, fault.Mismatch, "same number of rows"},
		{"more columns", int4, func(s *stored) { s.set("x.weight_shape", dtype.I64, i64s(4, 65), 2) }, fault.Mismatch, "[4 65] and codes of shape [4 8]"},
		{"far too many columns", int4, func(s *stored) { s.set("x.weight_shape", dtype.I64, i64s(4, math.MaxInt64), 2) }, fault.Mismatch, "too large"},
		{"another width", int4, func(s *stored) { s.config.Bits = []uint64{3, 8} }, fault.Mismatch, "codes of 3, 8 bits"},
		{"two packings", int4, func(s *stored) { s.config.Bits = []uint64{5}; s.set("x.weight_shape", dtype.I64, i64s(4, 48), 2) }, fault.Mismatch, "more than one"},
		{"codes of I16", int4, func(s *stored) { s.set("x.weight_packed", dtype.I16, nil, 4, 8) }, fault.Mismatch, "want I32 or U8"},
		{"too many groups", int4, func(s *stored) { s.set("x.weight_scale", dtype.F32, nil, 4, 3) }, fault.Mismatch, "divides 64 columns"},
		{"scales of other rows", int4, func(s *stored) { s.set("x.weight_scale", dtype.F32, nil, 3, 2) }, fault.Mismatch, "shape [3 2], want"},
		{"no group", int4, func(s *stored) { s.set("x.weight_scale", dtype.F32, nil, 4, 0) }, fault.Mismatch, "shape [4 0], want"},
		{"scales of bytes", int4, func(s *stored) { s.set("x.weight_scale", dtype.I8, nil, 4, 2) }, fault.Mismatch, "want scales of F32"},
		{"zero points of floats", int4, func(s *stored) { s.set("x.weight_zero_point", dtype.F32, nil, 4, 2) }, fault.Mismatch, "zero points of F32"},
		{"few zero points", int4, func(s *stored) { s.set("x.weight_zero_point", dtype.I32, nil, 1, 1) }, fault.Mismatch, "or I32 and [1 2]"},
		{"few columns in the order", int4, func(s *stored) { s.set("x.weight_g_idx", dtype.I32, nil, 63) }, fault.Mismatch, "groups of 64 columns"},
		{"a group too high", int4, func(s *stored) { s.data["x.weight_g_idx"][4*7] = 2 }, fault.Mismatch, "column 7 belongs to group 2, and there are 2"},
		{"an empty group", int4, func(s *stored) { clear(s.data["x.weight_g_idx"]) }, fault.Mismatch, "no column to group 1"},
		{"Marlin", int4, func(s *stored) { s.add("x.scale_packed", dtype.F16, nil, 1, 4) }, fault.Unsupported, "Marlin of compressed-tensors"},
		{"a bitmask", int4, func(s *stored) {
			s.tensors = s.tensors[:2]
			s.add("x.weight.bitmask", dtype.U8, nil, 4, 8)
			s.add("x.weight.compressed", dtype.BF16, nil, 4, 32)
			s.add("x.weight.shape", dtype.I64, nil, 2)
		}, fault.Unsupported, "sparse"},
		{"swizzled NVFP4", ct, func(s *stored) { s.set("x.weight_scale", dtype.F8E4M3, nil, 128, 4) }, fault.Mismatch, "swizzled"},
		{"flat scales", modelOpt, func(s *stored) { s.set("x.weight_scale", dtype.F8E4M3, nil, 512) }, fault.Mismatch, "swizzled"},
		{"scales in F32", modelOpt, func(s *stored) { s.set("x.weight_scale", dtype.F32, nil, 4, 2) }, fault.Mismatch, "scales of F32"},
		{"no second scale", modelOpt, func(s *stored) { s.drop("x.weight_scale_2") }, fault.Mismatch, `"x.weight_scale_2" is missing`},
		{"no global scale", ct, func(s *stored) { s.drop("x.weight_global_scale") }, fault.Mismatch, "MXFP4 or MXFP6"},
		{"two global scales", ct, func(s *stored) { s.set("x.weight_global_scale", dtype.F32, nil, 2) }, fault.Mismatch, "want one number of F32"},
		{"a global scale in BF16", ct, func(s *stored) { s.set("x.weight_global_scale", dtype.BF16, nil, 1) }, fault.Mismatch, "want one number of F32"},
		{"experts of NVFP4", ct, func(s *stored) { s.set("x.weight_packed", dtype.U8, nil, 2, 4, 16) }, fault.Mismatch, "want a matrix"},
		{"codes without columns", modelOpt, func(s *stored) { s.set("x.weight", dtype.U8, nil, 4, 0) }, fault.Mismatch, "want a matrix"},
		{"smoothed activations", modelOpt, func(s *stored) { s.add("x.pre_quant_scale", dtype.BF16, nil, 32) }, fault.Unsupported, `"x.pre_quant_scale" multiplies`},
		{"INT4 of ModelOpt", modelOpt, func(s *stored) { s.drop("x.weight_scale_2"); s.set("x.weight_scale", dtype.BF16, nil, 4, 1) }, fault.Unsupported, "INT4 of ModelOpt"},
		{"few powers of two", mx, func(s *stored) { s.set("x.weight_scale", dtype.U8, nil, 4, 1) }, fault.Mismatch, "[4 32] and scales of U8 and shape [4 1]"},
		{"swizzled powers of two", mx, func(s *stored) { s.set("x.weight_scale", dtype.U8, nil, 512) }, fault.Mismatch, "swizzled"},
		{"other scales of INT8", int8, func(s *stored) { s.set("x.weight_scale", dtype.BF16, nil, 3, 1) }, fault.Mismatch, "shape [3 1], want one, [4 1]"},
		{"other zero points of INT8", int8, func(s *stored) { s.add("x.weight_zero_point", dtype.I8, nil, 4) }, fault.Mismatch, "zero points of I8 and shape [4], want I8 and [4 1]"},
		{"INT8 without elements", int8, func(s *stored) { s.set("x.weight", dtype.I8, nil, 4, 0) }, fault.Mismatch, "at least one element"},
		{"torchao without scales", torchAO, func(s *stored) { s.drop("x._weight_scale") }, fault.Mismatch, `"x._weight_scale" are missing`},
		{"torchao with 4 bits", torchAO, func(s *stored) { s.set("x._weight_zero_point", dtype.BF16, nil, 4, 1) }, fault.Unsupported, "stored as torchao"},
		{"torchao in tiles", torchAO, func(s *stored) { s.set("x._weight_qdata", dtype.I32, nil, 1, 1, 32, 4) }, fault.Unsupported, "stored as torchao"},
		{"torchao for smoothed activations", torchAO, func(s *stored) { s.add("x._weight_act_pre_scale", dtype.BF16, nil, 8) }, fault.Unsupported, "act_pre_scale"},
		{"other scales of torchao", torchAO, func(s *stored) { s.set("x._weight_scale", dtype.F32, nil, 2, 4) }, fault.Mismatch, "shape [2 4], want"},
		{"Quanto along columns", quanto, func(s *stored) { s.set("x.weight._scale", dtype.F16, nil, 1, 8) }, fault.Mismatch, "shape [1 8], want"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s stored
			s.add("good.weight", dtype.F8E4M3, nil, 4, 4)
			s.add("good.weight_scale", dtype.F32, nil, 1)
			c.build(&s)
			if found := s.recognise(t); len(found.Weights) != 2 || len(found.Refused) != 0 {
				t.Fatalf("before the change: %+v", found)
			}
			c.change(&s)
			checkRefused(t, s.recognise(t), c.kind, c.words)
		})
	}
}

// TestOddSecondScalesPass: the values of NVFP4 are those of the arithmetic.
func TestOddSecondScalesPass(t *testing.T) {
	for _, c := range []struct{ second, multiplied, divided float64 }{
		{0, 0, math.Inf(1)}, {math.Inf(1), math.Inf(1), 0}, {math.NaN(), math.NaN(), math.NaN()}, {-2, -4, -1},
	} {
		for i, names := range [][2]string{{"x.weight", "x.weight_scale_2"}, {"x.weight_packed", "x.weight_global_scale"}} {
			var s stored
			nvfp4(&s, names[0], names[1])
			for k := range s.data["x.weight_scale"] {
				s.data["x.weight_scale"][k] = 0x38 // 1
			}
			s.data[names[0]][0] = 4 // 2
			s.data[names[1]] = f32s(float32(c.second))
			want := [2]float64{c.multiplied, c.divided}[i]
			if got := s.decode(t, s.only(t))[0]; got != want && (got == got || want == want) {
				t.Errorf("%s = %v: the value is %v, want %v", names[1], c.second, got, want)
			}
		}
	}
}

// TestReadersOfListsMayFail: Recognise passes the errors of its reader on.
func TestReadersOfListsMayFail(t *testing.T) {
	var s stored
	int4(&s)
	for _, broken := range []string{"x.weight_shape", "x.weight_g_idx"} {
		_, err := quant.Recognise(s.tensors, s.config, func(name string) ([]byte, error) {
			if name == broken {
				return nil, errors.New("a broken disk")
			}
			return s.data[name], nil
		})
		if err == nil || !strings.Contains(err.Error(), "a broken disk") {
			t.Errorf("%s: %v, want the reader's error", broken, err)
		}
	}
}
