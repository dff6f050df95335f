package merge

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// tiesByDefault are the model types whose configuration class ties the head to the embedding when config.json does not say.
var tiesByDefault = []string{
	"gpt2", "t5", "mt5", "bart", "mbart", "bert", "roberta", "distilbert", "albert", "electra", "opt", "bloom", "gemma", "gemma2",
	"gemma3", "gemma3_text", "cohere", "whisper", "xglm", "codegen", "m2m_100", "pegasus", "led", "marian",
}

// headedArchitectures are parts of the names of classes that have a head over the vocabulary.
var headedArchitectures = []string{"LMHead", "CausalLM", "ConditionalGeneration", "MaskedLM", "PreTraining", "Seq2SeqLM"}

// checkTied refuses to change a tensor that the model uses twice, as input embedding and as output head: the change would
// leak into the other end.
func (r *resolver) checkTied(name string) error {
	module := naming.Module(name)
	isEmbedding, isHead := naming.IsInputEmbedding(module), naming.IsHead(module)
	if !isEmbedding && !isHead {
		return nil
	}
	tied, certain := r.isTied()
	if !tied {
		return nil
	}
	if !certain {
		if isEmbedding {
			r.plan.warn("%q is changed, the base holds no output head, and there is no config.json to say whether the two are tied: the head may change too", name)
		}
		return nil
	}
	return r.tiedError(name)
}

func (r *resolver) tiedError(name string) error {
	return fault.New(fault.Unsupported, "the adapter changes %q, which the base has tied to its other end: input embedding and output head are one tensor, and the change would apply to both", name).
		WithHint("untie the base first: store the head under its own name and set tie_word_embeddings to false")
}

// isTied reports whether the base ties its head to its embedding, and whether that is certain or only possible.
func (r *resolver) isTied() (tied, certain bool) {
	config := r.plan.base.Config
	hasHead := false
	for _, name := range r.plan.base.Names() {
		hasHead = hasHead || naming.IsHead(naming.Module(name))
	}
	if !config.Found {
		return !hasHead, false
	}
	headed := len(config.Architectures) == 0
	for _, a := range config.Architectures {
		for _, part := range headedArchitectures {
			headed = headed || strings.Contains(a, part)
		}
	}
	switch {
	case !headed:
		return false, true
	case config.TieWordEmbeddings != nil:
		return *config.TieWordEmbeddings, true
	}
	return !hasHead && slices.Contains(tiesByDefault, config.ModelType), true
}

// explainMissing says why the base lacks tensors that the adapter wants to change.
func (r *resolver) explainMissing(wanted, missing []string) error {
	for _, name := range missing {
		module := naming.Module(name)
		if naming.IsHead(module) {
			if tied, certain := r.isTied(); tied && certain {
				return r.tiedError(name)
			}
		}
		renamed := r.mapping.Renamed(module)
		switch {
		case r.names.Has(renamed + ".in_proj_weight"):
			return fault.New(fault.Unsupported, "%q is a torch.nn.MultiheadAttention, whose fused weights this version does not merge into", module).
				WithHint("merge with PEFT")
		case r.names.Has(renamed+".qweight") || r.names.Has(renamed+".qzeros"):
			return fault.New(fault.Unsupported, "%q of the base is quantised (it has a qweight and no weight)", module).
				WithHint("merge into the checkpoint that it was quantised from, then quantise again")
		case strings.HasSuffix(name, ".bias") && r.names.Has(renamed+".weight"):
			return fault.New(fault.Mismatch, "the adapter changes the bias of %q, and the base has none there", module).
				WithHint("%s", r.wrongBase())
		}
	}
	if len(missing) == len(wanted) {
		return fault.New(fault.Mismatch, "the base has none of the %d tensors that the adapter changes: %s", len(wanted), fault.List(missing, 3)).
			WithHint("%s", r.wrongBase())
	}
	e := fault.New(fault.Mismatch, "the base lacks %d of the %d tensors that the adapter changes: %s", len(missing), len(wanted), fault.List(missing, 3))
	for _, b := range r.adapter.Beside {
		if slices.Contains(missing, b.Target) {
			return e.WithHint("the adapter saves modules whole that the base does not have, such as a new head; give a base that has them")
		}
	}
	return e.WithHint("%s", r.wrongBase())
}
