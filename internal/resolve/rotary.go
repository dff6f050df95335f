package resolve

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// inOrder gives B of a layer that is in pairs the order of the base's rows.
func (p *plain) inOrder(b Factor) (Factor, error) {
	size := p.base.Config.HeadSize
	switch {
	case size == 0:
		return b, fault.New(fault.Unsupported, "%q has the rows of each attention head in the order of "+
			"llama.cpp, and the base does not say how many rows a head has", p.layer.Module).
			WithHint("put the model's config.json beside its weights (head_dim, or hidden_size and num_attention_heads)")
	case size%2 != 0 || uint64(b.Length)%size != 0:
		return b, fault.New(fault.Mismatch, "%q: B has %d rows, want a multiple of the base's head size, %d, "+
			"which must be even", p.layer.Module, b.Length, size).WithHint("%s", p.wrongBase())
	}
	b.HeadSize = int(size)
	return b, nil
}

// pairsElsewhere names the layers in the order of llama.cpp that have no such order: only B of a
// linear layer has it.
func pairsElsewhere(a *format.Adapter) []string {
	var names []string
	for _, r := range a.Requires {
		if r.Feature != format.FeatureRotaryPairs {
			continue
		}
		i := slices.IndexFunc(a.Layers, func(l format.Layer) bool { return l.Module == r.Where })
		if i < 0 || a.Layers[i].Kind != format.Linear || nOperands(&a.Layers[i]) > 2 {
			names = append(names, r.Where)
		}
	}
	if names == nil {
		return nil
	}
	return []string{"the order of llama.cpp is for B of linear layers without a bias or magnitudes: " + fault.List(names, 3)}
}
