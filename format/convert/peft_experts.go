package convert

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// PEFT stores the factors of a parameter (target_parameters) under the path of the parameter's
// module, so a key does not say which parameter it belongs to. Several parameters of one module
// nest in the order in which the model registers them. The last one is outermost and has the
// module's own path; each earlier one has one more base_layer in its path.

// parameters returns the parameters of a module that target_parameters names, in the order in which
// the model registers them.
func (c *peftConfigFile) parameters(module string) []string {
	return naming.ParametersOf(module, c.Parameters)
}

// isExpert reports whether target_parameters names a parameter of a module.
func (c *peftConfigFile) isExpert(module string) bool {
	module, _ = naming.CutNesting(module)
	return len(c.parameters(module)) > 0
}

// patternName returns the name of a layer in rank_pattern and alpha_pattern: that of the module, or
// that of the parameter if the factors belong to one.
func (p *peftReader) patternName(path string) string {
	module, depth := naming.CutNesting(path)
	names := p.config.parameters(module)
	if len(names) == 0 || len(names) != p.levels[module] {
		return path
	}
	return module + "." + names[len(names)-1-depth]
}

// countLevels counts the nested factors of each module.
func (p *peftReader) countLevels(modules map[string]map[peftRole]int) {
	p.levels = make(map[string]int)
	for path := range modules {
		module, _ := naming.CutNesting(path)
		p.levels[module]++
	}
}

// squareKind returns the kind of experts with square matrices, where the shapes do not show which
// dimension A reads. That depends on the release of PEFT that trained the adapter. Up to 0.18 A
// read the first dimension. 0.19.0 inverted a condition by mistake, so that A read the outputs.
// Since 0.19.1 A reads the inputs.
func (c *peftConfigFile) squareKind() format.Kind {
	release := make([]int, 3)
	n, _ := fmt.Sscanf(c.PEFTVersion, "%d.%d.%d", &release[0], &release[1], &release[2])
	switch first := []int{0, 19, 0}; {
	case n < 2:
		return format.Expert
	case slices.Compare(release, first) < 0:
		return format.ExpertFirst
	case slices.Equal(release, first):
		return format.ExpertOutputs
	}
	return format.ExpertInputs
}

// noteOrder notes a configuration of a program that stored lora_B of stacked experts with one
// expert after the other: unsloth did until September 2026, and Megatron-Bridge does, which writes
// fewer fields than any release of PEFT that knows target_parameters. The shapes are those of PEFT.
func (c *peftConfigFile) noteOrder(fields map[string]json.RawMessage) {
	var mapping struct {
		IsUnsloth bool `json:"unsloth_fixed"`
	}
	jsontext.Decode(fields["auto_mapping"], &mapping)
	_, hasVersion := fields["peft_version"]
	_, isPEFTs := fields["exclude_modules"]
	switch {
	case mapping.IsUnsloth:
		c.note("unsloth trained the adapter, and until September 2026 it stored lora_B of stacked experts with one " +
			"expert after the other, which no shape shows; if it is of that time, set Options.ExpertsSlowest")
	case !hasVersion && !isPEFTs:
		c.note("another program than PEFT wrote the configuration of the stacked experts; Megatron-Bridge stores lora_B " +
			"with one expert after the other, which no shape shows; if it is from there, set Options.ExpertsSlowest")
	}
}

// checkExperts checks the rank of stacked factors: A is (E·r)×in and B is out×(E·r) for E experts.
// PEFT stores the columns of B with the expert changing fastest. Other programs wrote them expert
// by expert (noteOrder); only the user can tell.
func (p *peftReader) checkExperts(l *format.Layer, a, b *format.Tensor, rank int) (fits bool) {
	if len(a.Shape) != 2 || len(b.Shape) != 2 {
		p.require(format.FeatureFactorShape, fmt.Sprintf("%s: lora_A %d, lora_B %d", l.Module, a.Shape, b.Shape))
		return false
	}
	if a.Shape[0] != b.Shape[1] || a.Shape[0] == 0 || a.Shape[0]%uint64(rank) != 0 {
		p.require(format.FeatureRankMismatch, fmt.Sprintf("%s: lora_A has %d rows and lora_B %d columns, want one multiple of the configuration's rank %d", l.Module, a.Shape[0], b.Shape[1], rank))
		return false
	}
	return true
}
