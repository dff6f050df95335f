package quant_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
	"github.com/loratool/loratool/internal/safetensors"
)

const fixtures = "../../testdata/quant/"

// stored is a checkpoint in memory.
type stored struct {
	tensors []quant.Tensor
	data    map[string][]byte
	config  quant.Config
}

func load(t testing.TB, dir string) *stored {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.Read(t.Context(), bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	s := &stored{data: make(map[string][]byte)}
	for _, x := range h.Tensors {
		s.tensors = append(s.tensors, quant.Tensor{Name: x.Name, DType: x.DType, Shape: x.Shape})
		s.data[x.Name] = raw[x.Off:][:x.NBytes]
	}
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Quantization json.RawMessage `json:"quantization_config"`
		MLX          json.RawMessage `json:"quantization"`
		Shape        []uint64        `json:"shape"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	if c.MLX != nil {
		c.Quantization = c.MLX
	}
	s.config = quant.ReadConfig(c.Quantization, "")
	s.config.Shape = c.Shape
	return s
}

func (s *stored) recognise(t testing.TB) quant.Found {
	t.Helper()
	found, err := quant.Recognise(s.tensors, s.config, func(name string) ([]byte, error) { return s.data[name], nil })
	if err != nil {
		t.Fatal(err)
	}
	isMarked := slices.ContainsFunc(s.tensors, func(x quant.Tensor) bool { return quant.IsMark(x.Name, x.DType) })
	if len(found.Weights)+len(found.Refused) > 0 && !isMarked {
		t.Fatalf("recognised %+v, and IsMark of no tensor", found)
	}
	return found
}

// only returns the one weight of the checkpoint.
func (s *stored) only(t testing.TB) *quant.Weight {
	t.Helper()
	found := s.recognise(t)
	if len(found.Weights) != 1 || len(found.Refused) != 0 {
		t.Fatalf("recognised %+v, want one weight", found)
	}
	return &found.Weights[0]
}

func (s *stored) add(name string, d dtype.Type, data []byte, shape ...uint64) {
	s.tensors = append(s.tensors, quant.Tensor{Name: name, DType: d, Shape: shape})
	if s.data == nil {
		s.data = make(map[string][]byte)
	}
	n, _ := dtype.NElements(shape)
	if nBytes, _ := d.NBytes(n); data == nil {
		data = make([]byte, nBytes)
	} else if int64(len(data)) != nBytes {
		panic(fmt.Sprint(name, " has ", len(data), " bytes, want ", nBytes))
	}
	s.data[name] = data
}

// parts reads the parts of a weight, and fails outside of them.
type parts struct {
	s *stored
	w *quant.Weight
}

func (p parts) ReadPart(_ context.Context, dst []byte, part int, off int64) error {
	data := p.s.data[p.w.Parts[part]]
	if off < 0 || off+int64(len(dst)) > int64(len(data)) {
		return fmt.Errorf("%d bytes at %d of %q, which has %d: %w", len(dst), off, p.w.Parts[part], len(data), io.ErrUnexpectedEOF)
	}
	copy(dst, data[off:])
	return nil
}

func (s *stored) decode(t testing.TB, w *quant.Weight) []float64 {
	t.Helper()
	n, _ := dtype.NElements(w.Shape)
	return s.decodeAt(t, w, 0, int64(n))
}

func (s *stored) decodeAt(t testing.TB, w *quant.Weight, at, n int64) []float64 {
	t.Helper()
	values := make([]float64, n)
	if err := w.Codec.Decode(t.Context(), values, at, parts{s, w}); err != nil {
		t.Fatalf("%q, %d from %d: %v", w.Name, n, at, err)
	}
	return values
}

func digest(values []float64, d dtype.Type) string {
	raw := make([]byte, d.Size()*len(values))
	for i, x := range values {
		dtype.Store(d, raw, i, x)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

type truth struct {
	Shape   []uint64          `json:"shape"`
	SHA256  string            `json:"sha256"`
	Every97 []string          `json:"every97"`
	Library map[string]string `json:"library"`
}

// TestValuesAreThoseOfTheLibraries: the values are the exact ones, to the bit, and rounded once
// they are the values that the library decodes.
func TestValuesAreThoseOfTheLibraries(t *testing.T) {
	want := map[string]string{
		"fp8_block_128": "FP8 in blocks of 128×128 BF16", "fp8_block_ragged_576x256": "FP8 in blocks of 128×128 BF16",
		"fp8_block_ragged_192x256": "FP8 in blocks of 128×128 BF16", "fp8_block_ragged_320x200": "FP8 in blocks of 128×128 BF16",
		"fp8_block_ue8m0": "FP8 in blocks of 128×128 BF16", "ct_fp8_block": "FP8 in blocks of 128×128 BF16",
		"ct_fp8_channel": "FP8 with a scale per row BF16", "ct_fp8_tensor": "FP8 with one scale BF16",
		"ct_mxfp8": "MXFP8 BF16", "gptoss_mxfp4": "MXFP4 BF16", "bnb_int8": "INT8 of bitsandbytes BF16",
		"bnb_nf4_dq_bfloat16_96x128": "NF4 of bitsandbytes with double quantisation BF16",
		"bnb_nf4_dq_bfloat16_40x72":  "NF4 of bitsandbytes with double quantisation BF16",
		"gptq_v1_seq":                "GPTQ in 4 bits F16", "gptq_v2_desc": "GPTQ v2 in 4 bits F16", "awq_gemm": "AWQ in 4 bits F16",
		"hqq_4b_g64_axis1": "HQQ in 4 bits F32", "mlx_affine_4b_g64_bfloat16": "MLX in 4 bits and groups of 64 BF16",
		"mlx_affine_8b_g64_float32": "MLX in 8 bits and groups of 64 F32", "mlx_mxfp4": "MXFP4 BF16",
		"bnb_nf4_plain_float16_96x128": "NF4 of bitsandbytes F16", "bnb_fp4_dq_float32_96x128": "FP4 of bitsandbytes with double quantisation F32",
		"ct_nvfp4": "NVFP4 of compressed-tensors BF16", "modelopt_nvfp4": "NVFP4 of ModelOpt BF16", "modelopt_nvfp4_experts": "NVFP4 of ModelOpt BF16", "ct_mxfp4": "MXFP4 BF16", "ct_mxfp6": "MXFP6 BF16",
		"ct_w4_sym_g128": "INT4 of compressed-tensors BF16", "ct_w4_asym_g32": "INT4 of compressed-tensors with zero points BF16",
		"ct_w3_sym_g128": "INT3 of compressed-tensors BF16", "ct_w8_sym_g128": "INT8 of compressed-tensors BF16",
		"ct_w4_asym_channel_37x45": "INT4 of compressed-tensors with zero points BF16",
		"ct_w5_asym_g16_40x64":     "INT5 of compressed-tensors with zero points BF16", "ct_w3_asym_g32_70x96": "INT3 of compressed-tensors with zero points BF16",
		"ct_w8_asym_g32_10x64": "INT8 of compressed-tensors with zero points F16", "ct_w2_sym_tensor_9x50": "INT2 of compressed-tensors BF16",
		"ct_w4_asym_experts_3x20x64": "INT4 of compressed-tensors with zero points BF16",
		"ct_w4_actorder_g16":         "INT4 of compressed-tensors in the order of activations F16", "ct_w3_gaps_g32": "INT3 of compressed-tensors F16",
		"ct_w8a8_channel": "INT8 of compressed-tensors BF16", "ct_w8a8_asym_channel": "INT8 of compressed-tensors with zero points BF16",
		"ct_w8a8_tensor": "INT8 of compressed-tensors BF16",
		"torchao_int8":   "INT8 of torchao with zero points BF16", "torchao_int8_group": "INT8 of torchao with zero points BF16",
		"torchao_intx4_asym": "INT8 of torchao with zero points BF16", "torchao_float8": "FP8 with a scale per row BF16",
		"quanto_int8": "INT8 of Quanto F16", "quanto_float8": "FP8 with a scale per row BF16",
	}
	for name, scheme := range want {
		t.Run(name, func(t *testing.T) {
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
			if len(found.Weights) != len(truths) || len(found.Refused) != 0 {
				t.Fatalf("recognised %+v, want %d weights", found, len(truths))
			}
			for i := range found.Weights {
				w := &found.Weights[i]
				if got := fmt.Sprint(w.Scheme, " ", w.DType); got != scheme {
					t.Errorf("the scheme is %q, want %q", got, scheme)
				}
				checkTruth(t, s, w, truths[w.Name])
			}
		})
	}
}

func checkTruth(t *testing.T, s *stored, w *quant.Weight, want truth) {
	t.Helper()
	if !slices.Equal(w.Shape, want.Shape) {
		t.Fatalf("%q has the shape %d, want %d", w.Name, w.Shape, want.Shape)
	}
	values := s.decode(t, w)
	for i, text := range want.Every97 {
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		if got := values[97*i]; got != x {
			t.Fatalf("element %d of %q is %x, want %x", 97*i, w.Name, got, x)
		}
	}
	if digest(values, dtype.F64) != want.SHA256 {
		t.Errorf("the values of %q differ from the exact ones between those that are compared", w.Name)
	}
	for i := range values {
		values[i] += 0 // the libraries do not agree on the sign of zeros
	}
	for name, sum := range want.Library {
		d, _ := dtype.Parse(name)
		if digest(values, d) != sum {
			t.Errorf("the values of %q in %v differ from the library's", w.Name, d)
		}
	}
}

// TestAnyRangeDecodesAlike decodes pieces of odd lengths from odd places.
func TestAnyRangeDecodesAlike(t *testing.T) {
	dirs, err := filepath.Glob(fixtures + "*/truth.json")
	if err != nil || len(dirs) == 0 {
		t.Fatal(err, dirs)
	}
	for _, dir := range dirs {
		s := load(t, filepath.Dir(dir))
		for _, w := range s.recognise(t).Weights {
			whole := s.decode(t, &w)
			n := int64(len(whole))
			for at := int64(0); at < n; at += max(1, n/67) {
				for _, length := range []int64{1, 2, 63, 64, 65, 129, n/2 + 1} {
					length = min(length, n-at)
					if got := s.decodeAt(t, &w, at, length); !slices.Equal(got, whole[at:at+length]) {
						t.Fatalf("%s: %d elements of %q from %d differ from those of the whole", dir, length, w.Name, at)
					}
				}
			}
		}
	}
}

func f32s(values ...float32) (raw []byte) {
	for _, x := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	return raw
}

// TestEveryCodeHasItsValue: the tables are those of the formats, as torch has them.
func TestEveryCodeHasItsValue(t *testing.T) {
	var s stored
	codes := make([]byte, 256)
	for i := range codes {
		codes[i] = byte(i)
	}
	s.add("a.weight", dtype.F8E4M3, codes, 16, 16)
	s.add("a.weight_scale", dtype.F32, f32s(1))
	values := s.decode(t, s.only(t))
	for i, x := range values {
		want := math.NaN()
		if e, m := float64(i>>3&15), float64(i&7); i&0x7f != 0x7f {
			if want = (1 + m/8) * math.Pow(2, e-7); e == 0 {
				want = m / 8 * math.Pow(2, -6)
			}
		}
		if i > 127 {
			want = -want
		}
		if x != want && (x == x || want == want) || math.Signbit(x) != math.Signbit(want) && x == x {
			t.Errorf("code %#x is %v, want %v", i, x, want)
		}
	}
	if values[0x7e] != 448 || values[1] != 0x1p-9 {
		t.Errorf("the largest value is %v and the smallest %v, want 448 and 2^-9", values[0x7e], values[1])
	}
}

// TestScalesOfPowersOfTwo: U8 and F8_E8M0 are exponents, and 255 is NaN.
func TestScalesOfPowersOfTwo(t *testing.T) {
	for _, d := range []dtype.Type{dtype.U8, dtype.F8E8M0} {
		var s stored
		s.add("a.weight", dtype.F8E4M3, bytes.Repeat([]byte{0x38}, 5*32), 5, 32) // ones
		s.add("a.weight_scale", d, []byte{0, 127, 128, 254, 255}, 5, 1)
		w := s.only(t)
		values := s.decode(t, w)
		for i, want := range []float64{0x1p-127, 1, 2, 0x1p127, math.NaN()} {
			if got := values[32*i]; got != want && got == got || math.IsNaN(got) != math.IsNaN(want) {
				t.Errorf("%v: the value with scale %d is %v, want %v", d, i, got, want)
			}
		}
	}
}

// TestLowHalvesComeFirstExceptInBitsandbytes reads the byte 0x21.
func TestLowHalvesComeFirstExceptInBitsandbytes(t *testing.T) {
	var s stored
	s.add("a.weight", dtype.I8, bytes.Repeat([]byte{0x21}, 16), 1, 16)
	s.add("a.scale", dtype.F8E8M0, []byte{127}, 1, 1)
	if got := s.decode(t, s.only(t))[:2]; got[0] != 0.5 || got[1] != 1 {
		t.Errorf("the codes 1 and 2 of DeepSeek-V4 are %v, want 0.5 and 1", got)
	}
	s = stored{}
	s.add("a.proj_blocks", dtype.U8, bytes.Repeat([]byte{0x21}, 16), 1, 1, 1, 16)
	s.add("a.proj_scales", dtype.U8, []byte{127}, 1, 1, 1)
	if got := s.decode(t, s.only(t))[:2]; got[0] != 0.5 || got[1] != 1 {
		t.Errorf("the codes 1 and 2 of gpt-oss are %v, want 0.5 and 1", got)
	}
	s = nf4(t, 1, 64, 64)
	copy(s.data["a.weight"], bytes.Repeat([]byte{0x21}, 32))
	if got := s.decode(t, s.only(t))[:2]; got[0] != 2 || got[1] != 1 {
		t.Errorf("the codes 1 and 2 of bitsandbytes are %v, want 2 and 1: the high half comes first", got)
	}
}

// nf4 returns a plain NF4 weight whose map gives every code its number, and whose blocks have the
// absmax 1, 2, ….
func nf4(t testing.TB, rows, cols, size uint64) (s stored) {
	t.Helper()
	var table, absmax []float32
	for i := range 16 {
		table = append(table, float32(i))
	}
	n := rows * cols
	for i := range (n + size - 1) / size {
		absmax = append(absmax, float32(i+1))
	}
	state := fmt.Sprintf(`{"quant_type":"nf4","blocksize":%d,"dtype":"bfloat16","shape":[%d,%d]}`, size, rows, cols)
	s.add("a.weight", dtype.U8, nil, (n+1)/2, 1)
	s.add("a.weight.absmax", dtype.F32, f32s(absmax...), uint64(len(absmax)))
	s.add("a.weight.quant_map", dtype.F32, f32s(table...), 16)
	s.add("a.weight.quant_state.bitsandbytes__nf4", dtype.U8, []byte(state), uint64(len(state)))
	return s
}

// TestBlocksRunOverTheFlattenedWeight: a block of bitsandbytes begins in the middle of a row.
func TestBlocksRunOverTheFlattenedWeight(t *testing.T) {
	s := nf4(t, 3, 5, 4)
	for i := range s.data["a.weight"] {
		s.data["a.weight"][i] = 0x11
	}
	want := []float64{1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4}
	if got := s.decode(t, s.only(t)); !slices.Equal(got, want) {
		t.Errorf("the values are %v, want %v", got, want)
	}
}

// TestCodesOfFourBitsMayHaveAnyDType: FSDP stores the bytes as BF16.
func TestCodesOfFourBitsMayHaveAnyDType(t *testing.T) {
	s := nf4(t, 4, 16, 64)
	want := s.decode(t, s.only(t))
	s.tensors[0].DType, s.tensors[0].Shape = dtype.BF16, []uint64{16, 1}
	if got := s.decode(t, s.only(t)); !slices.Equal(got, want) {
		t.Error("the codes in BF16 have other values")
	}
}

// TestFusedExpertsHaveGridsOfTheirOwn: blocks do not cross experts, whose last blocks are short.
func TestFusedExpertsHaveGridsOfTheirOwn(t *testing.T) {
	const experts, rows, cols = 2, 130, 3
	var s stored
	s.add("mlp.experts.gate_up_proj", dtype.F8E4M3, bytes.Repeat([]byte{0x38}, experts*rows*cols), experts, rows, cols)
	s.add("mlp.experts.gate_up_proj_scale_inv", dtype.F32, f32s(1, 2, 3, 4), experts, 2, 1)
	w := s.only(t)
	values := s.decode(t, w)
	for i, x := range values {
		row := i / cols
		want := float64(row/rows*2 + row%rows/128 + 1)
		if x != want {
			t.Fatalf("row %d has the scale %v, want %v", row, x, want)
		}
	}
}

// TestScalesOfTheChannelsOfExperts: fbgemm's scales belong to columns, also where their shape says
// rows.
func TestScalesOfTheChannelsOfExperts(t *testing.T) {
	ones := bytes.Repeat([]byte{0x38}, 2*2*3)
	square := bytes.Repeat([]byte{0x38}, 2*2*2)
	six, four := f32s(1, 2, 3, 4, 5, 6), f32s(1, 2, 3, 4)
	for _, c := range []struct {
		name   string
		method string
		codes  []byte
		shape  []uint64
		scales []byte
		grid   []uint64
		want   []float64
	}{
		{"gate_up", "fbgemm_fp8", ones, []uint64{2, 2, 3}, six, []uint64{2, 1, 3}, []float64{1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6}},
		{"down", "fbgemm_fp8", ones, []uint64{2, 2, 3}, six, []uint64{2, 3, 1}, []float64{1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6}},
		{"square down", "fbgemm_fp8", square, []uint64{2, 2, 2}, four, []uint64{2, 2, 1}, []float64{1, 2, 1, 2, 3, 4, 3, 4}},
		{"square rows", "compressed-tensors", square, []uint64{2, 2, 2}, four, []uint64{2, 2, 1}, []float64{1, 1, 2, 2, 3, 3, 4, 4}},
		{"rows", "", ones, []uint64{2, 2, 3}, four, []uint64{2, 2, 1}, []float64{1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4}},
		{"experts", "", ones, []uint64{2, 2, 3}, f32s(1, 2), []uint64{2}, []float64{1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2}},
	} {
		s := stored{config: quant.Config{Method: c.method}}
		s.add("experts.p", dtype.F8E4M3, c.codes, c.shape...)
		s.add("experts.p_scale", dtype.F32, c.scales, c.grid...)
		if got := s.decode(t, s.only(t)); !slices.Equal(got, c.want) {
			t.Errorf("%s: the values are %v, want %v", c.name, got, c.want)
		}
	}
}

// TestNaNAndZeroScalesPass: the values are those of the arithmetic.
func TestNaNAndZeroScalesPass(t *testing.T) {
	var s stored
	s.add("a.weight", dtype.F8E4M3, []byte{0x38, 0x38, 0x38, 0x7f}, 4, 1)
	s.add("a.weight_scale", dtype.F32, f32s(float32(math.NaN()), 0, float32(math.Inf(1)), 0), 4, 1)
	got := s.decode(t, s.only(t))
	if got[0] == got[0] || got[1] != 0 || !math.IsInf(got[2], 1) || got[3] == got[3] {
		t.Errorf("the values are %v, want NaN, 0, +Inf, NaN", got)
	}
}

// TestPartnersBelongToTheirWeight: tensors beside the codes are hidden with them, and norms are
// not.
func TestPartnersBelongToTheirWeight(t *testing.T) {
	var s stored
	s.add("a.weight", dtype.F8E4M3, nil, 256, 128)
	s.add("a.scale", dtype.F8E8M0, nil, 2, 1)
	s.add("a.input_scale", dtype.F32, nil)
	s.add("a.bias", dtype.BF16, nil, 256)
	s.add("q_norm.scale", dtype.F32, nil, 128)
	w := s.only(t)
	if !slices.Equal(w.Parts, []string{"a.weight", "a.scale"}) || !slices.Equal(w.Beside, []string{"a.input_scale"}) {
		t.Errorf("%q is made of %q, and beside it lies %q", w.Name, w.Parts, w.Beside)
	}
}

// TestFP8WithoutScalesIsPlain: image models are stored so, and their values are the codes.
func TestFP8WithoutScalesIsPlain(t *testing.T) {
	var s stored
	s.add("a.weight", dtype.F8E4M3, nil, 4, 4)
	s.add("b.weight", dtype.F8E4M3, nil, 4, 4)
	if found := s.recognise(t); len(found.Weights)+len(found.Refused) != 0 {
		t.Errorf("recognised %+v, want nothing", found)
	}
}

// TestWrongPartnersAreRefused: one weight is stored wrongly, and another one stays readable.
func TestWrongPartnersAreRefused(t *testing.T) {
	f8 := func(s *stored) { s.add("x.weight", dtype.F8E4M3, nil, 192, 256) }
	for _, c := range []struct {
		name  string
		build func(s *stored)
		kind  error
		words string
	}{
		{"no scales", f8, fault.Mismatch, "its scales are missing"},
		{"scales of the divided blocks", func(s *stored) { f8(s); s.add("x.weight_scale_inv", dtype.F32, nil, 3, 2) }, fault.Mismatch, "[2 2] for blocks of 128×128"},
		{"two sets", func(s *stored) {
			f8(s)
			s.add("x.weight_scale_inv", dtype.F32, nil, 2, 2)
			s.add("x.weight_scale", dtype.F32, nil, 1)
		}, fault.Mismatch, "two sets of scales"},
		{"numbers as scales", func(s *stored) { f8(s); s.add("x.weight_scale", dtype.I32, nil, 2, 2) }, fault.Mismatch, "want scales of F32"},
		{"swizzled", func(s *stored) { f8(s); s.add("x.weight_scale", dtype.U8, nil, 2048) }, fault.Mismatch, "swizzled"},
		{"zero points", func(s *stored) {
			f8(s)
			s.add("x.weight_scale", dtype.F32, nil, 1)
			s.add("x.weight_zero_point", dtype.F32, nil, 1)
		}, fault.Unsupported, "zero points"},
		{"FNUZ", func(s *stored) {
			s.add("x.weight", dtype.F8E4M3FNUZ, nil, 4, 4)
			s.add("x.weight_scale", dtype.F32, nil, 1)
		}, fault.Unsupported, "AMD"},
		{"scales alone", func(s *stored) { s.add("x.weight_scale_inv", dtype.F32, nil, 2, 2) }, fault.Mismatch, "which the checkpoint lacks"},
		{"scales of plain weights", func(s *stored) {
			s.add("x.weight", dtype.BF16, nil, 4, 4)
			s.add("x.weight_scale", dtype.F32, nil, 1)
		}, fault.Unsupported, "does not fit"},
		{"square experts", func(s *stored) {
			s.add("x.weight", dtype.F8E4M3, nil, 2, 4, 4)
			s.add("x.weight_scale", dtype.F32, nil, 2, 4, 1)
		}, fault.Mismatch, "shape [2 4 1]"},
		{"no elements", func(s *stored) {
			s.add("x.weight", dtype.F8E4M3, nil, 0, 4)
			s.add("x.weight_scale", dtype.F32, nil, 1)
		}, fault.Mismatch, "at least one element"},
		{"V4 of another shape", func(s *stored) {
			s.add("x.weight", dtype.I8, nil, 4, 32)
			s.add("x.scale", dtype.F8E8M0, nil, 4, 3)
		}, fault.Mismatch, "want [4 2]"},
		{"blocks alone", func(s *stored) { s.add("x.weight_blocks", dtype.U8, nil, 1, 2, 3, 16) }, fault.Mismatch, "are missing"},
		{"scales of blocks alone", func(s *stored) { s.add("x.weight_scales", dtype.U8, nil, 1, 2, 3) }, fault.Mismatch, "lacks"},
		{"blocks of another size", func(s *stored) {
			s.add("x.weight_blocks", dtype.U8, nil, 1, 2, 3, 8)
			s.add("x.weight_scales", dtype.U8, nil, 1, 2, 3)
		}, fault.Mismatch, "[1 2 3 8]"},
		{"fewer scales than blocks", func(s *stored) {
			s.add("x.weight_blocks", dtype.U8, nil, 1, 2, 3, 16)
			s.add("x.weight_scales", dtype.U8, nil, 1, 2, 2)
		}, fault.Mismatch, "[1 2 3]"},
		{"SCB alone", func(s *stored) { s.add("x.SCB", dtype.F32, nil, 3) }, fault.Mismatch, "missing"},
		{"no SCB", func(s *stored) {
			s.add("x.weight", dtype.I8, nil, 4, 4)
			s.add("x.weight_format", dtype.U8, nil)
		}, fault.Mismatch, `INT8 of bitsandbytes, and its scales "x.SCB" are missing`},
		{"neither SCB nor its format", func(s *stored) {
			s.config = quant.ReadConfig([]byte(`{"quant_method":"bitsandbytes","load_in_8bit":true}`), "")
			s.add("x.weight", dtype.I8, nil, 4, 4)
		}, fault.Mismatch, `INT8 of bitsandbytes, and its scales "x.SCB" are missing`},
		{"SCB of another length", func(s *stored) {
			s.add("x.weight", dtype.I8, nil, 4, 4)
			s.add("x.SCB", dtype.F32, nil, 3)
		}, fault.Mismatch, "want F32 and [4]"},
		{"int8 in tiles", func(s *stored) {
			s.add("x.weight", dtype.I8, nil, 4, 4)
			s.add("x.SCB", dtype.F32, nil, 4)
			s.add("x.weight_format", dtype.U8, []byte{2})
		}, fault.Unsupported, "graphics processor"},
		{"absmax alone", func(s *stored) {
			s.add("x.weight", dtype.U8, nil, 8, 1)
			s.add("x.weight.absmax", dtype.F32, nil, 1)
			s.add("x.weight.quant_map", dtype.F32, nil, 16)
		}, fault.Mismatch, "does not fit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s stored
			s.add("good.weight", dtype.F8E4M3, nil, 4, 4)
			s.add("good.weight_scale", dtype.F32, nil, 1)
			c.build(&s)
			checkRefused(t, s.recognise(t), c.kind, c.words)
		})
	}
}

// checkRefused wants x.weight to be refused, and good.weight to be there.
func checkRefused(t *testing.T, found quant.Found, kind error, words string) {
	t.Helper()
	if len(found.Refused) != 1 || found.Refused[0].Name != "x.weight" {
		t.Fatalf("refused %+v, want x.weight", found.Refused)
	}
	err := found.Refused[0].Err
	var e *fault.Error
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), words) || !errors.As(err, &e) || e.Hint == "" {
		t.Errorf("the error is %v, want %v with %q and a hint", err, kind, words)
	}
	if len(found.Weights) != 1 || found.Weights[0].Name != "good.weight" {
		t.Errorf("recognised %+v, want good.weight", found.Weights)
	}
}

// TestWrongStatesAreRefused changes one thing of a weight of bitsandbytes.
func TestWrongStatesAreRefused(t *testing.T) {
	const good = `{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[4,32],"nested_blocksize":256,"nested_dtype":"float32","nested_offset":0.5}`
	build := func(state string, change func(s *stored)) *stored {
		s := new(stored)
		s.add("good.weight", dtype.F8E4M3, nil, 4, 4)
		s.add("good.weight_scale", dtype.F32, nil, 1)
		s.add("x.weight", dtype.U8, nil, 64, 1)
		s.add("x.weight.absmax", dtype.U8, nil, 2)
		s.add("x.weight.quant_map", dtype.F32, nil, 16)
		s.add("x.weight.nested_absmax", dtype.F32, nil, 1)
		s.add("x.weight.nested_quant_map", dtype.F32, nil, 256)
		s.add("x.weight.quant_state.bitsandbytes__nf4", dtype.U8, []byte(state), uint64(len(state)))
		if change != nil {
			change(s)
		}
		return s
	}
	if found := build(good, nil).recognise(t); len(found.Weights) != 2 || len(found.Refused) != 0 {
		t.Fatalf("recognised %+v, want two weights", found)
	}
	swap := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatal(old)
		}
		return strings.Replace(good, old, new, 1)
	}
	drop := func(name string) func(*stored) {
		return func(s *stored) {
			s.tensors = slices.DeleteFunc(s.tensors, func(x quant.Tensor) bool { return x.Name == name })
		}
	}
	shape := func(name string, shape ...uint64) func(*stored) {
		return func(s *stored) {
			s.tensors[slices.IndexFunc(s.tensors, func(x quant.Tensor) bool { return x.Name == name })].Shape = shape
		}
	}
	for _, c := range []struct {
		state  string
		change func(s *stored)
		words  string
	}{
		{`{"quant_type"`, nil, "not valid"},
		{swap(`nf4`, `fp4`), nil, "want nf4 or fp4"},
		{swap(`[4,32]`, `[4,33]`), nil, "have 64 bytes, want 66"},
		{swap(`[4,32]`, `[4,-32]`), nil, "not valid"},
		{swap(`[4,32]`, `[4294967296,4294967296,4294967296]`), nil, "has the shape"},
		{swap(`[4,32]`, `[0,32]`), nil, "has the shape"},
		{swap(`[4,32]`, `[]`), nil, "has the shape"},
		{swap(`:64`, `:0`), nil, "blocks of 0"},
		{swap(`:64`, `:-64`), nil, "blocks of -64"},
		{swap(`:64`, `:32`), nil, "absmax"},
		{swap(`:256`, `:1`), nil, "nested_absmax"},
		{swap(`:256`, `:-1`), nil, "and -1 elements"},
		{swap(`:256`, `:0`), nil, "want 2 of F32"},
		{swap(`bfloat16`, `int8`), nil, "want float16"},
		{swap(`"float32"`, `"float16"`), nil, "nested dtype"},
		{good, drop("x.weight"), "codes are missing"},
		{good, drop("x.weight.absmax"), "is missing"},
		{good, drop("x.weight.quant_map"), "is missing"},
		{good, drop("x.weight.nested_absmax"), "is missing"},
		{good, drop("x.weight.nested_quant_map"), "is missing"},
		{good, shape("x.weight.quant_map", 15), "15 numbers"},
		{good, shape("x.weight.nested_quant_map", 255), "255 numbers"},
		{good, shape("x.weight.absmax", 3), "3 numbers"},
		{good, shape("x.weight", 63), "63 bytes"},
		{good, shape("x.weight.quant_state.bitsandbytes__nf4", 1<<40), "up to 4096 bytes"},
	} {
		found := build(c.state, c.change).recognise(t)
		if len(found.Refused) != 1 {
			t.Errorf("%s: refused %+v, want one weight", c.words, found.Refused)
			continue
		}
		if err := found.Refused[0].Err; !strings.Contains(err.Error(), c.words) || len(found.Weights) != 1 {
			t.Errorf("%s: the error is %v, and there are %+v", c.words, err, found.Weights)
		}
	}
}

// TestOtherSchemesAreRefusedByName reads the headers that the libraries of these schemes write.
func TestOtherSchemesAreRefusedByName(t *testing.T) {
	text, err := os.ReadFile(fixtures + "headers.json")
	if err != nil {
		t.Fatal(err)
	}
	var headers map[string]struct {
		Config  json.RawMessage              `json:"config"`
		Tensors map[string][]json.RawMessage `json:"tensors"`
	}
	if err := json.Unmarshal(text, &headers); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"quanto_int4": "Quanto in 4 or 2 bits",
	}
	if len(headers) != len(want) {
		t.Errorf("there are headers of %d checkpoints, want %d", len(headers), len(want))
	}
	for name, h := range headers {
		s := stored{config: quant.ReadConfig(h.Config, "")}
		for tensor, fields := range h.Tensors {
			var d string
			var shape []uint64
			if err := errors.Join(json.Unmarshal(fields[0], &d), json.Unmarshal(fields[1], &shape)); err != nil {
				t.Fatal(err)
			}
			x, _ := dtype.Parse(d)
			s.add("model."+tensor, x, nil, shape...)
		}
		s.add("model.m.bias", dtype.BF16, nil, 4)
		found := s.recognise(t)
		if len(found.Weights) != 0 || len(found.Refused) != 1 {
			t.Errorf("%s: recognised %+v, want one refusal", name, found)
			continue
		}
		r := found.Refused[0]
		if r.Scheme != want[name] || r.Name != "model.m.weight" || !errors.Is(r.Err, fault.Unsupported) || len(r.Parts) != len(h.Tensors) {
			t.Errorf("%s: refused %+v, want all tensors but the bias as %q", name, r, want[name])
		}
	}
}

// FuzzRecognise changes shapes, dtypes and names. Whatever is recognised decodes within its parts.
func FuzzRecognise(f *testing.F) {
	f.Add([]byte("F\x08\x04S\x04\x04"), []byte(`{"weight_block_size":[2,2]}`), []byte(`{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[2,4]}`))
	f.Add([]byte("B\x01\x02K\x01\x02"), []byte(`{"quant_method":"mxfp4"}`), []byte(`{}`))
	f.Add([]byte("\x12\x02\x04\x05\x10\x02\x04\x02\x17\x01\x02\x06\x02\x01\x02"), []byte(`{"config_groups":{"a":{"weights":{"num_bits":4,"group_size":20}}}}`), []byte("\x04\x28"))
	names := []string{
		"a.weight", "a.weight_scale", "a.weight_scale_inv", "a.scale", "a.SCB", "a.weight_format", "a.weight.absmax", "a.weight.quant_map",
		"a.weight.nested_absmax", "a.weight.nested_quant_map", "a.weight.quant_state.bitsandbytes__nf4", "a_blocks", "a_scales", "a_scale", "a", "a.input_scale",
		"a.weight_packed", "a.weight_global_scale", "a.weight_scale_2", "a.weight_shape", "a.weight_zero_point", "a.weight_g_idx",
		"a._weight_qdata", "a._weight_scale", "a._weight_zero_point", "a.weight._data", "a.weight._scale",
	}
	types := dtype.All()
	f.Fuzz(func(t *testing.T, shapes, config, state []byte) {
		s := stored{config: quant.ReadConfig(config, "bfloat16")}
		for _, name := range names {
			if len(shapes) < 5 {
				break
			}
			d, dims := types[int(shapes[0])%len(types)], int(shapes[1])%5
			var shape []uint64
			for _, n := range shapes[2:min(2+dims, len(shapes))] {
				shape = append(shape, uint64(n%17)*uint64(1+15*(n>>7)))
			}
			shapes = shapes[min(2+dims, len(shapes)):]
			if n, ok := dtype.NElements(shape); !ok || n > 1<<16 || d.Size() == 0 {
				continue
			}
			if strings.Contains(name, "quant_state") && d == dtype.U8 {
				s.add(name, d, slices.Clone(state), uint64(len(state)))
				continue
			}
			s.add(name, d, nil, shape...)
			for i, data := 0, s.data[name]; len(state) > 0 && d.Size()*i < len(data); i++ {
				data[d.Size()*i] = state[i%len(state)] // small numbers
			}
		}
		for _, w := range s.recognise(t).Weights {
			n, ok := dtype.NElements(w.Shape)
			if !ok || n > 1<<20 {
				t.Fatalf("%q has the shape %d", w.Name, w.Shape)
			}
			whole := s.decode(t, &w)
			if half := s.decodeAt(t, &w, int64(n/2), int64(n-n/2)); digest(half, dtype.F64) != digest(whole[n/2:], dtype.F64) {
				t.Fatalf("the second half of %q decodes differently", w.Name)
			}
		}
	})
}

// TestErrorsOfReadersArePassedOn: nothing else fails in Decode.
func TestErrorsOfReadersArePassedOn(t *testing.T) {
	for _, name := range []string{"fp8_block_128", "gptoss_mxfp4", "bnb_nf4_dq_bfloat16_40x72", "ct_nvfp4", "ct_w4_asym_g32", "ct_w4_actorder_g16"} {
		s := load(t, fixtures+name)
		w := s.recognise(t).Weights[0]
		for part := range w.Parts {
			broken := &stored{data: make(map[string][]byte)}
			for i, p := range w.Parts {
				if i != part {
					broken.data[p] = s.data[p]
				}
			}
			err := w.Codec.Decode(t.Context(), make([]float64, 64), 0, parts{broken, &w})
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s without %q: %v, want the reader's error", name, w.Parts[part], err)
			}
		}
	}
}
