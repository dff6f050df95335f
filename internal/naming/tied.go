package naming

import (
	"slices"
	"strings"
)

// Model holds the evidence for a tie between a model's output head and its input embedding: its
// tensors, its configuration, and the lookups of adapters.
type Model struct {
	Shapes        map[string][]uint64 // by name without wrappers; nil if the shape is unknown
	Configured    bool                // config.json exists
	ModelType     string
	Architectures []string
	Tie           *bool    // tie_word_embeddings, nil if config.json does not say
	TextTie       *bool    // the same in text_config
	VocabSize     uint64   // 0 if config.json does not say
	LookedUp      []string // tensors that an adapter adapts as embeddings
	HeadShape     []uint64 // of a head that an adapter changes and the files lack; nil for none
}

// Ends are the two ends of a language model, as tensor names without wrappers.
type Ends struct {
	Embedding string // the input embedding; "" if uncertain
	Head      string // the output head; "" if the files hold none
	Tied      bool   // both are, or may be, one tensor
	Why       string // a clause that says why the tie is uncertain, or ""
}

// Ends finds the two ends of a model and decides whether they are tied. It needs no list for a
// generative model without a head in its files: such a model must tie it, since nothing else
// supplies the head. The lists cover models whose files hold both ends.
func (m *Model) Ends() Ends {
	e := Ends{Embedding: m.embedding()}
	e.Head = m.head(e.Embedding)
	e.Tied, e.Why = m.isTied(e.Head != "")
	return e
}

func (m *Model) isTied(hasHead bool) (tied bool, why string) {
	byDefault := slices.Contains(tiesByDefault, m.ModelType)
	isTrunk, isGenerative := m.class()
	says := func(tie *bool) bool { return tie != nil && *tie }
	switch {
	case !m.Configured && m.Tie == nil:
		return !hasHead, "there is no config.json to say whether the two are tied"
	case isTrunk:
		why := "the base is saved as " + m.Architectures[0] + ", and a model that puts a head on it ties the two"
		return !hasHead && (says(m.Tie) || m.Tie == nil && byDefault), why
	case !isGenerative && len(m.Architectures) > 0:
		return false, "" // a class without a head over the vocabulary
	case says(m.Tie), !hasHead && says(m.TextTie):
		return true, ""
	case m.Tie != nil:
		return !hasHead && isGenerative, "config.json says that the two are not tied, and the files hold no head"
	case hasHead:
		return byDefault, "config.json does not say whether the two are tied, and models of this type tie them by default"
	case isGenerative || byDefault:
		return true, ""
	}
	return true, "config.json names neither tie_word_embeddings nor architectures, which decide whether the two are tied"
}

// class reports whether the class is a bare trunk, and whether it has a head over the vocabulary.
func (m *Model) class() (isTrunk, isGenerative bool) {
	for _, a := range m.Architectures {
		isGenerative = isGenerative || slices.ContainsFunc(generative, func(part string) bool { return strings.Contains(a, part) })
		isTrunk = isTrunk || strings.HasSuffix(a, "Model") && !strings.HasSuffix(a, "EncoderModel")
	}
	return isTrunk && !isGenerative, isGenerative
}

// embedding finds the input embedding by its name, by the size of the vocabulary, or by an adapter
// that looks tokens up in it.
func (m *Model) embedding() string {
	var named, sized, fitting []string
	for name, shape := range m.Shapes {
		module, isWeight := strings.CutSuffix(name, ".weight")
		if !isWeight || shape != nil && len(shape) != 2 {
			continue
		}
		switch {
		case IsInputEmbedding(module):
			named = append(named, name)
		case shape == nil || IsHead(module) || IsEmbedding(module) || IsNumbered(module):
		case shape[0] == m.VocabSize:
			sized = append(sized, name)
		case slices.Equal(shape, m.HeadShape):
			fitting = append(fitting, name)
		}
	}
	var lookedUp []string
	for _, name := range m.LookedUp {
		module, isWeight := strings.CutSuffix(name, ".weight")
		if shape := m.Shapes[name]; !isWeight || shape != nil && len(shape) != 2 {
			continue
		}
		isOther := IsEmbedding(module) && !IsInputEmbedding(module) || strings.Contains(Leaf(module), "position") || strings.Contains(Leaf(module), "type")
		if !isOther && !slices.Contains(lookedUp, name) {
			lookedUp = append(lookedUp, name)
		}
	}
	shared := slices.DeleteFunc(slices.Clone(named), func(name string) bool { return Leaf(Module(name)) != "shared" })
	for _, some := range [][]string{named, shared, both(named, lookedUp), sized, both(sized, lookedUp), fitting} {
		if len(some) == 1 {
			return some[0]
		}
	}
	if len(named)+len(sized)+len(fitting) == 0 && len(lookedUp) == 1 {
		return lookedUp[0]
	}
	return ""
}

func both(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(name string) bool { return !slices.Contains(b, name) })
}

// IsNumbered reports whether a module lies inside a numbered one, such as a layer.
func IsNumbered(module string) bool {
	for s := range strings.SplitSeq(module, ".") {
		if strings.Trim(s, "0123456789") == "" {
			return true
		}
	}
	return false
}

