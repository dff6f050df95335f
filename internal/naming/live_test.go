package naming

import (
	"slices"
	"testing"
)

// TestLiveNames: what the truth of PEFT does not show, because transformers 5 saves no such
// checkpoint.
func TestLiveNames(t *testing.T) {
	for _, c := range []struct {
		name, modelType, class string
		disk, live             []string
	}{
		{"GPT-2 of the hub", "gpt2", "GPT2LMHeadModel",
			[]string{"h.0.attn.c_attn.weight", "wte.weight"},
			[]string{"transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"}},
		{"the trunk of GPT-2", "gpt2", "GPT2Model", []string{"h.0.attn.c_attn.weight"}, []string{"h.0.attn.c_attn.weight"}},
		{"GPT-2 with its prefix", "gpt2", "GPT2LMHeadModel",
			[]string{"lm_head.weight", "transformer.h.0.attn.c_attn.weight"},
			[]string{"lm_head.weight", "transformer.h.0.attn.c_attn.weight"}},
		{"the text half of CLIP of the hub", "clip_text_model", "CLIPTextModel",
			[]string{"text_model.embeddings.token_embedding.weight"}, []string{"embeddings.token_embedding.weight"}},
		{"the older layout of LLaVA", "llava", "LlavaForConditionalGeneration",
			[]string{"language_model.lm_head.weight", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"},
			[]string{"lm_head.weight", "model.vision_tower.encoder.layers.0.mlp.fc1.weight"}},
		{"the newer layout", "llava", "LlavaForConditionalGeneration",
			[]string{"vision_tower.encoder.layers.0.mlp.fc1.weight"},
			[]string{"model.vision_tower.encoder.layers.0.mlp.fc1.weight"}},
		{"a compiled model", "llama", "LlamaForCausalLM", []string{"_orig_mod.model.norm.weight"}, []string{"model.norm.weight"}},
		{"experts", "mixtral", "MixtralForCausalLM",
			[]string{"m.block_sparse_moe.experts.0.w2.weight", "m.block_sparse_moe.experts.1.w2.weight"},
			[]string{"m.mlp.experts.down_proj"}},
		{"experts that are not all there", "mixtral", "MixtralForCausalLM",
			[]string{"m.block_sparse_moe.experts.0.w1.weight", "m.block_sparse_moe.experts.0.w3.weight", "m.block_sparse_moe.experts.1.w1.weight"},
			[]string{"m.mlp.experts.0.w1.weight", "m.mlp.experts.0.w3.weight", "m.mlp.experts.1.w1.weight"}},
		{"experts of a model that keeps them apart", "llama", "LlamaForCausalLM",
			[]string{"m.experts.0.w2.weight"}, []string{"m.experts.0.w2.weight"}},
	} {
		shape := func(string) []uint64 { return []uint64{4, 6} }
		var got []string
		for _, l := range LiveNames(c.disk, shape, c.modelType, []string{c.class}) {
			got = append(got, l.Name)
			if len(l.Parts) > 1 && !slices.Equal(l.Shape, []uint64{2, 4, 6}) {
				t.Errorf("%s: the stack has the shape %d", c.name, l.Shape)
			}
		}
		if !slices.Equal(got, c.live) {
			t.Errorf("%s: LiveNames(%q) = %q, want %q", c.name, c.disk, got, c.live)
		}
	}
}

// TestCloseTakesPathsByTheirEnds, as PEFT does: no dot has to stand before what it compares.
func TestCloseTakesPathsByTheirEnds(t *testing.T) {
	var live []Live
	for _, name := range []string{"norm.weight", "layers.0.input_norm.weight", "layers.0.q.weight", "head.probe", "head.mlp.weight", "layers.0.head.weight"} {
		live = append(live, Live{Name: name, Shape: []uint64{4, 4}})
	}
	m := NewPEFTModel(live, "")
	for _, c := range []struct {
		save, want []string
		refused    bool
	}{
		{[]string{"layers.0.input_norm"}, []string{"layers.0.input_norm"}, false},
		{[]string{"norm"}, []string{"layers.0.input_norm", "norm"}, false},
		{[]string{"head.mlp", "head"}, []string{"head", "layers.0.head"}, false},
		{[]string{"layers.0"}, []string{"layers.0"}, false},
		{[]string{"0"}, nil, true}, // layers.0 is all there is
	} {
		got, why := m.Close(c.save)
		if !slices.Equal(got, c.want) || (why != "") != c.refused {
			t.Errorf("Close(%q) = %q, %q, want %q", c.save, got, why, c.want)
		}
	}
}
