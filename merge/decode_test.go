package merge_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

const quantFixtures = "../testdata/quant/"

// readModel reads every tensor of a checkpoint, as the files have it or with decoded values.
func readModel(t *testing.T, path string, stored bool) map[string]testkit.Tensor {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if stored {
		c = checkpoint.Stored(c)
	}
	all := make(map[string]testkit.Tensor)
	for _, name := range c.Names() {
		all[name] = readTensor(t, c, name)
	}
	return all
}

func readTensor(t *testing.T, c *checkpoint.Checkpoint, name string) testkit.Tensor {
	t.Helper()
	ref, _ := c.Lookup(name)
	data, err := io.ReadAll(ref.Tensor.Reader(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return testkit.Tensor{Name: name, DType: ref.Tensor.DType, Shape: ref.Tensor.Shape, Data: data}
}

func runMerge(t *testing.T, base, adapter string, options merge.Options) (out string, report *merge.Report) {
	t.Helper()
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, options)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out = filepath.Join(t.TempDir(), "out")
	if report, err = p.Run(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	return out, report
}

// adapterFor writes an adapter of a matrix, with factors of so many bits that sums are seldom ties.
func adapterFor(t *testing.T, rng *rand.Rand, weight string, shape []uint64) (dir string, a, b testkit.Tensor) {
	t.Helper()
	const r = 5
	module := "base_model.model." + strings.TrimSuffix(weight, ".weight")
	a = testkit.Random(rng, module+".lora_A.weight", dtype.F32, 0.05, r, shape[1])
	b = testkit.Random(rng, module+".lora_B.weight", dtype.F32, 0.05, shape[0], r)
	clear(b.Data[:4*r]) // a row without an update
	dir = t.TempDir()
	testkit.WriteAdapter(t, dir, r, 2*r, a, b)
	return dir, a, b
}

// TestDecodedElementsAreRoundedOnce: every element of a merge into a quantised weight is the number
// of the output's dtype that is nearest to the exact w + s·B·A.
func TestDecodedElementsAreRoundedOnce(t *testing.T) {
	paths, err := filepath.Glob(quantFixtures + "*/truth.json")
	if err != nil || len(paths) < 10 {
		t.Fatal(err, paths)
	}
	for i, path := range paths {
		base := filepath.Dir(path)
		if strings.Contains(base, "gptoss") {
			continue // see TestExpertsOfGPTOSS
		}
		rng := rand.New(rand.NewPCG(91, uint64(i)))
		for name, w := range readModel(t, base, false) {
			if w.DType != dtype.F64 || len(w.Shape) != 2 {
				continue
			}
			adapter, a, b := adapterFor(t, rng, name, w.Shape)
			for _, d := range []dtype.Type{dtype.Invalid, dtype.BF16, dtype.F16, dtype.F32} {
				out, report := runMerge(t, base, adapter, merge.Options{OutDType: d, BlockBytes: 5000})
				got := readModel(t, out, true)
				if d != dtype.Invalid && got[name].DType != d || report.Layers[0].Scheme == "" {
					t.Fatalf("%s in %v: the output has %d tensors, %q in %v, and the report %+v", base, d, len(got), name, got[name].DType, report.Layers[0])
				}
				checkNearest(t, base, w, a, b, got[name])
			}
		}
	}
}

// checkNearest compares the elements with 2·B·A + w over the rationals.
func checkNearest(t *testing.T, base string, w, a, b, got testkit.Tensor) {
	t.Helper()
	rows, cols, r := int(w.Shape[0]), int(w.Shape[1]), int(a.Shape[0])
	at := func(x testkit.Tensor, i int) *big.Rat { return new(big.Rat).SetFloat64(dtype.Load(x.DType, x.Data, i)) }
	for i := 0; i < rows*cols; i += 1 + rows*cols/2000 {
		row, col := i/cols, i%cols
		exact := at(w, i)
		for k := range r {
			x := new(big.Rat).Mul(at(b, row*r+k), at(a, k*cols+col))
			exact.Add(exact, x.Add(x, x))
		}
		want := make([]byte, got.DType.Size())
		storeNearest(got.DType, want, exact)
		if have := got.Data[i*len(want):][:len(want)]; !bytes.Equal(have, want) && exact.Sign() != 0 {
			t.Fatalf("%s in %v: element %d is %x, want %x, the nearest to %s", base, got.DType, i, have, want, exact.FloatString(40))
		}
	}
}

// storeNearest rounds a rational number to nearest even: of the float64 beside it, those of the
// dtype are compared with it.
func storeNearest(d dtype.Type, out []byte, x *big.Rat) {
	f, _ := x.Float64()
	dtype.Store(d, out, 0, f)
	best := dtype.Load(d, out, 0)
	distance := func(y float64) *big.Rat {
		e := new(big.Rat).Sub(new(big.Rat).SetFloat64(y), x)
		return e.Abs(e)
	}
	l, _ := d.Layout()
	step := math.Abs(best) * math.Ldexp(1, -l.Fraction)
	for _, y := range []float64{best - step, best + step} {
		var other [8]byte
		dtype.Store(d, other[:], 0, y)
		if z := dtype.Load(d, other[:], 0); distance(z).Cmp(distance(best)) < 0 {
			copy(out, other[:])
			best = z
		}
	}
}

// plainOf writes the values of a quantised checkpoint as plain ones, which must hold them exactly.
func plainOf(t *testing.T, base string, d dtype.Type) (path string) {
	t.Helper()
	var tensors []testkit.Tensor
	for _, x := range readModel(t, base, false) {
		if x.DType == dtype.F64 {
			plain := testkit.Tensor{Name: x.Name, DType: d, Shape: x.Shape, Data: make([]byte, len(x.Data)/8*d.Size())}
			for i := range len(x.Data) / 8 {
				v := dtype.Load(dtype.F64, x.Data, i)
				dtype.Store(d, plain.Data, i, v)
				if dtype.Load(d, plain.Data, i) != v {
					t.Fatalf("%v cannot hold %x, element %d of %q", d, v, i, x.Name)
				}
			}
			x = plain
		}
		tensors = append(tensors, x)
	}
	slices.SortFunc(tensors, func(a, b testkit.Tensor) int { return strings.Compare(a.Name, b.Name) })
	path = filepath.Join(t.TempDir(), "plain.safetensors")
	testkit.Write(t, path, testkit.Encode(nil, tensors...))
	return path
}

func checkSameModel(t *testing.T, what string, got, want map[string]testkit.Tensor) {
	t.Helper()
	if len(got) != len(want) || len(want) == 0 {
		t.Fatalf("%s: %d tensors, want %d", what, len(got), len(want))
	}
	for name, w := range want {
		if g := got[name]; g.DType != w.DType || !slices.Equal(g.Shape, w.Shape) || !bytes.Equal(g.Data, w.Data) {
			t.Errorf("%s: %q in %v of shape %d differs from that of the plain base", what, name, g.DType, g.Shape)
		}
	}
}

// TestDoRAMergesIntoDecodedWeights: where the values are numbers of F32, DoRA of rows and of
// columns give what they give over a plain base.
func TestDoRAMergesIntoDecodedWeights(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const rows, cols, r = 70, 48, 3
	codes := testkit.Tensor{DType: dtype.F8E4M3, Shape: []uint64{rows, cols}, Data: make([]byte, rows*cols)}
	for i := range codes.Data {
		codes.Data[i] = byte(rng.IntN(0x70)) | byte(rng.IntN(2)<<7)
	}
	scales := testkit.Random(rng, "", dtype.BF16, 0.01, rows, 1)
	for _, c := range []struct {
		weight  string
		factors []testkit.Tensor
	}{
		{"model.layers.0.mlp.up_proj.weight", []testkit.Tensor{
			testkit.Random(rng, "mlp.up_proj.lora_A.weight", dtype.F32, 0.1, r, cols), testkit.Random(rng, "mlp.up_proj.lora_B.weight", dtype.F32, 0.1, rows, r),
			testkit.Random(rng, "mlp.up_proj.lora_magnitude_vector.weight", dtype.F32, 1, rows)}},
		{"model.embed_tokens.weight", []testkit.Tensor{
			testkit.Random(rng, "lora_embedding_A", dtype.F32, 0.1, r, rows), testkit.Random(rng, "lora_embedding_B", dtype.F32, 0.1, cols, r),
			testkit.Random(rng, "lora_magnitude_vector.weight", dtype.F32, 1, cols)}},
	} {
		prefix := "base_model.model.model.layers.0."
		if strings.Contains(c.weight, "embed") {
			prefix = "base_model.model.model.embed_tokens."
		}
		for i := range c.factors {
			c.factors[i].Name = prefix + c.factors[i].Name
		}
		adapter, base := t.TempDir(), filepath.Join(t.TempDir(), "base.safetensors")
		testkit.WriteAdapter(t, adapter, r, r, c.factors...)
		testkit.Write(t, filepath.Join(adapter, "adapter_config.json"), []byte(`{"peft_type":"LORA","r":3,"lora_alpha":3,"use_dora":true}`))
		codes.Name, scales.Name = c.weight, c.weight+"_scale"
		testkit.Write(t, base, testkit.Encode(nil, codes, scales))
		got, _ := runMerge(t, base, adapter, merge.Options{OutDType: dtype.F32, BlockBytes: 3000})
		want, _ := runMerge(t, plainOf(t, base, dtype.F32), adapter, merge.Options{})
		checkSameModel(t, c.weight, readModel(t, got, true), readModel(t, want, true))
	}
}

// gptOSS writes the experts of gpt-oss without the scales that are beyond F32 on purpose.
func gptOSS(t *testing.T) (dir string) {
	t.Helper()
	var tensors []testkit.Tensor
	for name, x := range readModel(t, quantFixtures+"gptoss_mxfp4", true) {
		for i, scale := range x.Data {
			if strings.HasSuffix(name, "_scales") {
				x.Data[i] = min(scale, 130)
			}
		}
		tensors = append(tensors, x)
	}
	slices.SortFunc(tensors, func(a, b testkit.Tensor) int { return strings.Compare(a.Name, b.Name) })
	return writeModel(t, nil, tensors, nil)
}

// TestExpertsOfGPTOSS: an adapter that PEFT trained with target_parameters changes the experts as
// over a plain base with the same values.
func TestExpertsOfGPTOSS(t *testing.T) {
	base := gptOSS(t)
	out, report := runMerge(t, base, quantFixtures+"gptoss_peft_adapter", merge.Options{OutDType: dtype.F32, AllowNonFinite: true})
	plain := plainOf(t, base, dtype.F32)
	want, _ := runMerge(t, plain, quantFixtures+"gptoss_peft_adapter", merge.Options{AllowNonFinite: true})
	checkSameModel(t, "gpt-oss", readModel(t, out, true), readModel(t, want, true))
	if len(report.Layers) != 2 || report.Layers[0].Scheme != "MXFP4" {
		t.Errorf("the report has %+v, want two tensors of MXFP4", report.Layers)
	}
	peft := readModel(t, quantFixtures+"gptoss_peft_merged.safetensors", true)
	compared := 0
	values := readModel(t, base, false)
	for name, w := range values {
		theirs, ok := peft[name]
		if !ok || w.DType != dtype.F64 {
			continue
		}
		ours := readModel(t, out, true)[name]
		for i := range len(theirs.Data) / 4 {
			if math.Abs(dtype.Load(dtype.F64, w.Data, i)) > 1 {
				continue // PEFT's base had 0.5 in these places
			}
			compared++
			x, y := dtype.Load(dtype.F32, ours.Data, i), dtype.Load(dtype.F32, theirs.Data, i)
			if math.Abs(x-y) > 0x1p-20*(math.Abs(x)+0.1) {
				t.Fatalf("element %d of %q is %v, PEFT has %v", i, name, x, y)
			}
		}
	}
	if compared < 10000 {
		t.Errorf("%d elements compared, want most of 18,432", compared)
	}
}

// mixedFP8 writes a sharded FP8 model of one layer, with the scales in another shard than the
// codes.
func mixedFP8(t *testing.T, rng *rand.Rand, config string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	files := make(map[string]string)
	var one, two []testkit.Tensor
	fp8 := func(module string, rows, cols uint64) {
		codes := testkit.Tensor{Name: module + ".weight", DType: dtype.F8E4M3, Shape: []uint64{rows, cols}, Data: make([]byte, rows*cols)}
		for i := range codes.Data {
			codes.Data[i] = byte(rng.IntN(0x70)) | byte(rng.IntN(2)<<7)
		}
		one = append(one, codes)
		two = append(two, testkit.Random(rng, module+".weight_scale_inv", dtype.F32, 0.001, (rows+127)/128, (cols+127)/128))
		files[module+".weight"], files[module+".weight_scale_inv"] = "a.safetensors", "b.safetensors"
	}
	one = append(one, testkit.Tensor{Name: "odd", DType: dtype.U8, Shape: []uint64{3}, Data: []byte{1, 2, 3}})
	files["odd"] = "a.safetensors"
	for _, leaf := range []string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} {
		fp8("model.layers.0."+leaf, 130, 130)
	}
	two = append(two, testkit.Random(rng, "model.embed_tokens.weight", dtype.BF16, 1, 8, 130), testkit.Random(rng, "model.norm.weight", dtype.BF16, 1, 130))
	files["model.embed_tokens.weight"], files["model.norm.weight"] = "b.safetensors", "b.safetensors"
	testkit.Write(t, filepath.Join(dir, "a.safetensors"), testkit.Encode(map[string]string{"format": "pt"}, one...))
	testkit.Write(t, filepath.Join(dir, "b.safetensors"), testkit.Encode(map[string]string{"format": "pt"}, two...))
	text, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": 1}, "weight_map": files})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(dir, "model.safetensors.index.json"), text)
	testkit.Write(t, filepath.Join(dir, "config.json"), []byte(config))
	return dir
}

func readJSON[T any](t *testing.T, path string) (v T) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}

