package convert_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// inFolder writes a safetensors file and the files beside it into a new directory, and returns the
// path of the file.
func inFolder(t *testing.T, file string, beside map[string]string, tensors []testkit.Tensor) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), file)
	testkit.Write(t, path, testkit.Encode(nil, tensors...))
	for name, content := range beside {
		testkit.Write(t, filepath.Join(filepath.Dir(path), name), []byte(content))
	}
	return path
}

// TestAdaptersOfLanguageModelsAreDescribed: names, kinds, scales, requirements, and tensors that
// replace others.
func TestAdaptersOfLanguageModelsAreDescribed(t *testing.T) {
	wq := factors("layers.3.attention.wq", "lora_A.weight", "lora_B.weight", 2)
	w1 := factors("layers.0.feed_forward.w1", "lora_A.weight", "lora_B.weight", 2)
	q := factors("layers.11.attn.q_proj", "lora_a.weight", "lora_b.weight", 2)
	const config = `{"r": 2, "lora_alpha": 3, "peft_type": "LORA", "target_modules": ["q_proj"], ` +
		`"base_model_name_or_path": "m/b"}`
	for _, c := range []struct {
		name    string
		beside  map[string]string
		options convert.Options
		tensors []testkit.Tensor
		want    string
	}{
		{"mistral", map[string]string{"params.json": `{"dim": 4, "lora": {"enable": true, "rank": 2, "scaling": 0.5}}`},
			convert.Options{}, append(wq, w1...), "mistral " +
				"model.layers.0.mlp.gate_proj linear [2 4] [6 2] ×0.5, model.layers.3.self_attn.q_proj linear [2 4] [6 2] ×0.5 " +
				"[{rotary-pairs model.layers.3.self_attn.q_proj}]"},
		{"mistral with a norm and an expert", nil, convert.Options{Scale: 2}, append(append(wq,
			zerosOf("layers.3.ffn_norm.weight", dtype.F32, 4)),
			factors("layers.0.feed_forward.experts.7.w2", "lora_A.weight", "lora_B.weight", 2)...), "mistral " +
			"model.layers.0.block_sparse_moe.experts.7.w2 linear [2 4] [6 2] ×2, model.layers.3.self_attn.q_proj linear [2 4] [6 2] ×2 " +
			"[{rotary-pairs model.layers.3.self_attn.q_proj}] replace model.layers.3.post_attention_layernorm.weight"},
		{"mistral of another rank", map[string]string{"params.json": `{"lora": {"rank": 8, "scaling": 2}}`},
			convert.Options{}, wq, "mistral model.layers.3.self_attn.q_proj linear [2 4] [6 2] ×2 [{rank-mismatch " +
				"model.layers.3.self_attn.q_proj: A has rank 2, lora.scaling in params.json says 8} " +
				"{rotary-pairs model.layers.3.self_attn.q_proj}]"},
		{"half of a mistral", nil, convert.Options{Scale: 2}, wq[:1], "mistral model.layers.3.self_attn.q_proj other [2 4] ×2 " +
			"[{missing-factor model.layers.3.self_attn.q_proj: B (lora_up)}]"},
		{"Z-Image", nil, convert.Options{}, w1, "diffusers layers.0.feed_forward.w1 linear [2 4] [6 2] ×1 []"},
		{"torchtune", map[string]string{"adapter_config.json": config, "config.json": `{"model_type": "llama"}`}, convert.Options{},
			append(q, zerosOf("layers.11.attn.q_proj.magnitude", dtype.F32, 6)), "torchtune of m/b " +
				"model.layers.11.self_attn.q_proj linear [2 4] [6 2] ×1.5 [{dora model.layers.11.self_attn.q_proj} " +
				"{rotary-by-model model.layers.11.self_attn.q_proj}]"},
		{"torchtune with a part of an image model", nil, convert.Options{Alpha: 2},
			factors("decoder.layers.0.attn.v_proj", "lora_a.weight", "lora_b.weight", 2),
			"torchtune decoder.layers.0.attn.v_proj linear [2 4] [6 2] ×1 []"},
		{"loralib", nil, convert.Options{Alpha: 1}, append(factors("x.wte", "lora_A", "lora_B", 2),
			zerosOf("x.norm.bias", dtype.F32, 4), zerosOf("x.mlp.bias", dtype.F32, 4), zerosOf("x.head.bias", dtype.F32, 4)),
			"loralib x.wte embedding [2 4] [6 2] ×0.5 [] replace x.norm.bias replace x.mlp.bias replace x.head.bias"},
	} {
		src := open(t, inFolder(t, "lora.safetensors", c.beside, c.tensors), c.options)
		a := &src.Manifest().Adapters[0]
		if err := format.Validate(src.Manifest()); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got := a.Dialect
		if a.Base.Name != "" {
			got += " of " + a.Base.Name
		}
		got += fmt.Sprintf(" %s %v", strings.Join(layersOf(src), ", "), a.Requires)
		for _, b := range a.Beside {
			got += fmt.Sprintf(" %s %s", b.Action, b.Target)
		}
		if got != c.want {
			t.Errorf("%s: %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestAdaptersOfLanguageModelsSayTheirScale, or the hint says which file of the training does.
func TestAdaptersOfLanguageModelsSayTheirScale(t *testing.T) {
	wq := factors("layers.3.attention.wq", "lora_A.weight", "lora_B.weight", 2)
	q := factors("layers.11.attn.q_proj", "lora_a.weight", "lora_b.weight", 2)
	for _, c := range []struct {
		beside, content string
		options         convert.Options
		tensors         []testkit.Tensor
		words           []string
	}{
		{"x", "", convert.Options{}, wq, []string{"mistral does not say its scale", "params.json", "Options.Scale=SCALE"}},
		{"params.json", `{"lora": {"rank": 2}}`, convert.Options{}, wq, []string{"does not say its scale"}},
		{"params.json", `{"lora": null}`, convert.Options{}, wq, []string{"does not say its scale"}},
		{"params.json", `{"lora": {"scaling": "2"}}`, convert.Options{}, wq, []string{"params.json", "not the parameters"}},
		{"params.json", `{"lora": {"scaling": 1e999}}`, convert.Options{}, wq, []string{"params.json", "not the parameters"}},
		{"params.json", `{"lora": {"scaling": 2}}`, convert.Options{Scale: 3}, wq, []string{"lora.scaling in params.json"}},
		{"x", "", convert.Options{}, q, []string{"torchtune does not say its scale", "adapter_config.json", "Options.Alpha=ALPHA"}},
		{"adapter_config.json", `{"r": 2}`, convert.Options{}, q, []string{"does not say its scale"}},
		{"adapter_config.json", `{"r": 2, `, convert.Options{}, q, []string{"adapter_config.json", "not the configuration"}},
		{"adapter_config.json", `{"r": 2, "lora_alpha": 4}`, convert.Options{Alpha: 3}, q, []string{"lora_alpha in adapter_config.json"}},
	} {
		refuses(t, inFolder(t, "a.safetensors", map[string]string{c.beside: c.content}, c.tensors), c.options, c.words...)
	}
}
