// Package peft holds facts about PEFT, huggingface's library of adapters, that are not about its
// files.
package peft

import (
	"slices"
	"strings"
)

// Method is a method of PEFT that is not LoRA.
type Method struct {
	Name     string // as its paper spells it
	NoWeight bool   // it adds to what a model reads or computes, not to its weights
	ToLoRA   bool   // PEFT converts it (supports_lora_conversion of its layers)
}

// Methods are the methods that PEFT has and has had, up to 0.21, beside LORA, by their peft_type.
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

// MethodNames lists the names of the methods, sorted without regard to case.
func MethodNames() []string {
	var names []string
	for _, m := range Methods {
		names = append(names, m.Name)
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return names
}
