package naming

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// transformers 5 renamed modules of many models in memory, but existing checkpoints keep the names
// of version 4. An adapter has the names of the version that trained it. These tables translate in
// both directions, and only if the base then has every name of the adapter.

// move is a set of renamings that belong together.
type move struct {
	models       string // the families, for messages
	words        string // in messages instead, if the renaming is not about versions
	newer, older []replacement
}

type replacement struct {
	old *regexp.Regexp
	new string
}

// apply renames a path to the newer or the older names.
func (m *move) apply(name string, toNewer bool) string {
	list := m.older
	if toNewer {
		list = m.newer
	}
	for _, r := range list {
		name = r.old.ReplaceAllString(name, r.new)
	}
	return name
}

// moves are the tables: pairs of an older and a newer name. "^" anchors a name at the start of a
// path, and "#" stands for a number. All pairs of a table are applied in order.
var moves = []*move{
	newMove("Mixtral and MiniMax", ".block_sparse_moe.", ".mlp."),
	newMove("PhiMoE", ".block_sparse_moe.gate.", ".mlp.router.", ".block_sparse_moe.", ".mlp."),
	newMove("Granite MoE", ".block_sparse_moe.input_linear.weight", ".block_sparse_moe.experts.gate_up_proj",
		".block_sparse_moe.output_linear.weight", ".block_sparse_moe.experts.down_proj", ".block_sparse_moe.router.layer.", ".block_sparse_moe.router."),
	newMove("LLaVA and its kin", append(textHalf, "^vision_tower.", "^model.vision_tower.")...),
	newMove("LLaVA and its kin", append(textHalf, "^vision_tower.vision_model.", "^model.vision_tower.")...),
	newMove("Mllama", append(textHalf, "^vision_model.", "^model.vision_model.")...),
	newMove("Qwen2-VL and its kin", "^visual.", "^model.visual.", "^model.layers.", "^model.language_model.layers.",
		"^model.embed_tokens.", "^model.language_model.embed_tokens.", "^model.norm.", "^model.language_model.norm."),
	newMove("ViT and its kin", ".encoder.layer.#.", ".layers.#.", ".attention.attention.query.", ".attention.q_proj.",
		".attention.attention.key.", ".attention.k_proj.", ".attention.attention.value.", ".attention.v_proj.",
		".attention.output.dense.", ".attention.o_proj.", ".intermediate.dense.", ".mlp.fc1.", ".output.dense.", ".mlp.fc2."),
	newMove("DINOv2", ".attention.attention.query.", ".attention.q_proj.", ".attention.attention.key.", ".attention.k_proj.",
		".attention.attention.value.", ".attention.v_proj.", ".attention.output.dense.", ".attention.o_proj."),
	newMove("Swin", ".attention.self.query.", ".attention.q_proj.", ".attention.self.key.", ".attention.k_proj.",
		".attention.self.value.", ".attention.v_proj.", ".attention.output.dense.", ".attention.o_proj.",
		".attention.self.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table",
		".intermediate.dense.", ".mlp.fc1.", ".output.dense.", ".mlp.fc2."),
	{words: `with Tinker's "unembed_tokens" for "lm_head"`, newer: []replacement{newReplacement("^model.unembed_tokens.", "^lm_head.")}},
	expertsByLetters("."), expertsByLetters(".block_sparse_moe."),
	newMove("GPT-NeoX", "^embed_out.", "^lm_head."),
	newMove("SegFormer", ".encoder.layer_norm.#.", ".stages.#.layer_norm.", ".layer_norm_1.", ".layernorm_before.", ".layer_norm_2.", ".layernorm_after.",
		".attention.self.layer_norm.", ".attention.sequence_reduction.layer_norm.", ".encoder.block.#.#.", ".stages.#.blocks.#.", ".encoder.patch_embeddings.#.", ".stages.#.patch_embeddings.",
		".attention.self.query.", ".attention.q_proj.", ".attention.self.key.", ".attention.k_proj.", ".attention.self.value.", ".attention.v_proj.",
		".attention.self.sr.", ".attention.sequence_reduction.sequence_reduction.", ".attention.output.dense.", ".attention.o_proj.",
		".mlp.dense1.", ".mlp.fc1.", ".mlp.dense2.", ".mlp.fc2.", ".decode_head.linear_c.", ".decode_head.linear_projections."),
	toOwnNames,
	sameModel("ChatGLM taken for GLM", "^transformer.encoder.layers.", "^model.layers.", ".self_attention.dense.", ".self_attn.o_proj.",
		".mlp.dense_h_to_4h.", ".mlp.gate_up_proj.", ".mlp.dense_4h_to_h.", ".mlp.down_proj.",
		"^transformer.embedding.word_embeddings.", "^model.embed_tokens.", "^transformer.output_layer.", "^lm_head."),
	sameModel("InternLM2 taken for Llama", ".attention.wo.", ".self_attn.o_proj.", ".feed_forward.w1.", ".mlp.gate_proj.",
		".feed_forward.w3.", ".mlp.up_proj.", ".feed_forward.w2.", ".mlp.down_proj.",
		"^model.tok_embeddings.", "^model.embed_tokens.", "^output.", "^lm_head."),
	sameModel("Qwen taken for Llama", "^transformer.h.", "^model.layers.", ".attn.c_proj.", ".self_attn.o_proj.",
		".mlp.w2.", ".mlp.gate_proj.", ".mlp.w1.", ".mlp.up_proj.", ".mlp.c_proj.", ".mlp.down_proj.",
		"^transformer.wte.", "^model.embed_tokens."),
	{words: `with Tinker's "attn" for "self_attn"`, newer: []replacement{
		newReplacement(".attn.", ".self_attn."), newReplacement("^model.unembed_tokens.", "^lm_head.")}},
	sameModel("Megatron", "^decoder.layers.", "^model.layers.", ".self_attention.linear_proj.", ".self_attn.o_proj.",
		".mlp.linear_fc2.", ".mlp.down_proj.", "^embedding.word_embeddings.", "^model.embed_tokens.", "^output_layer.", "^lm_head."),
}