// MayBeEnd reports whether Ends can choose this module's weight without an adapter that looks
// tokens up in it. Numbered modules belong to layers.
func MayBeEnd(module string) bool { return !IsNumbered(module) || IsInputEmbedding(module) }

// head finds the output head by its name, or as a second tensor of the embedding's shape.
func (m *Model) head(embedding string) string {
	var named, shaped []string
	want := m.Shapes[embedding]
	for name, shape := range m.Shapes {
		module, isWeight := strings.CutSuffix(name, ".weight")
		switch {
		case !isWeight || name == embedding:
		case IsHead(module) && !IsNumbered(module):
			named = append(named, name)
		case want == nil || !slices.Equal(shape, want) || IsNumbered(module):
		case !IsEmbedding(module) && !strings.Contains(module, "embed"):
			shaped = append(shaped, name)
		}
	}
	for _, some := range [][]string{named, shaped} {
		if len(some) > 0 {
			slices.Sort(some)
			return some[0]
		}
	}
	return ""
}

// generative are parts of the names of classes with a head over the vocabulary.
var generative = []string{
	"LMHead", "CausalLM", "ConditionalGeneration", "MaskedLM", "PreTraining", "Seq2SeqLM", "DoubleHeads",
	"ForTextToText", "ForSpeechToText", "ForTextToSpeech", "ForImageTextToText",
	"BertGenerationDecoder",
}

// tiesByDefault are the model types whose configuration class ties the head by default
// (transformers 5.24, those with a generative class).
var tiesByDefault = strings.Fields(`
	albert aya_vision bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small bloom camembert codegen
	cohere cohere2 cohere2_moe cohere2_vision convbert cpmant ctrl deberta deberta-v2 distilbert electra ernie ernie4_5 ernie4_5_moe
	esm falcon falcon_mamba flaubert florence2 fnet funnel gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text
	got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese ibert jetmoe kosmos-2 led lfm2 lfm2_moe lfm2_vl longformer longt5
	m2m_100 mamba marian mbart megatron-bert mobilebert modernbert modernbert-decoder moonshine mpnet mpt mra mt5 mvp nllb-moe
	nomic_bert nystromformer openai-gpt opt paligemma pegasus pegasus_x plbart pop2piano prophetnet recurrent_gemma roberta
	roberta-prelayernorm roc_bert roformer seamless_m4t seamless_m4t_v2 shieldgemma2 smollm3 speech_to_text squeezebert starcoder2
	switch_transformers t5 t5gemma t5gemma2 trocr udop umt5 vaultgemma whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso
	youtu zamba zamba2`)

var (
	// scaledHeads are the model types that scale the head's input only while it is tied. An untied
	// copy of the same values is another model.
	scaledHeads = set("t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop")
	// otherHeads are the model types that call a tied head other than lm_head; "" if an untied head
	// needs more than its weight.
	otherHeads = map[string]string{
		"whisper": "proj_out", "moonshine": "proj_out", "moonshine_streaming": "proj_out", "cohere_asr": "proj_out",
		"biogpt": "output_projection", "trocr": "output_projection", "git": "output", "rwkv": "head",
		"bridgetower": "", "xlm": "", "flaubert": "", "xlnet": "", "gpt_neox": "", "gpt_neox_japanese": "embed_out",
		"bert": "", "roberta": "", "xlm-roberta": "", "camembert": "", "distilbert": "", "albert": "", "electra": "", "deberta": "",
		"deberta-v2": "", "modernbert": "", "modernbert-decoder": "decoder", "mpnet": "", "speecht5": "", "t5gemma": "lm_head.out_proj",
		"t5gemma2": "lm_head.out_proj",
	}
)

// TiedHead returns the name of the head tied to an embedding once it is untied, without wrappers.
// If it does not know the name, why gives the reason.
func TiedHead(embedding, modelType string) (head, why string) {
	head, isOther := otherHeads[modelType]
	switch {
	case isOther && head == "":
		return "", "loratool does not know the name or the parts of an untied head of a " + modelType + " model"
	case !isOther:
		head = "lm_head"
	}
	// A language model inside another one keeps its head beside its trunk.
	if outer, _, ok := strings.Cut(embedding, ".model."); ok && !isOther {
		head = outer + "." + head
	}
	return head + ".weight", ""
}

// ScalesTiedHead reports whether untying the head changes the result of a model of this type.
func ScalesTiedHead(modelType string) bool { return scaledHeads[modelType] }

// Nearest lists the tensors that a name in an adapter can mean on its own: the same name, or a name
// that ends with it, or that it ends with.
func (b *Base) Nearest(name string) []string {
	if b.Has(name) {
		return []string{name}
	}
	var all []string
	for plain := range b.all() {
		if strings.HasSuffix(plain, "."+name) || strings.HasSuffix(name, "."+plain) {
			all = append(all, plain)
		}
	}
	return all
}

// Actual returns the base's own name for a name without wrappers.
func (b *Base) Actual(plain string) string { actual, _ := b.find(plain); return actual }

// Alias makes a name stand for a tensor of another name.
func (b *Base) Alias(name, plain string) {
	b.other[name] = b.Actual(plain)
	b.tails, b.fronts, b.places, b.sorted, b.components = nil, nil, nil, nil, nil
}
