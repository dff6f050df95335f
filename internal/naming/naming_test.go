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

// TestMovedModulesAreFound: names of transformers 4 in a base with those of 5 and the other way
// round, for every table.
func TestMovedModulesAreFound(t *testing.T) {
	for _, c := range []struct{ older, newer string }{
		{"model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight"},
		{"model.layers.3.block_sparse_moe.gate.weight", "model.layers.3.mlp.router.weight"},
		{"model.layers.0.block_sparse_moe.input_linear.weight", "model.layers.0.block_sparse_moe.experts.gate_up_proj"},
		{"language_model.lm_head.weight", "lm_head.weight"},
		{"language_model.model.layers.0.self_attn.q_proj.weight", "model.language_model.layers.0.self_attn.q_proj.weight"},
		{"vision_tower.encoder.layers.0.mlp.fc1.weight", "model.vision_tower.encoder.layers.0.mlp.fc1.weight"},
		{"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "model.vision_tower.encoder.layers.0.mlp.fc1.weight"},
		{"vision_model.transformer.layers.0.mlp.fc1.weight", "model.vision_model.transformer.layers.0.mlp.fc1.weight"},
		{"model.layers.0.self_attn.q_proj.weight", "model.language_model.layers.0.self_attn.q_proj.weight"},
		{"vit.encoder.layer.11.attention.attention.query.weight", "vit.layers.11.attention.q_proj.weight"},
		{"vit.encoder.layer.11.output.dense.weight", "vit.layers.11.mlp.fc2.weight"},
		{"encoder.layer.0.attention.output.dense.bias", "encoder.layer.0.attention.o_proj.bias"},
		{"swin.encoder.layers.0.blocks.1.attention.self.value.weight", "swin.encoder.layers.0.blocks.1.attention.v_proj.weight"},
		{"segformer.encoder.block.2.13.mlp.dense2.weight", "segformer.stages.2.blocks.13.mlp.fc2.weight"},
		{"segformer.encoder.patch_embeddings.1.proj.weight", "segformer.stages.1.patch_embeddings.proj.weight"},
		{"segformer.encoder.layer_norm.1.weight", "segformer.stages.1.layer_norm.weight"},
		{"segformer.encoder.block.0.1.layer_norm_2.bias", "segformer.stages.0.blocks.1.layernorm_after.bias"},
		{"segformer.encoder.block.0.1.attention.self.layer_norm.bias", "segformer.stages.0.blocks.1.attention.sequence_reduction.layer_norm.bias"},
		{"encoder.layers.0.blocks.0.attention.self.relative_position_bias_table", "encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"},
		{"embed_out.weight", "lm_head.weight"},
	} {
		for _, names := range [][2]string{{c.older, c.newer}, {c.newer, c.older}} {
			m, missing, ambiguous := Index([]string{names[0], "other.weight"}).Match([]string{names[1]})
			if got, ok := m.Lookup(names[1]); !ok || got != names[0] {
				t.Errorf("Match(%q) in a base with %q: %q, missing %q, ambiguous %q", names[1], names[0], got, missing, ambiguous)
			}
		}
	}
}

// TestMovedModulesAreNotGuessed: one name that a table does not lead to is one too many, and two
// tables that lead apart are, too.
func TestMovedModulesAreNotGuessed(t *testing.T) {
	base := Index([]string{"model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.self_attn.q_proj.weight"})
	if _, missing, _ := base.Match([]string{"model.layers.0.mlp.gate.weight", "model.layers.0.self_attn.k_proj.weight"}); missing == nil {
		t.Error("a table was used that does not lead to all names")
	}
	base = Index([]string{"e.0.attention.attention.query.weight", "e.0.attention.self.query.weight"})
	if m, _, ambiguous := base.Match([]string{"e.0.attention.q_proj.weight"}); len(ambiguous) != 2 {
		t.Errorf("two tables lead to different tensors: ambiguous %q, translated %s", ambiguous, m.Describe())
	}
}

// TestBestIsTheFirstOfTheMost: if no translation finds all names, the one that finds the most is
// taken, and of several the first by the order of the specification.
func TestBestIsTheFirstOfTheMost(t *testing.T) {
	for _, c := range []struct {
		base, wanted []string
		want         string // in place of the first wanted name
	}{
		{[]string{"a.q.weight", "b.q.weight", "b.k.weight"}, []string{"q.weight", "k.weight", "v.weight"}, "b.q.weight"},
		{[]string{"b.q.weight", "a.q.weight"}, []string{"q.weight", "v.weight"}, "a.q.weight"},
		{[]string{"a.q.weight", "model.q.weight"}, []string{"q.weight", "v.weight"}, "model.q.weight"},
		{[]string{"h.q.weight", "h.k.weight", "score.weight"},
			[]string{"base_model.model.transformer.h.q.weight", "base_model.model.head.weight", "base_model.model.transformer.h.k.weight"},
			"h.q.weight"},
	} {
		if got := Index(c.base).Best(c.wanted).Renamed(c.wanted[0]); got != c.want {
			t.Errorf("Best(%q) in a base with %q makes %q of the first, want %q", c.wanted, c.base, got, c.want)
		}
	}
}

// TestPlainSegmentsHaveNoFramework: each prefix of a framework is cut, also where two follow each
// other.
func TestPlainSegmentsHaveNoFramework(t *testing.T) {
	for prefix, want := range map[string][]string{
		"": nil, "module.model.": {"model"}, "base_model.model.base_model.model.a.": {"a"},
		"module.module.base_model.a.model.": {"base_model", "a", "model"}, "a.base_model.model.b.": {"a", "b"},
	} {
		if got := plainSegments(prefix); !slices.Equal(got, want) {
			t.Errorf("plainSegments(%q) = %q, want %q", prefix, got, want)
		}
	}
}
