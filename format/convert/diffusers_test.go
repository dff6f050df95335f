package convert_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestDiffusersScales compares the ranks and scales of all layers with those that diffusers and
// PEFT use after loading the same files.
func TestDiffusersScales(t *testing.T) {
	paths, _ := filepath.Glob(filepath.Join(testdata, "diffusers/*/pytorch_lora_weights.*"))
	if len(paths) != 4 {
		t.Fatalf("%d fixtures, want 4", len(paths))
	}
	for _, path := range paths {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "truth.json"))
		var truth map[string][2]float64
		if err == nil {
			err = json.Unmarshal(text, &truth)
		}
		if err != nil {
			t.Fatal(err)
		}
		src := open(t, path, convert.Options{})
		seen := 0
		for _, l := range src.Manifest().Adapters[0].Layers {
			want, ok := truth[l.Module]
			if !ok && strings.HasPrefix(l.Module, "text_encoder.") && strings.HasSuffix(path,
				".bin") {
				want, ok = [2]float64{2, 1}, true // diffusers loads it by another way
			} else {
				seen++
			}
			if !ok || float64(l.Rank) != want[0] || l.Scale() != want[1] {
				t.Errorf("%s: %s has rank %d and scale %v, want %v", path, l.Module, l.Rank,
					l.Scale(), want)
			}
		}
		if seen != len(truth) {
			t.Errorf("%s: %d layers, want %d", path, seen, len(truth))
		}
		if a := src.Manifest().Adapters[0]; a.Dialect != "diffusers" {
			t.Errorf("%s: dialect %s", path, a.Dialect)
		}
		if strings.HasSuffix(path, ".safetensors") {
			if sign := convert.RecognisedBy(src); !strings.Contains(sign,
				"lora_adapter_metadata in the header") {
				t.Errorf("%s: recognised by %s", path, sign)
			}
			comesBack(t, path)
		}
	}
}

// TestDiffusersFeatures: magnitudes and biases are announced for the layers that have them, and a
// configuration cannot announce magnitudes that the file lacks.
func TestDiffusersFeatures(t *testing.T) {
	src := open(t, filepath.Join(testdata, "diffusers/dora"), convert.Options{})
	a := &src.Manifest().Adapters[0]
	for i := range a.Layers {
		l := &a.Layers[i]
		feature, role := format.FeatureDoRA, format.RoleMagnitude
		if strings.HasPrefix(l.Module, "text_encoder.") {
			feature, role = format.FeatureLoRABias, format.RoleBias
		}
		_, has := l.Roles[role]
		if len(l.Roles) != 3 || !has || !slices.Contains(a.Requires,
			format.Requirement{Feature: feature, Where: l.Module}) {
			t.Errorf("%s: roles %v, required %v", l.Module, l.Roles, a.Requires)
		}
	}
	if a.Method != format.MethodDoRA || len(a.Requires) != len(a.Layers) {
		t.Errorf("method %s, %d requirements of %d layers", a.Method, len(a.Requires),
			len(a.Layers))
	}
	config := map[string]string{"lora_adapter_metadata": `{"unet.r":2,"unet.use_dora":true,"unet.init_lora_weights":"pissa"}`}
	lost := open(t, write(t, config, factors("unet.q", "lora_A.weight", "lora_B.weight", 2)...),
		convert.Options{})
	equalLines(t, "requirements", requirements(lost), []string{"dora unet.q",
		"pissa init_lora_weights = pissa"})
}

// factors returns A and B of zeros of a layer with 4 inputs and 6 outputs.
func factors(module, a, b string, rank uint64) []testkit.Tensor {
	return []testkit.Tensor{
		zerosOf(module+"."+a, dtype.F32, rank, 4), zerosOf(module+"."+b, dtype.F32, 6, rank),
	}
}

// TestDiffusersGenerations: the names that diffusers 0.36 itself gives to keys of each generation
// (convert_unet_state_dict_to_peft, convert_state_dict_to_peft).
func TestDiffusersGenerations(t *testing.T) {
	for _, c := range []struct{ module, a, b, want string }{
		{"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor",
			"to_q_lora.down.weight", "to_q_lora.up.weight",
			"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"},
		{"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor",
			"to_out_lora.down.weight", "to_out_lora.up.weight",
			"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"},
		{"text_encoder.text_model.encoder.layers.0.self_attn", "to_q_lora.down.weight",
			"to_q_lora.up.weight",
			"text_encoder.text_model.encoder.layers.0.self_attn.q_proj"},
		{"text_encoder.text_model.encoder.layers.0.self_attn", "to_out_lora.down.weight",
			"to_out_lora.up.weight",
			"text_encoder.text_model.encoder.layers.0.self_attn.out_proj"},
		{"unet.mid_block.attentions.0.proj_in", "lora.down.weight", "lora.up.weight", ""},
		{"text_encoder.text_model.encoder.layers.0.mlp.fc1", "lora_linear_layer.down.weight",
			"lora_linear_layer.up.weight", ""},
		{"text_encoder_2.text_projection", "lora.down.weight", "lora.up.weight", ""},
		{"transformer.transformer_blocks.0.attn.to_q", "lora_A.weight", "lora_B.weight", ""},
		{"transformer.blocks.0.attn1.to_q", "lora_A.default.weight", "lora_B.default.weight", ""},
		{"transformer_blocks.0.attn1.to_q", "lora_A", "lora_B", ""},
		{"single_transformer_blocks.0.proj_mlp", "lora_A.weight", "lora_B.weight", ""},
		{"time_text_embed.timestep_embedder.linear_2", "lora_A.weight", "lora_B.weight",
			""}, // Flux's table
	} {
		if c.want == "" {
			c.want = c.module
		}
		src := open(t, write(t, nil, factors(c.module, c.a, c.b, 2)...), convert.Options{})
		equalLines(t, c.module+" "+c.a, layersOf(src), []string{c.want + " linear [2 4] [6 2] ×1"})
		if a := src.Manifest().Adapters[0]; a.Dialect != "diffusers" {
			t.Errorf("%s.%s: dialect %s", c.module, c.a, a.Dialect)
		}
	}
}

