package merge_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// randomCodes returns a tensor of random bytes below most.
func randomCodes(rng *rand.Rand, name string, d dtype.Type, most int, shape ...uint64) testkit.Tensor {
	n, _ := dtype.NElements(shape)
	nBytes, _ := d.NBytes(n)
	x := testkit.Tensor{Name: name, DType: d, Shape: shape, Data: make([]byte, nBytes)}
	for i := range x.Data {
		x.Data[i] = byte(rng.IntN(most))
	}
	return x
}

// packedInt4 returns the tensors of a weight as Kimi K2's experts are stored.
func packedInt4(rng *rand.Rand, module string, rows, cols uint64) []testkit.Tensor {
	shape := testkit.Tensor{Name: module + ".weight_shape", DType: dtype.I32, Shape: []uint64{2}}
	for _, n := range []uint64{rows, cols} {
		shape.Data = binary.LittleEndian.AppendUint32(shape.Data, uint32(n))
	}
	return []testkit.Tensor{
		randomCodes(rng, module+".weight_packed", dtype.I32, 256, rows, cols/8),
		testkit.Random(rng, module+".weight_scale", dtype.BF16, 0.01, rows, cols/32), shape,
	}
}

// nvfp4 returns the tensors of a weight of ModelOpt.
func nvfp4(rng *rand.Rand, module string, rows, cols uint64) []testkit.Tensor {
	return []testkit.Tensor{
		randomCodes(rng, module+".weight", dtype.U8, 256, rows, cols/2),
		randomCodes(rng, module+".weight_scale", dtype.F8E4M3, 0x7f, rows, cols/16),
		testkit.Random(rng, module+".weight_scale_2", dtype.F32, 0.001), testkit.Random(rng, module+".input_scale", dtype.F32, 1),
	}
}

// writeModel writes a directory with one file of weights, and others.
func writeModel(t *testing.T, metadata map[string]string, tensors []testkit.Tensor, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	testkit.Write(t, filepath.Join(dir, "model.safetensors"), testkit.Encode(metadata, tensors...))
	for name, text := range files {
		testkit.Write(t, filepath.Join(dir, name), []byte(text))
	}
	return dir
}

// checkMixed wants every tensor of the modules to be one plain weight, and all others to be as
// before.
func checkMixed(t *testing.T, base, out string, isDecoded func(module string) bool) {
	t.Helper()
	before, after := readModel(t, base, true), readModel(t, out, true)
	decoded := 0
	for name, x := range before {
		module := name[:strings.LastIndexByte(name, '.')]
		got, ok := after[name]
		switch {
		case !isDecoded(module):
			if got.DType != x.DType || !bytes.Equal(got.Data, x.Data) {
				t.Errorf("%q has other bytes than in the base", name)
			}
		case ok && (!strings.HasSuffix(name, ".weight") || got.DType != dtype.BF16):
			t.Errorf("%q of %v is still there", name, got.DType)
		}
	}
	for name, x := range after {
		if _, ok := before[name]; !ok || before[name].DType != x.DType {
			decoded++
		}
	}
	if decoded == 0 || len(after) >= len(before) {
		t.Errorf("%d weights are decoded, and there are %d tensors instead of %d", decoded, len(after), len(before))
	}
}

