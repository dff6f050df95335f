package resolve

import (
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// Explain says in words how merge treats the features of an adapter beyond the plain formula: a
// line for every feature that it applies, or applies by an option.
func Explain(a *format.Adapter) []string {
	where := placesOf(a)
	var lines []string
	for _, f := range slices.Sorted(maps.Keys(where)) {
		switch known := find(f); {
		case verdictOf(f) == NeedsOption:
			lines = append(lines, known.title+": with "+known.option)
		case verdictOf(f) == Refused:
		case f == format.FeatureExperts:
			lines = append(lines, "experts "+fault.List(where[f], 4)+": "+expertsText(a))
		case f == format.FeatureMultiheadAttention:
			lines = append(lines, known.title+"; PEFT adds its update twice, as Options.OutProjTwice does")
		default:
			lines = append(lines, known.title)
		}
	}
	return lines
}

// expertsText says how stacked experts of an adapter are read.
func expertsText(a *format.Adapter) string {
	text := "the shapes tell which dimension of an expert lora_A reads"
	said := make(map[string]bool)
	for i := range a.Layers {
		said[reads[a.Layers[i].Kind]] = true
	}
	delete(said, "")
	if len(said) == 0 {
		return text + ", and Options.ExpertInput where all experts are square"
	}
	return text + ", and of square ones its " + strings.Join(slices.Sorted(maps.Keys(said)), " or its ")
}
