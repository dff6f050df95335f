package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// attentionWeight is the name of the weight that a layer of an nn.MultiheadAttention changes: the
// one that has those of its three projections in one, or that of its out_proj.
func (r *resolver) attentionWeight(l *format.Layer) string {
	module, _ := naming.CutWrapper(l.Module)
	if end := tail(module, 2); r.names.HasTail(end+".in_proj_weight") && !r.names.HasTail(end+".weight") {
		return module + ".in_proj_weight"
	}
	return module + ".weight"
}

// outProj notes such a layer, and returns how often its update counts. PEFT, up to 0.21 at least,
// adds it twice, in its forward pass and in merging, as the module is adapted once alone and once
// as a part; the adapter means it once, and was trained with it twice.
func (p *plain) outProj() float64 {
	l := p.layer
	if p.reading.OutProjTwice {
		p.notes.of(l.Module, "the update of out_proj is added twice, as PEFT does")
		return 2
	}
	p.notes.of(l.Module, "the update of out_proj is added once, as the adapter means it; PEFT up to 0.21 adds it twice when it runs and when it merges, which Options.OutProjTwice does")
	return 1
}
