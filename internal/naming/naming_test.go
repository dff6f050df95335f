package naming

import (
	"slices"
	"testing"
)

func TestMatch(t *testing.T) {
	llama := []string{"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"}
	for _, c := range []struct {
		name    string
		base    []string
		wanted  string
		want    string
		missing bool
	}{
		{"as they are", llama, "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight", false},
		{"PEFT's prefix twice", llama, "base_model.model.model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight", false},
		{"trunk to language model", llama, "layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight", false},
		{"language model to trunk", []string{"layers.0.q.weight"}, "model.layers.0.q.weight", "layers.0.q.weight", false},
		{"GPT-2 of the hub", []string{"wte.weight", "h.0.attn.c_attn.weight"}, "transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight", false},
		{"a compiled base", []string{"_orig_mod.model.layers.0.q.weight"}, "model.layers.0.q.weight", "_orig_mod.model.layers.0.q.weight", false},
		{"the other half of a model", []string{"vision.layers.0.q.weight", "text.blocks.0.q.weight"}, "text.layers.0.q.weight", "", true},
		{"a head of another name", []string{"model.layers.0.q.weight", "score.weight"}, "lm_head.weight", "", true},
		{"another module at the top", []string{"a.weight"}, "b.weight", "", true},
		{"another model", llama, "transformer.h.0.attn.c_attn.weight", "", true},
	} {
		m, missing, ambiguous := Index(c.base).Match([]string{c.wanted})
		got, ok := m.Lookup(c.wanted)
		if got != c.want || ok == c.missing || (len(missing) > 0) != c.missing || ambiguous != nil {
			t.Errorf("%s: Match(%q) = %q, missing %q, ambiguous %q, want %q", c.name, c.wanted, got, missing, ambiguous, c.want)
		}
	}
}

func TestMatchWantsAllNames(t *testing.T) {
	base := Index([]string{"model.layers.0.q.weight", "layers.1.q.weight"})
	_, missing, _ := base.Match([]string{"layers.0.q.weight", "layers.1.q.weight"})
	if !slices.Equal(missing, []string{"layers.0.q.weight"}) {
		t.Errorf("missing = %q, want the name that does not match as it is", missing)
	}
}

func TestMatchRefusesToChoose(t *testing.T) {
	base := Index([]string{"encoder.layer.0.q.weight", "decoder.layer.0.q.weight"})
	_, _, ambiguous := base.Match([]string{"layer.0.q.weight"})
	if len(ambiguous) != 2 {
		t.Errorf("ambiguous = %q, want both halves", ambiguous)
	}
}

func TestStripWrappers(t *testing.T) {
	got := StripWrappers("_fsdp_wrapped_module.model.layers.0._checkpoint_wrapped_module.q._orig_mod.weight")
	if want := "model.layers.0.q.weight"; got != want {
		t.Errorf("StripWrappers = %q, want %q", got, want)
	}
}