// TestScalesOfDiffusersWithoutAConfiguration: mixed ranks have scale 1 each, and an alpha in the
// header counts for all layers. 8 over rank 128 is the case of diffusers' pull request 14408.
func TestScalesOfDiffusersWithoutAConfiguration(t *testing.T) {
	both := append(factors("transformer.a", "lora_A.weight", "lora_B.weight", 2),
		factors("transformer.b", "lora_A.weight", "lora_B.weight", 128)...)
	src := open(t, write(t, nil, both...), convert.Options{})
	equalLines(t, "mixed ranks", layersOf(src), []string{
		"transformer.a linear [2 4] [6 2] ×1", "transformer.b linear [128 4] [6 128] ×1",
	})
	src = open(t, write(t, map[string]string{"alpha": "8"}, both...), convert.Options{})
	equalLines(t, "an alpha in the header", layersOf(src), []string{
		"transformer.a linear [2 4] [6 2] ×4", "transformer.b linear [128 4] [6 128] ×0.0625",
	})
	for _, bad := range []map[string]string{
		{"alpha": "NaN"}, {"lora_adapter_metadata": "{"}, {"lora_adapter_metadata": `{"transformer.r":0}`},
	} {
		refuses(t, write(t, bad, both...), convert.Options{}, "in the header")
	}
	alpha := testkit.Values("transformer.a.alpha", dtype.F32, nil, 3)
	config := map[string]string{
		"lora_adapter_metadata": `{"transformer.r":2,"transformer.lora_alpha":4}`,
	}
	twice := write(t, config, append(both[:2:2], alpha)...)
	refuses(t, twice, convert.Options{}, "transformer.a.alpha is 3")
}

// TestPEFTsKeysWithoutAConfiguration say no scale: the user does.
func TestPEFTsKeysWithoutAConfiguration(t *testing.T) {
	for _, module := range []string{
		"base_model.model.transformer_blocks.0.attn.to_q",
		"base_model.model.model.layers.0.self_attn.q_proj",
	} {
		path := write(t, nil, factors(module, "lora_A.weight", "lora_B.weight", 2)...)
		refuses(t, path, convert.Options{}, "put the adapter_config.json", "Options.Alpha")
		src := open(t, path, convert.Options{Alpha: 5})
		want := strings.TrimPrefix(module, "base_model.model.") + " linear [2 4] [6 2] ×2.5"
		equalLines(t, "layers", layersOf(src), []string{want})
		if a := src.Manifest().Adapters[0]; a.Dialect != "peft" {
			t.Errorf("%s: dialect %s", module, a.Dialect)
		}
		comesBackWith(t, path, convert.Options{Alpha: 5})

		dir := filepath.Join(t.TempDir(), "peft") // with a configuration of its own
		store(t, dir, convert.PEFT(), src)
		equalLines(t, "layers in PEFT's directory", layersOf(open(t, dir, convert.Options{})),
			[]string{want})
	}
	// Without the prefix, PEFT's endings say nothing: transformers writes them for language models.
	for _, module := range []string{"model.layers.0.self_attn.q_proj",
		"transformer.h.0.attn.c_attn"} {
		path := write(t, nil, factors(module, "lora_A.weight", "lora_B.weight", 2)...)
		refuses(t, path, convert.Options{}, "Options.From=peft")
		src := open(t, path, convert.Options{From: "peft", Scale: 2})
		equalLines(t, "layers", layersOf(src), []string{module + " linear [2 4] [6 2] ×2"})
	}
}

// TestNamesThatAllUse: the authors of Qwen-Image and diffusers have the same names, some of which
// are native in Flux alone, or diffusers' there.
func TestNamesThatAllUse(t *testing.T) {
	var tensors []testkit.Tensor
	for _, module := range []string{"img_in", "proj_out", "transformer_blocks.0.attn.to_q"} {
		tensors = append(tensors, factors(module, "lora_A.weight", "lora_B.weight", 2)...)
	}
	src := open(t, write(t, nil, tensors...), convert.Options{})
	if a := src.Manifest().Adapters[0]; a.Dialect != "diffusers" || len(a.Layers) != 3 {
		t.Errorf("dialect %s with %d layers, want diffusers with 3", a.Dialect, len(a.Layers))
	}
}

// TestKeysOfTwoDialectsAreNotGuessed.
func TestKeysOfTwoDialectsAreNotGuessed(t *testing.T) {
	path := write(t, nil, append(factors("lora_te_q", "lora_down.weight", "lora_up.weight", 2),
		factors("unet.up_blocks.1.attentions.0.proj_in", "lora_A.weight", "lora_B.weight",
			2)...)...)
	refuses(t, path, convert.Options{},
		"kohya (lora_te_q.lora_", "diffusers (unet.up_blocks", "Options.From")
	src := open(t, path, convert.Options{From: "diffusers"})
	if n := len(src.Manifest().Adapters[0].Layers); n != 2 {
		t.Errorf("%d layers", n)
	}
}
