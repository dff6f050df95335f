package convert

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// LoRALib returns the dialect of loralib (microsoft/LoRA), the code of the paper: MODULE.lora_A and
// MODULE.lora_B, as lora_state_dict lists them, and biases that the training changed. The file says
// no scale: it is Options.Alpha/r, or Options.Scale. A MergedLinear has one B for some of the
// projections of a weight, and Options.EnableLoRA says which. It is read only.
func LoRALib() Dialect { return loralib }

var loralib = &pairDialect{
	readOnly: readOnly{"loralib"}, owns: isLoRALibs, needsScale: true, fused: true,
	ofLanguage: true,
	hintScale: "set Options.Alpha=ALPHA, the lora_alpha of the training, which is divided by the rank, " +
		"or Options.Scale=SCALE",
	adapt: func(k *pairKey, name string) {
		if k.role == "" && strings.HasSuffix(name, ".bias") {
			k.saved = k.module
		}
		if k.isFactor() && naming.IsInputEmbedding(k.module) {
			k.role = map[format.Role]format.Role{roleA: roleEmbeddingA, roleB: roleEmbeddingB}[k.role]
		}
	},
}

// isLoRALibs: the bare names of the factors, which are parameters of the layer. AdapterHub's
// adapters have them below a list.
func isLoRALibs(k *pairKey) bool {
	return (k.tail == "lora_A" || k.tail == "lora_B") && !strings.Contains(k.module, ".loras.")
}

// isMergedLinear reports whether a layer is a MergedLinear: A has the ranks of all projections that
// it changes, and B those of one. Where it changes one projection, only the name tells.
func isMergedLinear(p *pairReader, l *format.Layer, a, b []uint64) bool {
	return p.fused && len(a) == 2 && len(b) == 2 && b[1] > 0 && b[1] <= maxRank && a[0]%b[1] == 0 &&
		(a[0] > b[1] || a[0] == b[1] && p.options.nEnabled() == 1 && naming.IsFused(l.Module))
}

// addMergedLinear completes a MergedLinear.
func addMergedLinear(p *pairReader, l *format.Layer, a, b []uint64) {
	l.Kind, l.Rank = format.Other, int(b[1])
	q := requirement(format.FeatureMergedLinear, fmt.Sprintf("%s: A %d, B %d", l.Module, a, b))
	switch enabled, n := p.options.EnableLoRA, p.options.nEnabled(); {
	case enabled == nil:
	case a[0] == n*b[1]:
		q = format.MergedLinear(fmt.Append(nil, strings.ReplaceAll(fmt.Sprint(enabled), " ", ",")))
	default: // which leaves the projections open
		q.Where = fmt.Sprintf("%s: A %d and B %d are for %d projections, and the list enables %d", l.Module, a, b, a[0]/b[1], n)
	}
	p.out.Requires = append(p.out.Requires, q)
}

// nEnabled counts the projections that Options.EnableLoRA enables.
func (o *Options) nEnabled() (n uint64) {
	for _, is := range o.EnableLoRA {
		if is {
			n++
		}
	}
	return n
}
