package convert_test

import (
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestLoadersWarnOfWhatTheyIgnore: each program gets its dialect, and a warning for each part of an
// adapter that it is known to ignore, and for no other.
func TestLoadersWarnOfWhatTheyIgnore(t *testing.T) {
	pair := func(module string) []testkit.Tensor {
		return factors(module, "lora_down.weight", "lora_up.weight", 2)
	}
	sd1 := "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
	flux := "lora_unet_single_blocks_0_linear2"
	with := func(more ...testkit.Tensor) []testkit.Tensor { return append(pair(sd1), more...) }
	for _, c := range []struct {
		loader, dialect string
		tensors         []testkit.Tensor
		want            string // in the only warning; "" for none
	}{
		{"comfyui", "comfyui", pair(sd1), ""},
		{"comfyui", "comfyui", with(zerosOf(sd1+".dora_scale", dtype.F32, 6, 1)), "norm of the base's weight alone"},
		{"ComfyUI", "comfyui", with(zerosOf(sd1+".dora_scale", dtype.F32, 1, 4)), ""},
		{"diffusers", "diffusers", pair(flux), ""},
		{"diffusers", "diffusers", append(pair(flux), pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q")...), "T5"},
		{"a1111", "kohya", pair(sd1), ""},
		{"a1111", "kohya", pair(flux), "not known to run models of the architecture flux"},
		{"forge", "kohya", append(pair(sd1), pair("lora_te_text_model_encoder_layers_0_mlp_fc1")...), ""},
		{"forge", "kohya", append(pair(flux), pair("lora_te1_text_model_encoder_layers_0_mlp_fc1")...), "text encoders"},
		{"sd-scripts", "kohya", with(testkit.Values(sd1+".alpha", dtype.F32, nil, 0)), "alpha 0"},
		{"sd.cpp", "kohya", with(zerosOf(sd1+".dora_scale", dtype.F32, 6, 1)), "ignores the magnitudes"},
		{"wan2gp", "comfyui", append(pair(flux), pair("lora_te1_text_model_encoder_layers_0_mlp_fc1")...), "not known to load layers of text encoders"},
	} {
		l, err := convert.LoaderNamed(c.loader)
		if err != nil {
			t.Fatal(err)
		}
		src := open(t, write(t, nil, c.tensors...), convert.Options{})
		var o convert.CreateOptions
		if _, err := written(t, src, l.Dialect, o); err != nil {
			t.Errorf("%s: %v", c.loader, err)
		}
		warnings := l.Warnings(src, o)
		isRight := len(warnings) == 0
		if c.want != "" {
			isRight = len(warnings) == 1 && strings.Contains(warnings[0], c.want) && strings.HasPrefix(warnings[0], l.Title)
		}
		if !isRight || l.Dialect.Name() != c.dialect {
			t.Errorf("%s writes %s and warns %q, want %s and %q", c.loader, l.Dialect.Name(), warnings, c.dialect, c.want)
		}
	}
	if _, err := convert.LoaderNamed("comfy"); err == nil || !strings.Contains(err.Error(), "comfy") {
		t.Errorf("an unknown program: %v", err)
	}
}
