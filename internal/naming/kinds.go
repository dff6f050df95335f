package naming

import "strings"

// A checkpoint does not say which class a module is of; the names that transformers gives do. These
// tables are used where a shape cannot tell.

var (
	embeddings = set("embed_tokens", "wte", "wpe", "word_embeddings", "position_embeddings", "token_type_embeddings", "shared", "tok_embeddings", "embed_in", "embed_positions", "relative_attention_bias")
	tiable     = set("embed_tokens", "wte", "word_embeddings", "shared", "tok_embeddings", "embed_in", "embeddings", "tokens_embed", "word_embedding")
	heads      = set("lm_head", "embed_out", "output_projection", "proj_out", "vocab_projector", "generator_lm_head", "lm_loss")

	conv1DModels = set("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
	conv1DNames  = set("c_attn", "c_proj", "c_fc", "q_attn")
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// Leaf is the last segment of a path.
func Leaf(path string) string { return path[strings.LastIndex(path, ".")+1:] }

// Module is the path of the module that a parameter belongs to, "" for a parameter at the top.
func Module(parameter string) string {
	if i := strings.LastIndex(parameter, "."); i >= 0 {
		return parameter[:i]
	}
	return ""
}

// IsEmbedding reports whether modules of this path are tables that tokens, positions or the like
// are looked up in.
func IsEmbedding(module string) bool { return embeddings[Leaf(module)] }

// IsInputEmbedding reports whether modules of this path are embeddings of tokens, to which an
// output head can be tied.
func IsInputEmbedding(module string) bool { return tiable[Leaf(module)] }

// IsHead reports whether modules of this path are output heads over a vocabulary.
func IsHead(module string) bool { return heads[Leaf(module)] }

// IsConv1DModel reports whether models of this type have Conv1D for linear layers, whose weight is
// stored n×m.
func IsConv1DModel(modelType string) bool { return conv1DModels[modelType] }

// IsConv1DName reports whether the models with Conv1D give this name to such modules.
func IsConv1DName(module string) bool { return conv1DNames[Leaf(module)] }