type quantisedConfig struct {
	Model        string `json:"model_type"`
	Quantisation *struct {
		Method string   `json:"quant_method"`
		Skip   []string `json:"modules_to_not_convert"`
		Ignore []string `json:"ignore"`
	} `json:"quantization_config"`
}

// TestUntouchedWeightsKeepTheirCodes: of a mixed output, codes and scales that no adapter changes
// are those of the base, the decoded weights have none, and index and configuration follow.
func TestUntouchedWeightsKeepTheirCodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	base := mixedFP8(t, rng, `{"model_type":"llama","quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}`)
	adapter, _, _ := adapterFor(t, rng, "model.layers.0.self_attn.k_proj.weight", []uint64{130, 130})
	out, report := runMerge(t, base, adapter, merge.Options{})
	before, after := readModel(t, base, true), readModel(t, out, true)
	exact := readModel(t, base, false)
	const layer = "model.layers.0."
	decoded := []string{layer + "self_attn.k_proj", layer + "self_attn.q_proj", layer + "self_attn.v_proj"}
	for name, x := range before {
		module, isScale := strings.CutSuffix(name, ".weight_scale_inv")
		module = strings.TrimSuffix(module, ".weight")
		got, ok := after[name]
		switch {
		case !slices.Contains(decoded, module):
			if !bytes.Equal(got.Data, x.Data) || got.DType != x.DType {
				t.Errorf("%q has other bytes than in the base", name)
			}
		case isScale && ok:
			t.Errorf("%q is still there", name)
		case !isScale && got.DType != dtype.BF16:
			t.Errorf("%q is %v, want BF16", name, got.DType)
		}
	}
	for _, module := range []string{decoded[1], decoded[2]} { // decoded with their neighbour, and not changed
		for i := range 130 * 130 {
			want := make([]byte, 2)
			dtype.Store(dtype.BF16, want, 0, dtype.Load(dtype.F64, exact[module+".weight"].Data, i))
			if !bytes.Equal(after[module+".weight"].Data[2*i:2*i+2], want) {
				t.Fatalf("element %d of %q is not its exact value, rounded", i, module)
			}
		}
	}
	c := readJSON[quantisedConfig](t, out+"/config.json")
	if c.Model != "llama" || c.Quantisation == nil || c.Quantisation.Method != "fp8" {
		t.Fatalf("config.json is %+v", c)
	}
	for _, module := range append(decoded, "lm_head", "model.embed_tokens") {
		if !slices.Contains(c.Quantisation.Skip, module) {
			t.Errorf("modules_to_not_convert is %q, want also %q", c.Quantisation.Skip, module)
		}
	}
	index := readJSON[struct {
		Map      map[string]string `json:"weight_map"`
		Metadata struct {
			Size int `json:"total_size"`
		} `json:"metadata"`
	}](t, out+"/model.safetensors.index.json")
	total := 0
	for name, x := range after {
		total += len(x.Data)
		if index.Map[name] == "" {
			t.Errorf("the index lacks %q", name)
		}
	}
	if len(index.Map) != len(after) || index.Metadata.Size != total {
		t.Errorf("the index has %d tensors of %d bytes, want %d of %d", len(index.Map), index.Metadata.Size, len(after), total)
	}
	if text := strings.Join(report.Warnings, "\n"); !strings.Contains(text, "3 of 7 quantised weights") || !strings.Contains(text, "2 weights that no adapter changes") {
		t.Errorf("the warnings are %q", text)
	}
	again := openModel(t, out)
	defer again.Close()
	if n := len(checkpoint.QuantisedOf(again)); n != 4 {
		t.Errorf("the output has %d quantised weights, want 4", n)
	}
	checkAligned(t, out)
}

