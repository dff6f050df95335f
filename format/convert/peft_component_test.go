package convert_test

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
)

// filesOfPEFT writes an adapter as a directory of PEFT.
func filesOfPEFT(
	t *testing.T, src format.Source, o convert.CreateOptions,
) (config map[string]any, keys []string, err error) {
	t.Helper()
	var m output.Memory
	sink, err := convert.CreateTo(&m, convert.PEFT(), o)
	if err == nil {
		err = format.Copy(t.Context(), sink, src)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := json.Unmarshal(m.Files()["adapter_config.json"], &config); err != nil {
		t.Fatal(err)
	}
	content := m.Files()["adapter_model.safetensors"]
	header := make(map[string]any)
	n := binary.LittleEndian.Uint64(content)
	if err := json.Unmarshal(content[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	delete(header, "__metadata__")
	return config, slices.Sorted(maps.Keys(header)), nil
}

// flux are layers of the transformer and of CLIP in Flux, in kohya's dialect, with ranks and alphas
// that differ.
func flux() (tensors []testkit.Tensor) {
	for name, alpha := range map[string]float64{
		"lora_unet_final_layer_linear": 3, "lora_unet_single_blocks_0_linear2": 3,
		"lora_unet_single_blocks_1_linear2": 0.5, "lora_te1_text_model_encoder_layers_0_mlp_fc1": 1,
	} {
		tensors = append(tensors, factors(name, "lora_down.weight", "lora_up.weight", 2)...)
		tensors = append(tensors, testkit.Values(name+".alpha", dtype.F32, nil, alpha))
	}
	return tensors
}

// TestPEFTGetsOneComponentUnderTheNamesOfDiffusers: the names are those of the model in memory, the
// scales are in the configuration, and proj_out does not mean the proj_out of the blocks.
func TestPEFTGetsOneComponentUnderTheNamesOfDiffusers(t *testing.T) {
	src := open(t, write(t, nil, flux()...), convert.Options{})
	_, _, err := filesOfPEFT(t, src, convert.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "layers of text_encoder, transformer, and PEFT") ||
		!strings.Contains(fault.Hint(err), "CreateOptions.Only=transformer") {
		t.Errorf("two components: %v", err)
	}
	config, keys, err := filesOfPEFT(t, src, convert.CreateOptions{Only: []string{"transformer"}})
	if err != nil {
		t.Fatal(err)
	}
	equalLines(t, "keys", keys, []string{
		"base_model.model.proj_out.lora_A.weight", "base_model.model.proj_out.lora_B.weight",
		"base_model.model.single_transformer_blocks.0.proj_out.lora_A.weight",
		"base_model.model.single_transformer_blocks.0.proj_out.lora_B.weight",
		"base_model.model.single_transformer_blocks.1.proj_out.lora_A.weight",
		"base_model.model.single_transformer_blocks.1.proj_out.lora_B.weight",
	})
	targets := `proj_out|single_transformer_blocks\.0\.proj_out|single_transformer_blocks\.1\.proj_out`
	patterns, _ := config["alpha_pattern"].(map[string]any)
	if config["target_modules"] != targets || config["r"] != 2.0 || config["lora_alpha"] != 3.0 ||
		len(patterns) != 1 || patterns["^single_transformer_blocks.1.proj_out"] != 0.5 {
		t.Errorf("configuration %v", config)
	}
	config, keys, err = filesOfPEFT(t, src, convert.CreateOptions{Only: []string{"text_encoder"}})
	if err != nil {
		t.Fatal(err)
	}
	equalLines(t, "keys of CLIP", keys, []string{
		"base_model.model.encoder.layers.0.mlp.fc1.lora_A.weight",
		"base_model.model.encoder.layers.0.mlp.fc1.lora_B.weight",
	})
	if config["lora_alpha"] != 1.0 {
		t.Errorf("configuration of CLIP %v", config)
	}
	_, _, err = filesOfPEFT(t, src, convert.CreateOptions{Only: []string{"text_encoder_2"}})
	if err == nil || !strings.Contains(err.Error(), "no layer of text_encoder_2; it has layers of text_encoder, transformer") {
		t.Errorf("a component that the adapter lacks: %v", err)
	}
}

// TestPEFTRefusesTheRestOfAComponentByName, unless it is in a component that is left out.
func TestPEFTRefusesTheRestOfAComponentByName(t *testing.T) {
	for column, want := range map[string]string{
		"LyCORIS": "make LoRA of it", "DoRA-in": "keep the adapter", "diff": "keep the adapter",
	} {
		_, _, err := filesOfPEFT(t, sourceOf(column), convert.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), module) || !strings.Contains(fault.Hint(err), want) {
			t.Errorf("%s: %v (%s)", column, err, fault.Hint(err))
		}
	}
	difference := testkit.Values("lora_te1_text_model_final_layer_norm.diff_b", dtype.F32, []uint64{4}, 1, 2, 3, 4)
	src := open(t, write(t, nil, append(flux(), difference)...), convert.Options{})
	for only, isRefused := range map[string]bool{"transformer": false, "text_encoder": true} {
		if _, _, err := filesOfPEFT(t, src, convert.CreateOptions{Only: []string{only}}); (err != nil) != isRefused {
			t.Errorf("only %s: %v", only, err)
		}
	}
}

// TestPEFTGetsAScaleOrAnErrorThatNamesTheModule: no alpha gives some scales exactly at rank
// 49. The factors can carry these.
func TestPEFTGetsAScaleOrAnErrorThatNamesTheModule(t *testing.T) {
	pair := factors("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
		"lora_A.weight", "lora_B.weight", 49)
	for scale, isExact := range map[float64]bool{0.1: true, 0.8999999999999998: false} {
		src := open(t, write(t, nil, pair...), convert.Options{From: "diffusers", Scale: scale})
		config, _, err := filesOfPEFT(t, src, convert.CreateOptions{})
		switch {
		case !isExact && (err == nil || !strings.Contains(err.Error(), module) ||
			!strings.Contains(fault.Hint(err), "CreateOptions.FoldScale")):
			t.Errorf("scale %v: %v", scale, err)
		case isExact && (err != nil || config["lora_alpha"].(float64)/49 != scale):
			t.Errorf("scale %v: %v, %v", scale, config, err)
		}
		config, _, err = filesOfPEFT(t, src, convert.CreateOptions{FoldScale: true})
		if err != nil || config["lora_alpha"] != 49.0 {
			t.Errorf("scale %v folded: %v, %v", scale, config, err)
		}
	}
	llm := open(t, filepath.Join(testdata, "demo", "adapter-r8"), convert.Options{})
	for _, o := range []convert.CreateOptions{{FoldScale: true}, {Only: []string{"unet"}}} {
		if _, _, err := filesOfPEFT(t, llm, o); err == nil || !strings.Contains(err.Error(), "no image or video model") {
			t.Errorf("%v of a language model: %v", o, err)
		}
	}
}
