package naming

import (
	"slices"
	"strings"
)

// tiesByDefault are the model types whose configuration class ties the head to the embedding when config.json does not say.
var tiesByDefault = []string{
	"gpt2", "t5", "mt5", "bart", "mbart", "bert", "roberta", "distilbert", "albert", "electra", "opt", "bloom", "gemma", "gemma2",
	"gemma3", "gemma3_text", "cohere", "whisper", "xglm", "codegen", "m2m_100", "pegasus", "led", "marian",
}

// headedArchitectures are parts of the names of classes that have a head over the vocabulary.
var headedArchitectures = []string{"LMHead", "CausalLM", "ConditionalGeneration", "MaskedLM", "PreTraining", "Seq2SeqLM"}

// IsTied reports whether a model's output head and input embedding are one tensor: by its tensor names and by what its
// configuration says, where tie is nil for a configuration without tie_word_embeddings. Without a model type the names alone
// decide: a model without a head may have tied it.
func IsTied(names []string, modelType string, architectures []string, tie *bool) bool {
	hasHead := slices.ContainsFunc(names, func(name string) bool { return IsHead(Module(name)) })
	if modelType == "" && len(architectures) == 0 && tie == nil {
		return !hasHead
	}
	headed := len(architectures) == 0
	for _, a := range architectures {
		headed = headed || slices.ContainsFunc(headedArchitectures, func(part string) bool { return strings.Contains(a, part) })
	}
	switch {
	case !headed:
		return false
	case tie != nil:
		return *tie
	}
	return !hasHead && slices.Contains(tiesByDefault, modelType)
}

var (
	// scaledHeads are the model types that scale what goes into the head as long as it is tied, so that a head of its own with the same
	// values is another model.
	scaledHeads = set("t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop")
	// otherHeads are the model types whose tied head has another name than lm_head.
	otherHeads = set("whisper", "speech_to_text", "speech_to_text_2", "trocr", "biogpt", "git", "bridgetower", "xlm", "flaubert", "xlnet", "gpt_neox",
		"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra", "deberta", "deberta-v2", "modernbert", "mpnet", "speecht5")
)

// Embedding finds the input embedding to which a head can be tied, by its name without wrappers; ok is false if there is none, or several.
func (b *Base) Embedding() (name string, ok bool) {
	n := 0
	for plain := range b.byName {
		if module, isWeight := strings.CutSuffix(plain, ".weight"); isWeight && IsInputEmbedding(module) {
			name = plain
			n++
		}
	}
	return name, n == 1
}

// TiedHead is the name that the head tied to an embedding has, or gets when it is untied; why says that it is not known.
func (b *Base) TiedHead(embedding, modelType string) (head, why string) {
	for plain := range b.byName {
		if IsHead(Module(plain)) && Leaf(plain) == "weight" {
			return plain, ""
		}
	}
	switch {
	case otherHeads[modelType]:
		return "", "the name of the head of a " + modelType + " model is not known here"
	case strings.HasPrefix(embedding, "language_model.model."):
		return "language_model.lm_head.weight", ""
	}
	return "lm_head.weight", ""
}

// ScalesTiedHead reports whether models of this type compute something else when their head is untied.
func ScalesTiedHead(modelType string) bool { return scaledHeads[modelType] }

// Actual returns the base's own name for one without wrappers.
func (b *Base) Actual(plain string) string { return b.byName[plain] }

// Alias makes a name stand for a tensor of another name.
func (b *Base) Alias(name, plain string) { b.byName[name] = b.byName[plain] }
