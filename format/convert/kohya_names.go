package convert

import (
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/architecture"
)

// A flat name does not say which of its underscores were dots. Only the list of all modules of an
// architecture does, so the names of a part of the model are restored all together or not at all.
// The others stay flat until merge compares them with the names of a base.

// kohyaParts are the prefixes of flat names and the components that they stand for. A denoiser has
// the component of its architecture.
var kohyaParts = []struct {
	prefix    string
	component string // "" for a denoiser
}{
	{"lora_unet_", ""},        // also every transformer
	{"lora_transformer_", ""}, // OneTrainer
	{"lycoris_", ""},          // LyCORIS outside kohya, SimpleTuner
	{"lora_te_", "text_encoder"},
	{"lora_te1_", "text_encoder"},
	{"lora_te2_", "text_encoder_2"},
	{"lora_te3_", "text_encoder_3"},
	{"lora_prior_unet_", ""}, // Stable Cascade
	{"lora_prior_te_", "text_encoder"},
	{"oft_unet_", ""}, // kohya's OFT
	{"oft_te_", "text_encoder"},
}

// dotted returns the dotted names of flat modules, as far as the tables of the architectures know
// them.
func dotted(modules []string) map[string]string {
	all := make(map[string]string)
	// sd-scripts numbers T5 as in SD 3; diffusers has it as the second text encoder of Flux.
	isFlux := slices.ContainsFunc(modules, func(m string) bool {
		rest, _ := strings.CutPrefix(m, "lora_unet_")
		return strings.HasPrefix(rest, "double_blocks_") || strings.HasPrefix(rest, "single_blocks_")
	})
	for _, part := range kohyaParts {
		rest := make(map[string]string) // the module without the prefix, by its flat name
		for _, m := range modules {
			if name, ok := strings.CutPrefix(m, part.prefix); ok {
				rest[m] = strings.TrimPrefix(name, "_") // Wan-Fun writes lora_unet__
			}
		}
		table, names := unflatten(rest, part.component)
		if table == nil {
			continue
		}
		component := part.component
		switch {
		case component == "":
			component = table.Component
		case component == "text_encoder_3" && isFlux:
			component = "text_encoder_2"
		}
		for flat, name := range names {
			all[flat] = component + "." + name
		}
	}
	return all
}

// unflatten returns the names of modules in the first table that knows each of them by one name. It
// returns nil if there is none, or if another table gives other names.
func unflatten(flat map[string]string, component string) (*architecture.Table, map[string]string) {
	var found *architecture.Table
	var names map[string]string
	for _, t := range architecture.Tables() {
		isText := t.Component == "text_encoder"
		if isText != strings.HasPrefix(component, "text_encoder") {
			continue
		}
		these := make(map[string]string, len(flat))
		for m, name := range flat {
			if modules := t.Unflatten(name); len(modules) == 1 {
				these[m] = modules[0]
			}
		}
		switch {
		case len(these) < len(flat) || len(flat) == 0:
		case found == nil:
			found, names = t, these
		case !maps.Equal(names, these):
			return nil, nil
		}
	}
	return found, names
}

// isFlat reports whether a name begins like the flat names of kohya.
func isFlat(name string) bool {
	for _, part := range kohyaParts {
		if strings.HasPrefix(name, part.prefix) {
			return !strings.Contains(name, ".")
		}
	}
	return false
}