// TestExpertsOfCompressedTensorsAreIgnored: compressed-tensors compares the names of its list with
// whole names of modules, or as regular expressions.
func TestExpertsOfCompressedTensorsAreIgnored(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	const experts = "model.layers.1.mlp.experts"
	var tensors []testkit.Tensor
	for _, module := range []string{"model.layers.1.self_attn.o_proj", experts + ".0.down_proj", experts + ".0.up_proj", experts + ".1.down_proj", "model.layers.11.mlp.experts.0.down_proj"} {
		tensors = append(tensors, packedInt4(rng, module, 16, 64)...)
	}
	const quantisation = `"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int","group_size":32}}},"ignore":["lm_head"]}`
	base := writeModel(t, nil, tensors, map[string]string{"config.json": `{` + quantisation + `}`})
	adapter, _, _ := adapterFor(t, rng, experts+".1.down_proj.weight", []uint64{16, 64})
	out, report := runMerge(t, base, adapter, merge.Options{})
	checkMixed(t, base, out, func(module string) bool { return strings.HasPrefix(module, experts+".") })
	if report.Layers[0].Scheme != "INT4 of compressed-tensors" {
		t.Errorf("the scheme is %q", report.Layers[0].Scheme)
	}
	ignore := readJSON[quantisedConfig](t, out+"/config.json").Quantisation.Ignore
	want := []string{"lm_head", `re:(.*\.)?layers\.1\.mlp\.experts(\..*)?$`} // vLLM may call the model otherwise
	if !slices.Equal(ignore, want) {
		t.Errorf("ignore is %q, want %q", ignore, want)
	}
	if pattern := regexp.MustCompile("^(?:" + ignore[1][3:] + ")"); !pattern.MatchString(experts+".0.up_proj") || pattern.MatchString("model.layers.11.mlp.experts.0.down_proj") {
		t.Errorf("%s does not tell the experts of layer 1", pattern)
	}

	testkit.Write(t, filepath.Join(base, "config.json"), []byte(`{"model_type":"kimi_k25","text_config":{"torch_dtype":"float16",`+quantisation+`}}`))
	out, _ = runMerge(t, base, adapter, merge.Options{})
	c := readJSON[struct {
		Text         quantisedConfig `json:"text_config"`
		Quantisation any             `json:"quantization_config"`
	}](t, out+"/config.json")
	if c.Quantisation != nil || !slices.Equal(c.Text.Quantisation.Ignore, want) {
		t.Errorf("text_config ignores %q, want %q; beside it there is %v", c.Text.Quantisation.Ignore, want, c.Quantisation)
	}
	if x := readModel(t, out, true)[experts+".0.up_proj.weight"]; x.DType != dtype.F16 {
		t.Errorf("a decoded weight is %v, want F16 as text_config says", x.DType)
	}
	out, _ = runMerge(t, base, adapter, merge.Options{Dequantise: true})
	if text, err := os.ReadFile(out + "/config.json"); err != nil || string(text) != `{"model_type":"kimi_k25","text_config":{"torch_dtype":"float16"}}` {
		t.Errorf("config.json is %s, %v", text, err)
	}
}

// TestFilesOfModelOptStayTrue: both files say which modules are plain now, and no longer how they
// were quantised.
func TestFilesOfModelOptStayTrue(t *testing.T) {
	rng := rand.New(rand.NewPCG(53, 54))
	const layer = "model.layers.0."
	var tensors []testkit.Tensor
	for _, module := range []string{"self_attn.q_proj", "self_attn.o_proj", "mlp.experts.0.up_proj", "mlp.experts.1.up_proj"} {
		tensors = append(tensors, nvfp4(rng, layer+module, 16, 64)...)
	}
	tensors = append(tensors, testkit.Random(rng, "lm_head.weight", dtype.BF16, 1, 8, 64))
	const algo = `{"quant_algo":"NVFP4"}`
	layers := `{"model.layers.0.self_attn.q_proj":` + algo + `,"model.layers.0.self_attn.o_proj":` + algo + `,"model.layers.0.mlp.experts.0.up_proj":` + algo + `,"model.layers.0.mlp.experts.1.up_proj":` + algo + `}`
	base := writeModel(t, nil, tensors, map[string]string{
		"config.json":          `{"quantization_config":{"quant_method":"modelopt","quant_algo":"MIXED_PRECISION","quantized_layers":` + layers + `,"ignore":["lm_head"]}}`,
		"hf_quant_config.json": `{"producer":{"name":"modelopt"},"quantization":{"quant_algo":"MIXED_PRECISION","quantized_layers":` + layers + `,"exclude_modules":["lm_head"]}}`,
	})
	type fields struct {
		Layers  map[string]any `json:"quantized_layers"`
		Ignore  []string       `json:"ignore"`
		Exclude []string       `json:"exclude_modules"`
	}
	read := func(dir, name string) fields {
		all := readJSON[map[string]any](t, filepath.Join(dir, name))
		if len(all) == 0 {
			t.Fatal(name)
		}
		if name == "config.json" {
			return readJSON[struct {
				Q fields `json:"quantization_config"`
			}](t, filepath.Join(dir, name)).Q
		}
		return readJSON[struct {
			Q fields `json:"quantization"`
		}](t, filepath.Join(dir, name)).Q
	}
	for _, c := range []struct{ module, entry string }{
		{layer + "self_attn.q_proj", layer + "self_attn.q_proj"}, {layer + "mlp.experts.1.up_proj", layer + "mlp.experts*"},
	} {
		isDecoded := func(module string) bool {
			return module == c.module || strings.Contains(c.module, ".experts.") && strings.Contains(module, ".experts.")
		}
		adapter, _, _ := adapterFor(t, rng, c.module+".weight", []uint64{16, 64})
		out, _ := runMerge(t, base, adapter, merge.Options{})
		checkMixed(t, base, out, isDecoded)
		one, two := read(out, "config.json"), read(out, "hf_quant_config.json")
		if want := []string{"lm_head", c.entry}; !slices.Equal(one.Ignore, want) || !slices.Equal(two.Exclude, want) {
			t.Errorf("ignore is %q and exclude_modules %q, want %q", one.Ignore, two.Exclude, want)
		}
		for _, f := range []fields{one, two} {
			for module := range read(base, "config.json").Layers {
				if _, ok := f.Layers[module]; ok == isDecoded(module) {
					t.Errorf("after a merge into %q, %q is among the quantised layers: %v", c.module, module, ok)
				}
			}
		}
	}
	adapter, _, _ := adapterFor(t, rng, layer+"self_attn.q_proj.weight", []uint64{16, 64})
	out, _ := runMerge(t, base, adapter, merge.Options{Dequantise: true})
	if text, err := os.ReadFile(filepath.Join(out, "config.json")); err != nil || string(text) != "{}" {
		t.Errorf("config.json is %s, %v, want nothing about quantisation", text, err)
	}
	if names := testkit.Tree(t, out); names["hf_quant_config.json"] != "" {
		t.Error("hf_quant_config.json is still there")
	}
}

