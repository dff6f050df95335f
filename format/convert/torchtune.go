package convert

import (
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// Torchtune returns the dialect of torchtune: adapter_0.pt or adapter_model.pt with its own names,
// layers.0.attn.q_proj.lora_a.weight, and for most models an adapter_config.json beside it with the
// rank and lora_alpha. The modules of an opened adapter have the names of transformers. torchtune
// gives the rows of q and k the order of llama.cpp in some models, and the file does not say in
// which (format.FeatureRotaryByModel). It is read only.
func Torchtune() Dialect { return torchtune }

var torchtune = &pairDialect{
	readOnly: readOnly{"torchtune"}, needsScale: true, ofLanguage: true,
	rows: format.FeatureRotaryByModel,
	owns: func(k *pairKey) bool {
		return strings.HasPrefix(k.tail, "lora_a.") || strings.HasPrefix(k.tail, "lora_b.")
	},
	hintScale: "put the " + format.PEFTConfig + " of the training beside it, or set Options.Alpha=ALPHA, the " +
		"lora_alpha of the training, which is divided by the rank",
	beside: readTorchtuneConfig,
	adapt: func(k *pairKey, name string) {
		if module, ok := strings.CutSuffix(name, ".magnitude"); ok {
			k.module, k.role = module, roleMagnitude
		}
		renameKey(k, naming.FromTorchtune)
	},
}

// readTorchtuneConfig reads the scale from the configuration that torchtune writes for PEFT.
func readTorchtuneConfig(in *Input) (*besideScale, error) {
	text, err := in.ReadFile(format.PEFTConfig, maxSideBytes)
	if text == nil || err != nil {
		return nil, err
	}
	var c struct {
		Rank  int      `json:"r"`
		Alpha *float64 `json:"lora_alpha"`
		Base  string   `json:"base_model_name_or_path"`
	}
	if err := jsontext.Decode(text, &c); err != nil {
		return nil, fault.New(fault.Corrupt, "not the configuration of an adapter: %v", err).
			In(in.sibling(format.PEFTConfig))
	}
	if c.Alpha == nil {
		return nil, nil
	}
	b := &besideScale{file: "lora_alpha in " + format.PEFTConfig, alpha: *c.Alpha, hasAlpha: true, rank: c.Rank}
	if checkName(c.Base) == nil {
		b.base = c.Base
	}
	return b, nil
}
