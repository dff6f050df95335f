package convert

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/format"
)

// isCompact reports whether the factors of linear layers may have other shapes than r×n and m×r.
// BD-LoRA stores one factor as diagonal blocks, QA-LoRA pools inputs, and MergedLinear holds
// several projections of a fused weight.
func (c *peftConfigFile) isCompact() bool {
	return slices.ContainsFunc(c.requires, func(r format.Requirement) bool {
		return r.Feature == format.FeatureBDLoRA || r.Feature == format.FeatureQALoRA || r.Feature == format.FeatureMergedLinear
	})
}

// checkCompact checks the rank of such factors. What their shapes mean depends on the base.
func (p *peftReader) checkCompact(l *format.Layer, a, b *format.Tensor, rank int) {
	point := len(b.Shape) == 3 && b.Shape[2] == 1 // MergedLinear stores B as a convolution with kernel size 1
	if len(a.Shape) != 2 || len(b.Shape) != 2 && !point {
		p.require(format.FeatureFactorShape, fmt.Sprintf("%s: lora_A %d, lora_B %d", l.Module, a.Shape, b.Shape))
		return
	}
	if want := uint64(rank) * p.config.projections(); a.Shape[0] != want || b.Shape[1] == 0 || want%b.Shape[1] != 0 {
		p.require(format.FeatureRankMismatch, fmt.Sprintf("%s: lora_A has %d rows and lora_B %d columns, the configuration says rank %d", l.Module, a.Shape[0], b.Shape[1], rank))
	}
}

// projections returns how many projections of a fused weight enable_lora adapts, each with its own
// rank; 1 for any other layer.
func (c *peftConfigFile) projections() uint64 {
	for _, r := range c.requires {
		adapted := r.Projections()
		if adapted == nil {
			continue
		}
		n := uint64(0)
		for _, is := range adapted {
			if is {
				n++
			}
		}
		return n
	}
	return 1
}
