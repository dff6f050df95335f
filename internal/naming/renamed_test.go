package naming

import "testing"

// TestOnlyOnDisk: the names of models that transformers renames in memory are told from the same
// names of models that have them there.
func TestOnlyOnDisk(t *testing.T) {
	for _, c := range []struct{ module, want string }{
		{"embed_out", "GPT-NeoX"},
		{"vit.encoder.layer.0.attention.attention.query", "ViT, DINOv2 and their kin"},
		{"swin.encoder.layers.0.blocks.1.attention.self.key", "Swin"},
		{"segformer.encoder.block.0.1.attention.self.query", "SegFormer"},
		{"visual.blocks.3.attn.qkv", "Qwen2-VL and its kin"},
		{"language_model.model.layers.0.self_attn.q_proj", "LLaVA and its kin"},
		{"h.0.attn.c_attn", "GPT-2 and BLOOM with a head"},
		{"transformer.h.0.attn.c_attn", ""},
		{"bert.encoder.layer.0.attention.self.query", ""},
		{"bert.encoder.layer.0.attention.output.dense", ""},
		{"model.language_model.layers.0.self_attn.q_proj", ""},
		{"model.layers.0.self_attn.q_proj", ""},
		{"model.layers.0.block_sparse_moe.experts.0.w1", ""}, // PEFT translates it
		{"lm_head", ""},
	} {
		if module, models := OnlyOnDisk([]string{"model.norm", c.module}); models != c.want || (module == c.module) != (c.want != "") {
			t.Errorf("OnlyOnDisk(%q) = %q, %q, want %q", c.module, module, models, c.want)
		}
	}
}
