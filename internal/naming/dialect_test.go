package naming

import "testing"

// TestAreOfAdapter: adapters of dialects that no list has, as LyCORIS and others write them, and
// models whose own layers have low rank.
func TestAreOfAdapter(t *testing.T) {
	for _, c := range []struct {
		keys    []string
		dialect string // "" for a model
	}{
		{[]string{"lora_unet_q.a1.weight", "lora_unet_q.b2.weight", "lora_unet_q.alpha"}, "GLoRA, of LyCORIS"},
		{[]string{"lycoris_layers_0_q.a1.weight", "lycoris_layers_0_q.alpha"}, "GLoRA, of LyCORIS"},
		{[]string{"layers.0.q.LoRA_left", "layers.0.q.LoRA_right", "layers.0.q.alpha"}, unknownDialect},
		{[]string{"lora_te_q.lora_down.weight"}, "the dialect of kohya's sd-scripts"},
		{[]string{"model.embeddings.weight", "model.layers.0.attn.w_lora.lora.0.weight"}, ""}, // RWKV-7
		{[]string{"conv.a1.weight", "conv.b1.weight"}, ""},
		{[]string{"alpha"}, ""},
		{nil, ""},
	} {
		if got := Dialect(c.keys); got != c.dialect || AreOfAdapter(c.keys) != (c.dialect != "") {
			t.Errorf("Dialect(%q) = %q, AreOfAdapter %v, want %q", c.keys, got, AreOfAdapter(c.keys), c.dialect)
		}
	}
}
