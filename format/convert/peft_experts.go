package convert

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// PEFT keeps the factors of a parameter (target_parameters) under the path of the parameter's
// module, so that a key does not say which parameter it is for. Those of one module nest, in the
// order in which the model registers them: the last one is outermost and has the module's own path,
// each one before it a base_layer more.

// parameters lists the parameters of a module that target_parameters names, in the order of their
// registration.
func (c *peftConfigFile) parameters(module string) []string {
	return naming.ParametersOf(module, c.Parameters)
}

// isExpert reports whether target_parameters names a parameter of a module.
func (c *peftConfigFile) isExpert(module string) bool {
	module, _ = naming.CutNesting(module)
	return len(c.parameters(module)) > 0
}

// patternName is the name of a layer in rank_pattern and alpha_pattern: the module's, or that of
// the parameter that its factors are for.
func (p *peftReader) patternName(path string) string {
	module, depth := naming.CutNesting(path)
	names := p.config.parameters(module)
	if len(names) == 0 || len(names) != p.levels[module] {
		return path
	}
	return module + "." + names[len(names)-1-depth]
}

// countLevels counts the factors of each module that nest.
func (p *peftReader) countLevels(modules map[string]map[peftRole]int) {
	p.levels = make(map[string]int)
	for path := range modules {
		module, _ := naming.CutNesting(path)
		p.levels[module]++
	}
}

// squareKind is the kind of experts whose matrices are square, if they are n×n and A has n columns:
// which of the two dimensions A reads depends on the release of PEFT that made the adapter.
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

// checkExperts checks the rank of stacked factors: A is (E·r)×in and B out×(E·r) for E experts.
func (p *peftReader) checkExperts(l *format.Layer, a, b *format.Tensor, rank int) (fits bool) {
	if len(a.Shape) != 2 || len(b.Shape) != 2 {
		p.require(format.FeatureFactorShape, fmt.Sprintf("%s: lora_A %d, lora_B %d", l.Module, a.Shape, b.Shape))
		return false
	}
	if a.Shape[0] != b.Shape[1] || a.Shape[0] == 0 || a.Shape[0]%uint64(rank) != 0 {
		p.require(format.FeatureRankMismatch, fmt.Sprintf("%s: lora_A has %d rows and lora_B %d columns, which is no multiple of the configuration's rank %d", l.Module, a.Shape[0], b.Shape[1], rank))
		return false
	}
	return true
}
