package naming

// This file has the names that the authors of language models use in their own code. transformers
// has others, and most checkpoints have those.

// ownNames are those of Meta's and Mistral's code: consolidated.safetensors, consolidated.00.pth.
// In these checkpoints the rows of q and k have the order of llama.cpp (spec/METHODS.md, section
// 6).
var ownNames = newMove("",
	"^layers.#.attention.wq.", "^model.layers.#.self_attn.q_proj.",
	"^layers.#.attention.wk.", "^model.layers.#.self_attn.k_proj.",
	"^layers.#.attention.wv.", "^model.layers.#.self_attn.v_proj.",
	"^layers.#.attention.wo.", "^model.layers.#.self_attn.o_proj.",
	"^layers.#.feed_forward.w1.", "^model.layers.#.mlp.gate_proj.",
	"^layers.#.feed_forward.w2.", "^model.layers.#.mlp.down_proj.",
	"^layers.#.feed_forward.w3.", "^model.layers.#.mlp.up_proj.",
	"^layers.#.feed_forward.gate.", "^model.layers.#.block_sparse_moe.gate.",
	"^layers.#.feed_forward.experts.#.", "^model.layers.#.block_sparse_moe.experts.#.",
	"^layers.#.attention_norm.", "^model.layers.#.input_layernorm.",
	"^layers.#.ffn_norm.", "^model.layers.#.post_attention_layernorm.",
	"^tok_embeddings.", "^model.embed_tokens.", "^norm.", "^model.norm.", "^output.", "^lm_head.")

// toOwnNames translates from transformers only. Under the other names, an adapter's rows of q and k
// would have the other order, and nothing would say so.
var toOwnNames = &move{words: "with the names of Meta's and Mistral's own code", older: ownNames.older}

// torchtune are torchtune's names of layers, which all its language models share.
var torchtune = newMove("",
	"^layers.#.attn.q_proj.", "^model.layers.#.self_attn.q_proj.",
	"^layers.#.attn.k_proj.", "^model.layers.#.self_attn.k_proj.",
	"^layers.#.attn.v_proj.", "^model.layers.#.self_attn.v_proj.",
	"^layers.#.attn.output_proj.", "^model.layers.#.self_attn.o_proj.",
	"^layers.#.mlp.w1.", "^model.layers.#.mlp.gate_proj.",
	"^layers.#.mlp.w2.", "^model.layers.#.mlp.down_proj.",
	"^layers.#.mlp.w3.", "^model.layers.#.mlp.up_proj.",
	"^tok_embeddings.", "^model.embed_tokens.", "^output.", "^lm_head.")

// FromOwn returns the name in transformers of a module that has the name of Meta's and Mistral's
// code; ok is false for any other name.
func FromOwn(module string) (name string, ok bool) { return ownNames.module(module) }

// FromTorchtune returns the name in transformers of a module of torchtune; ok is false for any
// other name.
func FromTorchtune(module string) (name string, ok bool) { return torchtune.module(module) }

// module renames a module to the newer names.
func (m *move) module(module string) (name string, ok bool) {
	name = m.apply(module+".", true)
	return name[:len(name)-1], name != module+"."
}

// IsToOwn reports whether the base has the names of Meta's and Mistral's code, and the adapter
// those of transformers.
func (m Mapping) IsToOwn() bool { return m.rename.move == toOwnNames && !m.rename.newer }

// IsQueryOrKey reports whether a module of transformers computes queries or keys, which rotary
// embeddings turn.
func IsQueryOrKey(module string) bool {
	leaf := Leaf(module)
	return leaf == "q_proj" || leaf == "k_proj"
}

// inPairs says for each model type whose adapters torchtune trains whether it gives the rows of q
// and k the order of llama.cpp (hf_to_tune in torchtune/models).
var inPairs = map[string]bool{
	"llama": true, "mistral": true, "gemma": true, "gemma2": true,
	"qwen2": false, "qwen3": false, "phi3": false,
}

// HasPairsInTorchtune reports whether torchtune gives the rows of q and k in models of this type
// the order of llama.cpp. ok is false for a type that it does not train.
func HasPairsInTorchtune(modelType string) (has, ok bool) {
	has, ok = inPairs[modelType]
	return has, ok
}
