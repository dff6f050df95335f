package resolve

// peftType is a method of PEFT that is not LoRA.
type peftType struct {
	name     string // as its paper spells it
	noWeight bool   // it adds to what a model reads or computes, not to its weights
	toLoRA   bool   // PEFT converts it (supports_lora_conversion of its layers)
}

// peftTypes are the values of peft_type that PEFT has and has had, up to 0.21, beside LORA.
var peftTypes = map[string]peftType{
	"ADALORA": {name: "AdaLoRA"}, "ADAMSS": {name: "AdaMSS"}, "BDLORA": {name: "BD-LoRA as a method of its own"}, "BEFT": {name: "BEFT"}, "BOFT": {name: "BOFT"},
	"BONE": {name: "Bone"}, "C3A": {name: "C3A", toLoRA: true}, "DEFT": {name: "DEFT"}, "DELORA": {name: "DeLoRA", toLoRA: true}, "DIAG": {name: "a diagonal adapter"},
	"FINEGATES": {name: "FineGates"}, "FOURIERFT": {name: "FourierFT", toLoRA: true}, "FROD": {name: "FRoD"}, "GLORA": {name: "GLoRA"}, "GRALORA": {name: "GraLoRA", toLoRA: true},
	"HIRA": {name: "HiRA"}, "HRA": {name: "HRA"}, "IA3": {name: "IA3"}, "LILY": {name: "Lily"}, "LN_TUNING": {name: "LN tuning"}, "LOHA": {name: "LoHa", toLoRA: true},
	"LOKR": {name: "LoKr", toLoRA: true}, "MISS": {name: "MiSS", toLoRA: true}, "OFT": {name: "OFT"}, "OSF": {name: "OSF"}, "PEANUT": {name: "PEANuT"}, "POLY": {name: "Poly"},
	"PSOFT": {name: "PSOFT", toLoRA: true}, "PVERA": {name: "PVeRA"}, "RANDLORA": {name: "RandLoRA", toLoRA: true}, "ROAD": {name: "RoAd"}, "SHADOW": {name: "a shadow model"},
	"SHIRA": {name: "SHiRA"}, "SUPERTUNING": {name: "supertuning"}, "TINYLORA": {name: "TinyLoRA", toLoRA: true}, "TRAINABLE_TOKENS": {name: "trained tokens alone"},
	"UILINLORA": {name: "UILinLoRA"}, "UNILORA": {name: "Uni-LoRA", toLoRA: true}, "VBLORA": {name: "VB-LoRA", toLoRA: true}, "VERA": {name: "VeRA"}, "WAVEFT": {name: "WaveFT"},
	"XLORA":           {name: "X-LoRA, a mixture of adapters", noWeight: true},
	"ADAPTION_PROMPT": {name: "an adaption prompt (LLaMA-Adapter)", noWeight: true}, "CARTRIDGE": {name: "a cartridge", noWeight: true},
	"CPT": {name: "CPT", noWeight: true}, "MULTITASK_PROMPT_TUNING": {name: "multitask prompt tuning", noWeight: true},
	"P_TUNING": {name: "P-tuning", noWeight: true}, "PREFIX_TUNING": {name: "prefix tuning", noWeight: true}, "PROMPT_TUNING": {name: "prompt tuning", noWeight: true},
}

// explainType says what an adapter of another method is, and what can be done with it.
func explainType(value string) explanation {
	t, known := peftTypes[value]
	switch {
	case !known:
		return explanation{"it is " + value + ", not LoRA, and no method of PEFT up to 0.21", "if a newer PEFT made it, merge with that"}
	case t.noWeight:
		return explanation{"it is " + t.name + ", not LoRA: it adds to what the model reads or computes, and nothing to its weights", "use it with PEFT, unmerged"}
	case t.toLoRA:
		return explanation{"it is " + t.name + ", not LoRA", "merge with PEFT, or convert it to LoRA with save_as_lora of PEFT from 0.19 on"}
	}
	return explanation{"it is " + t.name + ", not LoRA", "merge with PEFT"}
}
