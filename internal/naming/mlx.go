package naming

import "strings"

// mlx-lm keeps the names of transformers' modules, but for the stacks of experts, which are modules
// of its own: experts.gate_proj of qwen3_moe is switch_mlp.gate_proj there.

var (
	// switches are the names of stacks of experts in mlx-lm, and what they are in transformers.
	switches = []struct{ mlx, name string }{
		{".switch_mlp.", ".experts."}, {".experts.switch_glu.", ".experts."},
	}
	// plainSwitches are the model types whose stacks mlx-lm calls experts.
	plainSwitches = set("gpt_oss", "llama4", "llama4_text", "afmoe", "dots1", "Klear")
	// gluSwitches are the model types whose stacks mlx-lm calls experts.switch_glu.
	gluSwitches = set("gemma4", "gemma4_text")
	// ofSwitch maps the weights of an expert to the modules of mlx-lm's stacks.
	ofSwitch = map[string]string{
		"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj",
		"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj",
	}
)

// FromMLX returns the name of a module of mlx-lm in transformers.
func FromMLX(module string) string {
	for _, s := range switches {
		if at := strings.LastIndex(module, s.mlx); at >= 0 {
			return module[:at] + s.name + module[at+len(s.mlx):]
		}
	}
	return module
}

// ToMLX returns the name in mlx-lm of a stack of experts, whose name in transformers is that of a
// weight which every expert has, such as experts.w1. A model type that is not known has the name
// that most have. ok is false for any other module.
func ToMLX(module, modelType string) (name string, ok bool) {
	experts, leaf := Module(module), ofSwitch[Leaf(module)]
	if !IsExperts(experts) || leaf == "" {
		return "", false
	}
	switch {
	case plainSwitches[modelType]:
		return experts + "." + leaf, true
	case gluSwitches[modelType]:
		return experts + ".switch_glu." + leaf, true
	}
	return strings.TrimSuffix(experts, "experts") + "switch_mlp." + leaf, true
}

// LinearToMLX returns the name in mlx-lm of a module that is no stack of experts. Models with
// several modalities have their text model in language_model there, as on disk.
func LinearToMLX(module string) string {
	if rest, ok := strings.CutPrefix(module, "model.language_model."); ok {
		return "language_model.model." + rest
	}
	return module
}
