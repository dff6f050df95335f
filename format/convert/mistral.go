package convert

import (
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// MistralFinetune returns the dialect of mistral-finetune: lora.safetensors with the names of
// Mistral's own code, layers.0.attention.wq.lora_A.weight, and params.json beside it, whose
// lora.scaling is the scale. The modules of an opened adapter have the names of transformers, and
// the rows of q and k the order of Mistral's code (format.FeatureRotaryPairs). It is read only.
func MistralFinetune() Dialect { return mistral }

var mistral = &pairDialect{
	readOnly: readOnly{"mistral"}, owns: isMistrals, needsScale: true, ofLanguage: true,
	rows: format.FeatureRotaryPairs,
	hintScale: "put the params.json of the training beside it, or set Options.Scale=SCALE, the lora.scaling " +
		"of the training, which is 2 by default",
	beside: readParams,
	adapt: func(k *pairKey, name string) {
		renameKey(k, naming.FromOwn)
		if at, ok := naming.FromOwn(strings.TrimSuffix(name, ".weight")); ok && k.role == "" {
			k.saved = at + ".weight" // a norm that was trained in full
		}
	},
}

// isMistrals: PEFT's endings behind names of attention layers that only Meta's and Mistral's code
// has. The other names are those of some image models, too.
func isMistrals(k *pairKey) bool {
	if k.isPEFTs || k.tail != "lora_A.weight" && k.tail != "lora_B.weight" {
		return false
	}
	_, ok := naming.FromOwn(k.module)
	return ok && strings.Contains(k.module, ".attention.")
}

// renameKey gives a part of a layer the name of its module in transformers.
func renameKey(k *pairKey, from func(string) (string, bool)) {
	if name, ok := from(k.module); ok && k.role != "" {
		k.module = name
	}
}

// readParams reads the scale from params.json.
func readParams(in *Input) (*besideScale, error) {
	const file = "params.json"
	text, err := in.ReadFile(file, maxSideBytes)
	if text == nil || err != nil {
		return nil, err
	}
	var params struct {
		LoRA *struct {
			Rank    int      `json:"rank"`
			Scaling *float64 `json:"scaling"`
		} `json:"lora"`
	}
	if err := jsontext.Decode(text, &params); err != nil {
		return nil, fault.New(fault.Corrupt, "not the parameters of a training: %v", err).In(in.sibling(file))
	}
	if params.LoRA == nil || params.LoRA.Scaling == nil {
		return nil, nil
	}
	return &besideScale{file: "lora.scaling in " + file, scale: *params.LoRA.Scaling, rank: params.LoRA.Rank}, nil
}
