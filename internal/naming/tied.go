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