func openModel(t *testing.T, path string) *checkpoint.Checkpoint {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkAligned: torch reads a tensor only from an offset that its dtype divides.
func checkAligned(t *testing.T, path string) {
	t.Helper()
	c := checkpoint.Stored(openModel(t, path))
	defer c.Close()
	for _, f := range c.Files {
		for i := range f.Tensors {
			if x := &f.Tensors[i]; (x.Off-f.DataOff)%int64(x.DType.Size()) != 0 {
				t.Errorf("%q of %v begins %d bytes after the header", x.Name, x.DType, x.Off-f.DataOff)
			}
		}
	}
}

// TestDequantiseDecodesEverything: no code and no scale is left, and no statement about them.
func TestDequantiseDecodesEverything(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	base := mixedFP8(t, rng, `{"model_type":"llama","torch_dtype":"bfloat16","quantization_config":{"quant_method":"fp8"}}`)
	testkit.Write(t, filepath.Join(base, "hf_quant_config.json"), []byte(`{"quantization":{"quant_algo":"FP8"}}`))
	adapter, _, _ := adapterFor(t, rng, "model.layers.0.mlp.down_proj.weight", []uint64{130, 130})
	out, _ := runMerge(t, base, adapter, merge.Options{Dequantise: true, OutDType: dtype.F32})
	for name, x := range readModel(t, out, true) {
		if strings.Contains(name, "scale") || strings.Contains(name, "layers") && x.DType != dtype.F32 {
			t.Errorf("%q is %v", name, x.DType)
		}
	}
	text, err := os.ReadFile(out + "/config.json")
	if err != nil || string(text) != `{"model_type":"llama","torch_dtype":"float32"}` {
		t.Errorf("config.json is %s, %v", text, err)
	}
	if _, err := os.Stat(out + "/hf_quant_config.json"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("hf_quant_config.json: %v, want none", err)
	}
	checkAligned(t, out)
}

// TestAPlainWeightOfAQuantisedBaseIsChangedAlone: all codes are copied, and the file is the base's
// but for the values and the stamp.
func TestAPlainWeightOfAQuantisedBaseIsChangedAlone(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	base := mixedFP8(t, rng, `{"quantization_config":{"quant_method":"fp8"}}`)
	adapter := t.TempDir()
	testkit.WriteAdapter(t, adapter, 2, 2, testkit.Random(rng, "base_model.model.model.embed_tokens.lora_embedding_A", dtype.F32, 1, 2, 8),
		testkit.Random(rng, "base_model.model.model.embed_tokens.lora_embedding_B", dtype.F32, 1, 130, 2))
	undo := filepath.Join(t.TempDir(), "undo")
	out, _ := runMerge(t, base, adapter, merge.Options{UndoFile: undo})
	before, after := testkit.Tree(t, base), testkit.Tree(t, out)
	for _, name := range []string{"a.safetensors", "config.json", "model.safetensors.index.json"} {
		if before[name] != after[name] {
			t.Errorf("%s is not the base's", name)
		}
	}
	if before["b.safetensors"] == after["b.safetensors"] {
		t.Error("nothing changed")
	}
}

// TestUndoOfDecodedWeightsIsRefused: before anything is written.
func TestUndoOfDecodedWeightsIsRefused(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	base := mixedFP8(t, rng, `{}`)
	adapter, _, _ := adapterFor(t, rng, "model.layers.0.mlp.down_proj.weight", []uint64{130, 130})
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	adapters := []merge.Adapter{{Source: src, Name: "a", Weight: 1}}
	_, err = merge.Open(t.Context(), base, adapters, merge.Options{Undo: io.Discard})
	if !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), "cannot bring the codes back") {
		t.Errorf("a merge with an undo record: %v, want a refusal", err)
	}
	_, err = merge.Open(t.Context(), base, adapters, merge.Options{OutDType: dtype.F64})
	if err == nil || !strings.Contains(err.Error(), "OutDType") {
		t.Errorf("OutDType F64: %v, want an error", err)
	}
}