// sameModel makes the table of a model that exists under the names of another one, which computes
// the same.
func sameModel(which string, pairs ...string) *move {
	m := newMove("", pairs...)
	m.words = "with the names of " + which + ", or the reverse"
	return m
}

// expertsByLetters makes the table between Mixtral's w1, w2 and w3 of an expert and the names of
// most other models. The block around the experts has two names as well.
func expertsByLetters(block string) *move {
	m := newMove("", ".experts.#.w1.", ".experts.#.gate_proj.", ".experts.#.w3.", ".experts.#.up_proj.",
		".experts.#.w2.", ".experts.#.down_proj.", block, ".mlp.")
	if block == "." {
		m.newer, m.older = m.newer[:3], m.older[:3]
	}
	m.words = "with w1, w3 and w2 of experts taken for gate_proj, up_proj and down_proj, or the reverse"
	return m
}

// MovedModels lists the models that are found under the names of either version.
func MovedModels() []string {
	var names []string
	for _, m := range moves {
		if m.models != "" {
			names = append(names, m.models)
		}
	}
	return slices.Compact(names) // some have two layouts
}

// textHalf are the pairs that models of images and text share.
var textHalf = []string{
	"^language_model.lm_head.", "^lm_head.", "^language_model.model.", "^model.language_model.",
	"^multi_modal_projector.", "^model.multi_modal_projector.", "^image_newline.", "^model.image_newline.",
}

// newMove makes a table from pairs of older and newer names.
func newMove(models string, pairs ...string) *move {
	m := &move{models: models}
	for i := 0; i < len(pairs); i += 2 {
		older, newer := pairs[i], pairs[i+1]
		m.newer = append(m.newer, newReplacement(older, newer))
		m.older = append(m.older, newReplacement(newer, older))
	}
	return m
}

// newReplacement makes one renaming. A segment begins at the start of a path or after a dot.
// Numbers keep their order.
func newReplacement(from, to string) replacement {
	start := `(^|\.)`
	if strings.HasPrefix(from, "^") {
		start = `(^)`
	}
	clean := func(s string) string { return strings.TrimLeft(s, "^.") }
	pattern := start + strings.ReplaceAll(regexp.QuoteMeta(clean(from)), "#", `(\d+)`)
	result := "${1}" + clean(to)
	for group := 2; strings.Contains(result, "#"); group++ {
		result = strings.Replace(result, "#", fmt.Sprintf("${%d}", group), 1)
	}
	return replacement{regexp.MustCompile(pattern), result}
}