// TestTorchAODescribesPlainTensorsAsSuch: it keeps the class of every tensor in the metadata.
func TestTorchAODescribesPlainTensorsAsSuch(t *testing.T) {
	rng := rand.New(rand.NewPCG(55, 56))
	var tensors []testkit.Tensor
	metadata := map[string]string{"format": "pt", "tensor_names": `["a.weight", "b.weight"]`}
	const quantised = `{"_type": "Int8Tensor", "_data": {"block_size": [1, 32]}, "_tensor_data_names": ["qdata", "scale"]}`
	for _, module := range []string{"a", "b"} {
		tensors = append(tensors, randomCodes(rng, module+"._weight_qdata", dtype.I8, 256, 16, 32), testkit.Random(rng, module+"._weight_scale", dtype.F32, 0.01, 16, 1))
		metadata[module+".weight"] = quantised
	}
	base := writeModel(t, metadata, tensors, map[string]string{"config.json": `{"quantization_config":{"quant_method":"torchao"}}`})
	adapter, _, _ := adapterFor(t, rng, "b.weight", []uint64{16, 32})
	out, _ := runMerge(t, base, adapter, merge.Options{})
	raw, err := os.ReadFile(filepath.Join(out, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.Read(t.Context(), bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := h.Metadata["a.weight"], h.Metadata["b.weight"]; a != quantised || b != `{"_type": "Tensor"}` {
		t.Errorf("the metadata calls a %s and b %s", a, b)
	}
	checkMixed(t, base, out, func(module string) bool { return module == "b" })
	c := openModel(t, out)
	defer c.Close()
	if n := len(checkpoint.QuantisedOf(c)); n != 1 {
		t.Errorf("the output has %d quantised weights, want 1", n)
	}
}

// TestTheReportSaysWhichValuesAreRounded: those that float64 cannot hold.
func TestTheReportSaysWhichValuesAreRounded(t *testing.T) {
	rng := rand.New(rand.NewPCG(57, 58))
	for name, want := range map[string]bool{"ct_nvfp4": true, "modelopt_nvfp4": false, "ct_w4_sym_g128": false, "bnb_int8": true} {
		base := quantFixtures + name
		for weight, w := range readModel(t, base, false) {
			if w.DType != dtype.F64 {
				continue
			}
			adapter, _, _ := adapterFor(t, rng, weight, w.Shape)
			_, report := runMerge(t, base, adapter, merge.Options{})
			text := strings.Join(report.Warnings, "\n")
			if got := strings.Contains(text, "more bits than a float64"); got != want || got && !strings.Contains(text, report.Layers[0].Scheme) {
				t.Errorf("%s: the warnings are %q", name, text)
			}
		}
	}
}
