package convert_test

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// endOfA matches the end of a key of A in every dialect.
var endOfA = regexp.MustCompile(`(lora_down|lora_A|\.down)\.weight$|\.lokr_w1$`)

// TestPublishedGrammars opens the listings of published adapters, each as a file of zeros. Every
// factor must find its layer, and the names of modules must be those of the model that the file's
// producer trained, as far as a table of its architecture says.
func TestPublishedGrammars(t *testing.T) {
	var listings map[string]map[string][]uint64
	if err := json.Unmarshal(read(t, filepath.Join(testdata, "grammars/grammars.json")),
		&listings); err != nil {
		t.Fatal(err)
	}
	const (
		loKr = "kronecker"
		dora = "dora"
	)
	all := map[string]struct {
		dialect  string
		modules  string // expression that every module matches
		requires []string
		options  convert.Options
	}{
		"anima_lora_kohya_format": {dialect: "kohya",
			modules: `^lora_unet_blocks_0_`}, // no table
		"anima_lora_kohya_with_te_format": {dialect: "kohya",
			modules: `^lora_(unet_blocks|te_layers)_0_`},
		"anima_lora_lokr_format": {dialect: "comfyui", requires: []string{dora, loKr},
			modules: `^diffusion_model\.blocks\.0\.`},
		"anima_lora_peft_format": {dialect: "comfyui",
			modules: `^diffusion_model\.blocks\.0\.`},
		"flux_control_lora_format": {dialect: "comfyui", modules: `^([a-z_]+\.|img_in$|txt_in$)`,
			requires: []string{"lora-bias", "set-tensor"}},
		"flux_dora_onetrainer_format": {dialect: "kohya", requires: []string{"input-magnitude"},
			modules: `^(transformer\.(single_)?transformer_blocks\.\d+\.|text_encoder(_2)?\.)`},
		"flux_lokr_bfl_format": {dialect: "comfyui", requires: []string{loKr},
			modules: `^diffusion_model\.(double|single)_blocks\.0\.`},
		"flux_lora_aitoolkit_format": {dialect: "comfyui",
			modules: `^diffusion_model\.(double|single)_blocks\.0\.`},
		"flux_lora_diffusers_base_model_format": {dialect: "peft",
			options: convert.Options{Alpha: 4},
			modules: `^((single_)?transformer_blocks\.\d+\.|proj_out$|norm_out\.|time_text_embed\.|(x|context)_embedder$)`},
		"flux_lora_diffusers_format":             {dialect: "diffusers", modules: `^transformer\.`},
		"flux_lora_diffusers_no_proj_mlp_format": {dialect: "diffusers", modules: `^transformer\.`},
		"flux_lora_kohya_format": {dialect: "kohya",
			modules: `^transformer\.(double|single)_blocks\.\d+\.`},
		"flux_lora_kohya_with_te1_format": {dialect: "kohya",
			modules: `^(transformer\.(double|single)_blocks\.\d+\.|text_encoder\.text_model\.)`},
		"flux_lora_xlabs_format": {dialect: "xlabs",
			modules: `^double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)$`},
		"krea2_lora_kohya_format": {dialect: "kohya", modules: `^lora_unet_`},
		"qwen_image_lora_diffusers_format": {dialect: "kohya",
			modules: `^transformer_blocks\.\d+\.attn\.to_[qkv]$`},
		"qwen_image_lora_kohya_format": {dialect: "kohya", requires: []string{loKr},
			modules: `^transformer\.transformer_blocks\.\d+\.`},
		"stripped_Alien_Style": {dialect: "kohya",
			modules: `^(unet\.(input_blocks|middle_block|output_blocks)\.|text_encoder(_2)?\.text_model\.)`},
		"stripped_peft_adapter_model": {dialect: "peft", options: convert.Options{Scale: 1},
			modules: `^[a-z_]+(\.|$)`},
		"stripped_shinkai_makoto_offset": {dialect: "kohya", requires: []string{"convolution"},
			modules: `^(unet\.(down_blocks|mid_block|up_blocks)\.|text_encoder\.text_model\.)`},
	}
	if len(all) != len(listings) {
		t.Errorf("%d listings, %d are expected", len(listings), len(all))
	}
	for name, listing := range listings {
		want := all[name]
		var tensors []testkit.Tensor
		layers := 0
		for _, key := range slices.Sorted(maps.Keys(listing)) {
			shape := slices.Clone(listing[key])
			for i, n := range shape {
				if n > 64 {
					shape[i] = n / 64 // alike in all factors of a layer
				}
			}
			tensors = append(tensors, zerosOf(key, dtype.BF16, shape...))
			if endOfA.MatchString(key) {
				layers++
			}
		}
		path := write(t, nil, tensors...)
		src := open(t, path, want.options)
		a := &src.Manifest().Adapters[0]
		if a.Dialect != want.dialect || len(a.Layers) != layers ||
			len(a.Tensors()) != len(listing) {
			t.Errorf("%s: dialect %s, %d layers, %d tensors; want %s, %d, %d",
				name, a.Dialect, len(a.Layers), len(a.Tensors()), want.dialect, layers, len(listing))
		}
		for i := range a.Layers {
			if l := &a.Layers[i]; !regexp.MustCompile(want.modules).MatchString(l.Module) ||
				l.Kind == format.Other {
				t.Errorf("%s: module %s of kind %s, want %s", name, l.Module, l.Kind, want.modules)
			}
		}
		for _, q := range a.Requires {
			is := func(w string) bool { return strings.HasPrefix(string(q.Feature)+" "+q.Where, w) }
			if !slices.ContainsFunc(want.requires, is) {
				t.Errorf("%s requires %v", name, q)
			}
		}
		if len(a.Requires) < len(want.requires) {
			t.Errorf("%s requires %v, want %q", name, a.Requires, want.requires)
		}
		comesBackWith(t, path, want.options)
	}
}
