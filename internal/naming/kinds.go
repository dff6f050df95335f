package naming

import (
	"slices"
	"strings"
)

// A checkpoint does not store the class of a module; the names that transformers gives do. These
// tables decide where shapes cannot.

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

// Leaf returns the last segment of a path.
func Leaf(path string) string { return path[strings.LastIndex(path, ".")+1:] }

// Module returns the path of a parameter's module, "" for a parameter at the top.
func Module(parameter string) string {
	if i := strings.LastIndex(parameter, "."); i >= 0 {
		return parameter[:i]
	}
	return ""
}

// IsEmbedding reports whether modules of this path are lookup tables for tokens, positions or the
// like.
func IsEmbedding(module string) bool { return embeddings[Leaf(module)] }

// IsInputEmbedding reports whether modules of this path embed tokens; a model can tie its output
// head to them.
func IsInputEmbedding(module string) bool { return tiable[Leaf(module)] }

// IsHead reports whether modules of this path are output heads over a vocabulary.
func IsHead(module string) bool { return heads[Leaf(module)] }

// IsConv1DModel reports whether models of this type use Conv1D for linear layers. Conv1D stores its
// weight n×m, the transpose of torch.nn.Linear.
func IsConv1DModel(modelType string) bool { return conv1DModels[modelType] }

// IsConv1DName reports whether models with Conv1D give such modules this name.
func IsConv1DName(module string) bool { return conv1DNames[Leaf(module)] }

// Leaves lists the last parts of the modules that have weights among the names of a checkpoint,
// each once and sorted: down_proj, q_proj. Texts suggest them.
func Leaves(names []string) (leaves []string) {
	for _, name := range names {
		if module, ok := strings.CutSuffix(name, ".weight"); ok {
			leaves = append(leaves, Leaf(module))
		}
	}
	slices.Sort(leaves)
	return slices.Compact(leaves)
}
