package naming_test

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/naming"
)

// weights are the shapes of a base's weights by their modules; biases come with them.
type weights map[string][]uint64

func (w weights) index() (*naming.Base, naming.ShapeOf) {
	shapes := make(map[string][]uint64)
	for module, shape := range w {
		name := module + ".weight"
		if before, ok := strings.CutSuffix(module, "in_proj"); ok {
			name = before + "in_proj_weight"
		}
		shapes[name], shapes[naming.BiasOf(name)] = shape, shape[:1]
	}
	return naming.Index(slices.Collect(maps.Keys(shapes))), func(name string) []uint64 { return shapes[name] }
}

// flux is a transformer of Flux in the names of Black Forest Labs, as a part of a larger file; h
// is its width.
func flux(prefix string, h uint64) weights {
	return weights{
		prefix + "double_blocks.0.img_attn.qkv":                                {3 * h, h},
		prefix + "double_blocks.0.img_attn.proj":                               {h, h},
		prefix + "double_blocks.0.txt_attn.qkv":                                {3 * h, h},
		prefix + "single_blocks.0.linear1":                                     {7 * h, h},
		prefix + "single_blocks.0.linear2":                                     {h, 5 * h},
		prefix + "final_layer.adaLN_modulation.1":                              {2 * h, h},
		"text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": {8, 4},
	}
}

