// Package peft holds facts about PEFT, Hugging Face's library of adapters, other than about its
// files.
package peft

import (
	"slices"
	"strings"
)

// Method is a PEFT method other than LoRA.
type Method struct {
	Name     string // as its paper spells it
	NoWeight bool   // it changes the inputs or activations of a model, not its weights
	ToLoRA   bool   // PEFT can convert it to LoRA (supports_lora_conversion)
}

// Methods lists, by peft_type, the methods besides LORA that PEFT has or had, up to 0.21.
var Methods = map[string]Method{
	"ADALORA": {Name: "AdaLoRA"}, "ADAMSS": {Name: "AdaMSS"}, "BDLORA": {Name: "BD-LoRA as a method of its own"}, "BEFT": {Name: "BEFT"}, "BOFT": {Name: "BOFT"},
	"BONE": {Name: "Bone"}, "C3A": {Name: "C3A", ToLoRA: true}, "DEFT": {Name: "DEFT"}, "DELORA": {Name: "DeLoRA", ToLoRA: true}, "DIAG": {Name: "a diagonal adapter"},
	"FINEGATES": {Name: "FineGates"}, "FOURIERFT": {Name: "FourierFT", ToLoRA: true}, "FROD": {Name: "FRoD"}, "GLORA": {Name: "GLoRA"}, "GRALORA": {Name: "GraLoRA", ToLoRA: true},
	"HIRA": {Name: "HiRA"}, "HRA": {Name: "HRA"}, "IA3": {Name: "IA3"}, "LILY": {Name: "Lily"}, "LN_TUNING": {Name: "LN tuning"}, "LOHA": {Name: "LoHa", ToLoRA: true},
	"LOKR": {Name: "LoKr", ToLoRA: true}, "MISS": {Name: "MiSS", ToLoRA: true}, "OFT": {Name: "OFT"}, "OSF": {Name: "OSF"}, "PEANUT": {Name: "PEANuT"}, "POLY": {Name: "Poly"},
	"PSOFT": {Name: "PSOFT", ToLoRA: true}, "PVERA": {Name: "PVeRA"}, "RANDLORA": {Name: "RandLoRA", ToLoRA: true}, "ROAD": {Name: "RoAd"}, "SHADOW": {Name: "a shadow model"},
	"SHIRA": {Name: "SHiRA"}, "SUPERTUNING": {Name: "supertuning"}, "TINYLORA": {Name: "TinyLoRA", ToLoRA: true}, "TRAINABLE_TOKENS": {Name: "trained tokens alone"},
	"UILINLORA": {Name: "UILinLoRA"}, "UNILORA": {Name: "Uni-LoRA", ToLoRA: true}, "VBLORA": {Name: "VB-LoRA", ToLoRA: true}, "VERA": {Name: "VeRA"}, "WAVEFT": {Name: "WaveFT"},
	"XLORA":           {Name: "X-LoRA, a mixture of adapters", NoWeight: true},
	"ADAPTION_PROMPT": {Name: "an adaption prompt (LLaMA-Adapter)", NoWeight: true}, "CARTRIDGE": {Name: "a cartridge", NoWeight: true},
	"CPT": {Name: "CPT", NoWeight: true}, "MULTITASK_PROMPT_TUNING": {Name: "multitask prompt tuning", NoWeight: true},
	"P_TUNING": {Name: "P-tuning", NoWeight: true}, "PREFIX_TUNING": {Name: "prefix tuning", NoWeight: true}, "PROMPT_TUNING": {Name: "prompt tuning", NoWeight: true},
}

// MethodNames returns the names of the methods, sorted without regard to case.
func MethodNames() []string {
	var names []string
	for _, m := range Methods {
		names = append(names, m.Name)
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return names
}
