package convert

import (
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/architecture"
	"github.com/loratool/loratool/internal/naming"
)

// A flat name does not say which of its underscores were dots. Only the list of all modules of an
// architecture does, so the names of a part of the model are restored all together or not at all.
// The others stay flat until merge compares them with the names of a base.

// dotted returns the dotted names of flat modules, as far as the tables of the architectures know
// them.
func dotted(modules []string) map[string]string {
	all := make(map[string]string)
	// sd-scripts numbers T5 as in SD 3; diffusers has it as the second text encoder of Flux.
	isFlux := slices.ContainsFunc(modules, func(m string) bool {
		rest, _ := strings.CutPrefix(m, "lora_unet_")
		return strings.HasPrefix(rest, "double_blocks_") || strings.HasPrefix(rest, "single_blocks_")
	})
	parts := make(map[naming.FlatPart]map[string]string) // the module without the prefix, by its flat name
	for _, m := range modules {
		part, rest, ok := naming.CutFlat(m)
		if !ok {
			continue
		}
		if parts[part] == nil {
			parts[part] = make(map[string]string)
		}
		parts[part][m] = rest
	}
	for part, rest := range parts {
		table, names := unflatten(rest, part.IsText)
		if table == nil {
			continue
		}
		component := part.Component
		switch {
		case !part.IsText:
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
func unflatten(flat map[string]string, isText bool) (*architecture.Table, map[string]string) {
	var found *architecture.Table
	var names map[string]string
	for _, t := range architecture.Tables() {
		if isText != (t.Component == "text_encoder") {
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
	_, rest, ok := naming.CutFlat(name)
	if !ok {
		rest, ok = strings.CutPrefix(name, "oft_") // kohya's OFT: oft_unet_, oft_te_
	}
	return ok && !strings.Contains(rest, ".")
}