func TestSpread(t *testing.T) {
	const h = 6
	bfl := flux("model.diffusion_model.", h)
	split := weights{
		"transformer.transformer_blocks.0.attn.to_q":        {h, h},
		"transformer.transformer_blocks.0.attn.to_k":        {h, h},
		"transformer.transformer_blocks.0.attn.to_v":        {h, h},
		"transformer.single_transformer_blocks.0.attn.to_q": {h, h},
		"transformer.norm_out.linear":                       {2 * h, h},
		"text_encoder.text_model.encoder.layers.0.mlp.fc1":  {8, 4},
	}
	sd2 := weights{
		"cond_stage_model.model.transformer.resblocks.0.attn.in_proj": {3 * h, h},
		"cond_stage_model.model.transformer.resblocks.0.mlp.c_fc":     {4 * h, h},
	}
	slice := func(weight string, at, from, rows uint64) naming.Slice {
		return naming.Slice{Weight: weight, At: at, From: from, Rows: rows}
	}
	const native = "model.diffusion_model."
	for _, c := range []struct {
		name   string
		base   weights
		module naming.Update
		want   []naming.Slice
	}{
		{"kohya, fused", bfl, naming.Update{Name: "lora_unet_double_blocks_0_img_attn_qkv", Rows: 3 * h, Columns: h},
			[]naming.Slice{slice(native+"double_blocks.0.img_attn.qkv.weight", 0, 0, 3*h)}},
		{"a doubled separator", bfl, naming.Update{Name: "lora_unet__double_blocks_0_img_attn_proj", Rows: h, Columns: h},
			[]naming.Slice{slice(native+"double_blocks.0.img_attn.proj.weight", 0, 0, h)}},
		{"ComfyUI", bfl, naming.Update{Name: "diffusion_model.single_blocks.0.linear2", Rows: h, Columns: 5 * h},
			[]naming.Slice{slice(native+"single_blocks.0.linear2.weight", 0, 0, h)}},
		{"inputs alone, a third of a fused weight", bfl, naming.Update{Name: "transformer.transformer_blocks.0.attn.to_k"},
			[]naming.Slice{slice(native+"double_blocks.0.img_attn.qkv.weight", h, 0, h)}},
		{"inputs alone, another name", bfl, naming.Update{Name: "lora_unet_transformer_blocks_0_attn_to_out_0"},
			[]naming.Slice{slice(native+"double_blocks.0.img_attn.proj.weight", 0, 0, h)}},
		{"outputs alone, parts of one weight", split, naming.Update{Name: "lora_unet_double_blocks_0_img_attn_qkv", Rows: 3 * h},
			[]naming.Slice{
				slice("transformer.transformer_blocks.0.attn.to_q.weight", 0, 0, h),
				slice("transformer.transformer_blocks.0.attn.to_k.weight", 0, h, h),
				slice("transformer.transformer_blocks.0.attn.to_v.weight", 0, 2*h, h),
			}},
		{"without a component", bfl, naming.Update{Name: "single_blocks.0.linear2", Rows: h, Columns: 5 * h},
			[]naming.Slice{slice(native+"single_blocks.0.linear2.weight", 0, 0, h)}},
		{"a third of a fused weight", bfl, naming.Update{Name: "transformer.transformer_blocks.0.attn.to_k", Rows: h, Columns: h},
			[]naming.Slice{slice(native+"double_blocks.0.img_attn.qkv.weight", h, 0, h)}},
		{"what is left beside squares", bfl, naming.Update{Name: "transformer.single_transformer_blocks.0.proj_mlp", Rows: 4 * h, Columns: h},
			[]naming.Slice{slice(native+"single_blocks.0.linear1.weight", 3*h, 0, 4*h)}},
		{"halves that change places", bfl, naming.Update{Name: "transformer.norm_out.linear", Rows: 2 * h, Columns: h},
			[]naming.Slice{slice(native+"final_layer.adaLN_modulation.1.weight", h, 0, h), slice(native+"final_layer.adaLN_modulation.1.weight", 0, h, h)}},
		{"a fused module on its parts", split, naming.Update{Name: "lora_unet_double_blocks_0_img_attn_qkv", Rows: 3 * h, Columns: h},
			[]naming.Slice{
				slice("transformer.transformer_blocks.0.attn.to_q.weight", 0, 0, h),
				slice("transformer.transformer_blocks.0.attn.to_k.weight", 0, h, h),
				slice("transformer.transformer_blocks.0.attn.to_v.weight", 0, 2*h, h),
			}},
		{"a text encoder", bfl, naming.Update{Name: "lora_te1_text_model_encoder_layers_0_mlp_fc1", Rows: 8, Columns: 4},
			[]naming.Slice{slice("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight", 0, 0, 8)}},
		{"a text encoder of another number", split, naming.Update{Name: "lora_te2_text_model_encoder_layers_0_mlp_fc1", Rows: 8, Columns: 4},
			[]naming.Slice{slice("text_encoder.text_model.encoder.layers.0.mlp.fc1.weight", 0, 0, 8)}},
		{"a text encoder without the segment that transformers 5 dropped", sd2, naming.Update{Name: "text_encoder.encoder.layers.0.self_attn.k_proj", Rows: h, Columns: h},
			[]naming.Slice{slice("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", h, 0, h)}},
		{"the same, flat", sd2, naming.Update{Name: "lora_te_encoder_layers_0_self_attn_k_proj", Rows: h, Columns: h},
			[]naming.Slice{slice("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", h, 0, h)}},
		{"an architecture without a table", weights{"blocks.0.attn.wk": {4, 6}}, naming.Update{Name: "lora_unet_blocks_0_attn_wk", Rows: 4, Columns: 6},
			[]naming.Slice{slice("blocks.0.attn.wk.weight", 0, 0, 4)}},
		{"two modules of one flat name, told apart by shape", weights{"a.b_c": {4, 6}, "a_b.c": {6, 6}}, naming.Update{Name: "lora_unet_a_b_c", Rows: 4, Columns: 6},
			[]naming.Slice{slice("a.b_c.weight", 0, 0, 4)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, shapes := c.base.index()
			s := naming.FindSpread(base, []naming.Update{c.module}, shapes, nil)
			if !s.IsWhole() || !reflect.DeepEqual(s.Slices[c.module.Name], c.want) {
				t.Errorf("got %+v, want %v", s, c.want)
			}
		})
	}
}

