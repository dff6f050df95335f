package convert_test

import (
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestNamesOfTheAuthors: with the prefixes of ComfyUI and without any, with both kinds of factors.
func TestNamesOfTheAuthors(t *testing.T) {
	for _, c := range []struct{ module, a, b string }{
		{"diffusion_model.double_blocks.0.img_attn.qkv", "lora_A.weight", "lora_B.weight"},
		{"diffusion_model.blocks.0.self_attn.q", "lora_down.weight", "lora_up.weight"},
		{"model.diffusion_model.joint_blocks.0.x_block.attn.qkv", "lora_A.weight", "lora_B.weight"},
		{"text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "lora_A.weight",
			"lora_B.weight"},
		{"double_blocks.0.img_attn.qkv", "lora_A.weight", "lora_B.weight"},
		{"time_in.out_layer", "lora_A.weight", "lora_B.weight"}, // by Flux's table
		{"blocks.0.self_attn.q", "lora_A.default_0.default.weight",
			"lora_B.default_0.default.weight"},
	} {
		path := write(t, nil, factors(c.module, c.a, c.b, 2)...)
		src := open(t, path, convert.Options{})
		equalLines(t, c.module, layersOf(src), []string{c.module + " linear [2 4] [6 2] ×1"})
		if a := src.Manifest().Adapters[0]; a.Dialect != "comfyui" {
			t.Errorf("%s: dialect %s", c.module, a.Dialect)
		}
		comesBack(t, path)
	}
	alpha := testkit.Values("diffusion_model.blocks.0.self_attn.q.alpha", dtype.F32, nil, 1)
	pair := factors("diffusion_model.blocks.0.self_attn.q", "lora_A.weight", "lora_B.weight", 4)
	src := open(t, write(t, nil, append(pair, alpha)...), convert.Options{})
	equalLines(t, "an alpha", layersOf(src), []string{
		"diffusion_model.blocks.0.self_attn.q linear [4 4] [6 4] ×0.25",
	})
}

// TestControlAdaptersAreRefusedByName: those of Black Forest Labs set the scales of norms.
func TestControlAdaptersAreRefusedByName(t *testing.T) {
	path := write(t, nil, append(factors("double_blocks.0.img_attn.proj", "lora_A.weight",
		"lora_B.weight", 2),
		zerosOf("double_blocks.0.img_attn.proj.lora_B.bias", dtype.F32, 6),
		zerosOf("double_blocks.0.img_attn.norm.key_norm.scale", dtype.F32, 4))...)
	src := open(t, path, convert.Options{})
	equalLines(t, "requirements", requirements(src), []string{
		"lora-bias double_blocks.0.img_attn.proj", "set-tensor double_blocks.0.img_attn.norm.key_norm.scale",
	})
	comesBack(t, path)
}

// TestXLabsModules are those to which its processors and diffusers add the same factors
// (_convert_xlabs_flux_lora_to_diffusers: to_q, to_k, to_v, to_out.0 and add_q_proj … to_add_out).
func TestXLabsModules(t *testing.T) {
	var tensors []testkit.Tensor
	for _, p := range []string{"double_blocks.7.processor.qkv_lora1",
		"double_blocks.7.processor.proj_lora1",
		"double_blocks.7.processor.qkv_lora2", "double_blocks.7.processor.proj_lora2",
		"single_blocks.9.processor.proj_lora"} {
		tensors = append(tensors, factors(p, "down.weight", "up.weight", 2)...)
	}
	path := write(t, nil, tensors...)
	src := open(t, path, convert.Options{})
	equalLines(t, "layers", layersOf(src), []string{
		"double_blocks.7.img_attn.proj linear [2 4] [6 2] ×1",
		"double_blocks.7.img_attn.qkv linear [2 4] [6 2] ×1",
		"double_blocks.7.txt_attn.proj linear [2 4] [6 2] ×1",
		"double_blocks.7.txt_attn.qkv linear [2 4] [6 2] ×1",
		"single_blocks.9.linear2 linear [2 4] [6 2] ×1",
	})
	if a := src.Manifest().Adapters[0]; a.Dialect != "xlabs" || len(a.Requires) != 0 {
		t.Errorf("dialect %s, requires %v", a.Dialect, a.Requires)
	}
	comesBack(t, path)
	part := factors("single_blocks.9.processor.qkv_lora", "down.weight", "up.weight", 2)
	src = open(t, write(t, nil, append(tensors, part...)...), convert.Options{})
	equalLines(t, "requirements", requirements(src), []string{
		"unknown-tensor single_blocks.9.processor.qkv_lora.down.weight (a part of linear1)",
		"unknown-tensor single_blocks.9.processor.qkv_lora.up.weight (a part of linear1)",
	})
}

// TestSamLoRAHasAWayOut: its keys are numbers, so nothing says which modules they are for.
func TestSamLoRAHasAWayOut(t *testing.T) {
	path := write(t, nil, zerosOf("w_a_000", dtype.F32, 2, 4), zerosOf("w_b_000", dtype.F32, 4, 2))
	refuses(t, path, convert.Options{}, "Sam_LoRA", "save the model")
}
