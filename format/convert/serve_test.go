package convert_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
)

// serve writes an adapter for a server into a directory.
func serve(t *testing.T, server, config, base string, tensors ...testkit.Tensor) (dir string, remarks []string, err error) {
	t.Helper()
	from := filepath.Join(t.TempDir(), "adapter")
	testkit.Write(t, filepath.Join(from, "adapter_config.json"), []byte(`{"peft_type":"LORA",`+config+`}`))
	testkit.Write(t, filepath.Join(from, "adapter_model.safetensors"), testkit.Encode(nil, tensors...))
	src, err := convert.Open(t.Context(), from, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	loader, err := convert.LoaderNamed(server)
	if err != nil {
		t.Fatal(err)
	}
	o := convert.CreateOptions{Loader: loader}
	if base != "" {
		o.BaseConfig = []byte(`{"model_type":"` + base + `"}`)
	}
	dir = filepath.Join(t.TempDir(), "out")
	if remarks, err = convert.Remarks(t.Context(), dir, convert.PEFT(), src, o); err != nil {
		return "", nil, err
	}
	sink, err := convert.Create(dir, convert.PEFT(), o)
	if err != nil {
		return "", nil, err
	}
	return dir, remarks, format.Copy(t.Context(), sink, src)
}

// numbers returns a tensor with the elements 1, 2, 3, ….
func numbers(name string, rows, cols int) testkit.Tensor {
	v := make([]float64, rows*cols)
	for i := range v {
		v[i] = float64(i + 1)
	}
	return testkit.Values(name, dtype.BF16, []uint64{uint64(rows), uint64(cols)}, v...)
}

// valuesOf returns the elements of a tensor of a file.
func valuesOf(t *testing.T, src format.Source, name string) (v []float64) {
	t.Helper()
	m := src.Manifest()
	for i := range m.Tensors {
		x := &m.Tensors[i]
		if x.Name != name {
			continue
		}
		p := make([]byte, x.NBytes())
		if err := src.ReadBlobAt(p, i, 0); err != nil {
			t.Fatal(err)
		}
		for k := range int(x.Elements()) {
			v = append(v, dtype.Load(x.DType, p, k))
		}
	}
	return v
}

// TestServersGetOneRankAndOneScale: the patterns and rsLoRA are in the factors.
func TestServersGetOneRankAndOneScale(t *testing.T) {
	const q, v = "base_model.model.q_proj.", "base_model.model.layers.0.v_proj."
	dir, remarks, err := serve(t, "vllm",
		`"r":1,"lora_alpha":2,"rank_pattern":{"v_proj":4},"alpha_pattern":{"v_proj":8},"use_rslora":true,`+
			`"task_type":"CAUSAL_LM","target_modules":"q_proj|.*v_proj"`, "",
		numbers(q+"lora_A.weight", 1, 3), numbers(q+"lora_B.weight", 2, 1),
		numbers(v+"lora_A.weight", 4, 3), numbers(v+"lora_B.weight", 2, 4))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "adapter_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"r": "4", "lora_alpha": "4", "rank_pattern": "map[]", "alpha_pattern": "map[]", "bias": "none",
		"use_rslora": "false", "use_dora": "false", "modules_to_save": "<nil>",
		"target_modules": "[q_proj v_proj]", "task_type": "CAUSAL_LM",
	} {
		if got := fmt.Sprint(config[key]); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	src, err := convert.Open(t.Context(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for name, want := range map[string][]float64{ // the scales are 2/√1 and 8/√4
		q + "lora_A.weight": {2, 4, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		q + "lora_B.weight": {1, 0, 0, 0, 2, 0, 0, 0},
		v + "lora_A.weight": {4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48},
		v + "lora_B.weight": {1, 2, 3, 4, 5, 6, 7, 8},
	} {
		if got := valuesOf(t, src, name); !slices.Equal(got, want) {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	for _, want := range []string{"every layer gets the rank 4", "the factors carry the scales of 2 layers"} {
		if !strings.Contains(strings.Join(remarks, "; "), want) {
			t.Errorf("remarks %q, want %q", remarks, want)
		}
	}
}

// stackedExperts are factors of two experts with three inputs and a gate and an up projection of
// two outputs each, in PEFT's layout.
func stackedExperts() []testkit.Tensor {
	const m = "base_model.model.layers.0.mlp.experts."
	return []testkit.Tensor{
		numbers(m+"base_layer.lora_A.weight", 2*2, 3), numbers(m+"base_layer.lora_B.weight", 4, 2*2),
		numbers(m+"lora_A.weight", 2*2, 2), numbers(m+"lora_B.weight", 3, 2*2),
		numbers("base_model.model.layers.0.q_proj.lora_A.weight", 3, 3),
		numbers("base_model.model.layers.0.q_proj.lora_B.weight", 3, 3),
	}
}

const expertConfig = `"r":2,"lora_alpha":2,"target_modules":["q_proj"],"rank_pattern":{"q_proj":3},` +
	`"alpha_pattern":{"q_proj":3},"peft_version":"0.21.2",` +
	`"target_parameters":["mlp.experts.gate_up_proj","mlp.experts.down_proj"]`

// TestServersGetTheirExperts: vLLM reads stacked experts for some models, with a rank that is the
// same for all, and one by one for others. SGLang reads them one by one.
func TestServersGetTheirExperts(t *testing.T) {
	const m = "base_model.model.layers.0.mlp.experts."
	single := map[string][]float64{ // of expert 1: rows 2 and 3 of A, columns 1 and 3 of B
		m + "1.gate_proj.lora_A.weight": {7, 8, 9, 10, 11, 12, 0, 0, 0},
		m + "1.up_proj.lora_A.weight":   {7, 8, 9, 10, 11, 12, 0, 0, 0},
		m + "1.gate_proj.lora_B.weight": {2, 4, 0, 6, 8, 0},
		m + "1.up_proj.lora_B.weight":   {10, 12, 0, 14, 16, 0},
		m + "1.down_proj.lora_A.weight": {5, 6, 7, 8, 0, 0},
		m + "1.down_proj.lora_B.weight": {2, 4, 0, 6, 8, 0, 10, 12, 0},
	}
	stacked := map[string][]float64{
		m + "base_layer.lora_A.weight": {1, 2, 3, 4, 5, 6, 0, 0, 0, 7, 8, 9, 10, 11, 12, 0, 0, 0},
		m + "base_layer.lora_B.weight": {1, 2, 3, 4, 0, 0, 5, 6, 7, 8, 0, 0, 9, 10, 11, 12, 0, 0, 13, 14, 15, 16, 0, 0},
	}
	mixtral := make(map[string][]float64)
	for name, v := range single {
		words := strings.NewReplacer(".mlp.", ".block_sparse_moe.", "gate_proj", "w1", "down_proj", "w2", "up_proj", "w3")
		mixtral[words.Replace(name)] = v
	}
	for _, c := range []struct {
		server, base, target string
		want                 map[string][]float64
	}{
		{"vllm", "qwen3_moe", "gate_proj", single},
		{"sglang", "qwen3_moe", "gate_proj", single},
		{"sglang", "mixtral", "w3", mixtral},
		{"vllm", "qwen3_vl_moe", "target_parameters", stacked},
		{"vllm", "", "target_parameters", stacked},
	} {
		dir, _, err := serve(t, c.server, expertConfig, c.base, stackedExperts()...)
		if err != nil {
			t.Errorf("%s, %s: %v", c.server, c.base, err)
			continue
		}
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range c.want {
			if got := valuesOf(t, src, name); !slices.Equal(got, want) {
				t.Errorf("%s, %s: %s = %v, want %v", c.server, c.base, name, got, want)
			}
		}
		src.Close()
		text, err := os.ReadFile(filepath.Join(dir, "adapter_config.json"))
		if err != nil || !strings.Contains(string(text), `"`+c.target+`"`) {
			t.Errorf("%s, %s: no %s in %s (%v)", c.server, c.base, c.target, text, err)
		}
	}
}

// TestServersAreNotGivenWhatTheyIgnore: each refusal names the part, and the way out.
func TestServersAreNotGivenWhatTheyIgnore(t *testing.T) {
	const q, plain = "base_model.model.q_proj.", `"r":2,"lora_alpha":2`
	pair := []testkit.Tensor{numbers(q+"lora_A.weight", 2, 2), numbers(q+"lora_B.weight", 2, 2)}
	bias := testkit.Values(q+"lora_B.bias", dtype.F32, []uint64{2}, 1, 1)
	tall := []testkit.Tensor{numbers(q+"lora_A.weight", 513, 1), numbers(q+"lora_B.weight", 1, 513)}
	for _, c := range []struct {
		server, config, base string
		tensors              []testkit.Tensor
		want                 string
	}{
		{"vllm", plain + `,"use_dora":true`, "", append(ones(q+"lora_magnitude_vector.weight"), pair...), "dora"},
		{"vllm", plain + `,"lora_bias":true`, "", append(pair[:2:2], bias), "lora-bias"},
		{"vllm", plain + `,"modules_to_save":["norm"]`, "", append(ones("base_model.model.norm.weight"), pair...),
			`norm.weight" replaces a tensor of the base (modules_to_save, bias)`},
		{"sglang", plain + `,"bias":"all"`, "", append(ones("base_model.model.norm.bias"), pair...), `norm.bias" replaces`},
		{"vllm", `"r":513,"lora_alpha":1`, "", tall, "rank 513, and vLLM takes at most 512"},
		{"sglang", plain, "", []testkit.Tensor{
			numbers("base_model.model.mlp.experts.down_projs.0.lora_A.weight", 2, 2),
			numbers("base_model.model.mlp.experts.down_projs.0.lora_B.weight", 2, 2),
		}, "stacks the experts of gpt-oss"},
		{"sglang", expertConfig, "", stackedExperts(), "SGLang reads experts one by one"},
		{"vllm", expertConfig, "dbrx", stackedExperts(), "how vLLM reads the experts of a dbrx is not known"},
		{"vllm", strings.Replace(expertConfig, `"mlp.experts.gate_up_proj",`, "", 1), "qwen3_moe", stackedExperts()[2:], "has not both"},
	} {
		_, _, err := serve(t, c.server, c.config, c.base, c.tensors...)
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.Hint(err) == "" {
			t.Errorf("%s with {%s}: %v (hint: %s), want %s", c.server, c.config, err, fault.Hint(err), c.want)
		}
	}
	if _, _, err := serve(t, "sglang", `"r":513,"lora_alpha":1`, "", tall...); err != nil {
		t.Errorf("SGLang has no such limit: %v", err)
	}
}