// TestSpreadByShape: SD 3 divides one module of its last block in another way than in the others.
func TestSpreadByShape(t *testing.T) {
	const h = 6
	const native, other = "context_block.adaLN_modulation.1", "norm1_context.linear"
	single := weights{
		"joint_blocks.0." + native: {6 * h, h}, "joint_blocks.1." + native: {2 * h, h},
		"context_embedder": {h, h},
	}
	pipeline := weights{
		"transformer_blocks.0." + other: {6 * h, h}, "transformer_blocks.1." + other: {2 * h, h},
		"pos_embed.proj": {h, 2, 2, 2},
	}
	for _, c := range []struct {
		base   weights
		module string
		rows   uint64
		want   []naming.Slice
	}{
		{single, "transformer.transformer_blocks.0." + other, 6 * h,
			[]naming.Slice{{"joint_blocks.0." + native + ".weight", 0, 0, 6 * h}}},
		{single, "transformer.transformer_blocks.1." + other, 2 * h, []naming.Slice{
			{"joint_blocks.1." + native + ".weight", h, 0, h},
			{"joint_blocks.1." + native + ".weight", 0, h, h},
		}},
		{pipeline, "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1", 6 * h,
			[]naming.Slice{{"transformer_blocks.0." + other + ".weight", 0, 0, 6 * h}}},
		{pipeline, "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1", 2 * h, []naming.Slice{
			{"transformer_blocks.1." + other + ".weight", h, 0, h},
			{"transformer_blocks.1." + other + ".weight", 0, h, h},
		}},
	} {
		base, shapes := c.base.index()
		module := naming.Update{Name: c.module, Rows: c.rows, Columns: h}
		s := naming.FindSpread(base, []naming.Update{module}, shapes, nil)
		if !s.IsWhole() || !reflect.DeepEqual(s.Slices[c.module], c.want) {
			t.Errorf("%s: got %+v, want %v", c.module, s, c.want)
		}
	}
}

func TestSpreadFindsNothing(t *testing.T) {
	const h = 6
	bfl := flux("", h)
	for _, c := range []struct {
		name   string
		base   weights
		only   []string
		module naming.Update
		want   naming.Spread
	}{
		{"another shape", bfl, nil, naming.Update{Name: "lora_unet_double_blocks_0_img_attn_proj", Rows: h, Columns: h + 1},
			naming.Spread{Misfit: []naming.Misfit{{naming.Update{Name: "lora_unet_double_blocks_0_img_attn_proj", Rows: h, Columns: h + 1}, "double_blocks.0.img_attn.proj.weight"}}}},
		{"a part that the base lacks", bfl, nil, naming.Update{Name: "transformer.transformer_blocks.7.attn.to_k", Rows: h, Columns: h},
			naming.Spread{Missing: []string{"transformer.transformer_blocks.7.attn.to_k"}}},
		{"a component that the base lacks", weights{"unet.conv_in": {2, 2}}, nil, naming.Update{Name: "lora_te_text_model_encoder_layers_0_mlp_fc1", Rows: 8, Columns: 4},
			naming.Spread{Absent: []string{"text_encoder"}}},
		{"two denoisers", weights{"transformer.a": {2, 2}, "transformer_2.a": {2, 2}}, nil, naming.Update{Name: "lora_unet_a", Rows: 2, Columns: 2},
			naming.Spread{Ambiguous: []string{"transformer", "transformer_2"}}},
		{"two modules of one flat name and one shape", weights{"a.b_c": {4, 6}, "a_b.c": {4, 6}}, nil, naming.Update{Name: "lora_unet_a_b_c", Rows: 4, Columns: 6},
			naming.Spread{Ambiguous: []string{"a.b_c.weight", "a_b.c.weight"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, shapes := c.base.index()
			got := naming.FindSpread(base, []naming.Update{c.module}, shapes, c.only)
			slices.Sort(got.Ambiguous)
			c.want.Slices = map[string][]naming.Slice{}
			if !reflect.DeepEqual(*got, c.want) {
				t.Errorf("got %+v, want %+v", *got, c.want)
			}
		})
	}
	base, shapes := weights{"transformer.a": {2, 2}, "transformer_2.a": {2, 2}}.index()
	s := naming.FindSpread(base, []naming.Update{{Name: "lora_unet_a", Rows: 2, Columns: 2}}, shapes, []string{"transformer_2"})
	if want := "transformer_2.a.weight"; !s.IsWhole() || s.Slices["lora_unet_a"][0].Weight != want {
		t.Errorf("with only: got %+v, want %s", s, want)
	}
}