// TestBrokenWeightsAreRefusedWhereTheyChange: an adapter that changes them names the reason, and
// one that does not is merged.
func TestBrokenWeightsAreRefusedWhereTheyChange(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	base := filepath.Join(t.TempDir(), "base.safetensors")
	testkit.Write(t, base, testkit.Encode(nil,
		testkit.Tensor{Name: "q.weight", DType: dtype.F8E4M3, Shape: []uint64{192, 256}, Data: make([]byte, 192*256)},
		testkit.Random(rng, "q.weight_scale_inv", dtype.F32, 1, 3, 2),
		testkit.Random(rng, "k.weight_scale_inv", dtype.F32, 1, 3, 2),
		testkit.Random(rng, "o.weight", dtype.BF16, 1, 192, 256)))
	for name, words := range map[string]string{"q.weight": "for blocks of 128×128", "k.weight": "which the checkpoint lacks", "o.weight": ""} {
		adapter, _, _ := adapterFor(t, rng, name, []uint64{192, 256})
		src, err := convert.Open(t.Context(), adapter, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		p, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, merge.Options{})
		switch {
		case words == "" && err == nil:
			p.Close()
		case words == "" || err == nil || !strings.Contains(err.Error(), words):
			t.Errorf("an adapter of %q: %v, want %q", name, err, words)
		}
	}
}

// TestQuantisedBasesWithoutAConfigurationMerge merges into weights whose partners alone say how
// they are stored: FP8 with one scale, and NF4, in models that config.json calls plain.
func TestQuantisedBasesWithoutAConfigurationMerge(t *testing.T) {
	for _, name := range []string{"llama-fp8", "llama-nf4"} {
		t.Run(name, func(t *testing.T) {
			base := filepath.Join("../testdata/peft/bases", name)
			out, report := runMerge(t, base, "../testdata/peft/merge/f32/adapter", merge.Options{})
			merged, before := readModel(t, out, true), readModel(t, base, false)
			decoded := 0
			for _, l := range report.Layers {
				x := merged[l.Tensor]
				if before[l.Tensor].DType == dtype.F64 {
					decoded++
				}
				if x.DType != dtype.BF16 || !slices.Equal(x.Shape, before[l.Tensor].Shape) {
					t.Errorf("%s is %v %d, want BF16 %d", l.Tensor, x.DType, x.Shape, before[l.Tensor].Shape)
				}
			}
			if decoded == 0 {
				t.Errorf("no quantised weight among the %d that the adapter changes", len(report.Layers))
			}
		})
	}
}
