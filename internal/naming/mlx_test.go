package naming

import "testing"

func TestStacksOfMLXHaveTheNamesOfExperts(t *testing.T) {
	for _, c := range []struct{ module, modelType, mlx, back string }{
		{"model.layers.0.mlp.experts.gate_proj", "qwen3_moe", "model.layers.0.mlp.switch_mlp.gate_proj", ""},
		{"block_sparse_moe.experts.w2", "mixtral", "block_sparse_moe.switch_mlp.down_proj", "block_sparse_moe.experts.down_proj"},
		{"experts.up_proj", "", "switch_mlp.up_proj", "switch_mlp.up_proj"},
		{"mlp.experts.up_proj", "gpt_oss", "mlp.experts.up_proj", ""},
		{"layers.1.experts.up_proj", "gemma4_text", "layers.1.experts.switch_glu.up_proj", ""},
		{"mlp.experts.gate_up_proj", "gpt_oss", "", ""},
		{"mlp.experts.0.up_proj", "qwen3_moe", "", ""},
		{"mlp.up_proj", "qwen3_moe", "", ""},
	} {
		got, ok := ToMLX(c.module, c.modelType)
		if got != c.mlx || ok != (c.mlx != "") {
			t.Errorf("ToMLX(%q, %q) = %q, %v, want %q", c.module, c.modelType, got, ok, c.mlx)
		}
		if back := FromMLX(got); ok && back != c.module && back != c.back {
			t.Errorf("FromMLX(%q) = %q, want %q", got, back, c.module)
		}
	}
}
