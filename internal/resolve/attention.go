package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// attentionWeight returns the weight that a layer of an nn.MultiheadAttention changes:
// in_proj_weight, which fuses three projections, or out_proj's.
func (r *resolver) attentionWeight(l *format.Layer) string {
	module, _ := naming.CutWrapper(l.Module)
	if end := tail(module, 2); r.names.HasTail(end+".in_proj_weight") && !r.names.HasTail(end+".weight") {
		return module + ".in_proj_weight"
	}
	return module + ".weight"
}

// outProj notes such a layer, and returns how often its update counts. PEFT up to 0.21 wraps
// out_proj twice, alone and as a part of its module, so it adds the update twice in training,
// running and merging. The adapter's formula adds it once.
func (p *plain) outProj() float64 {
	l := p.layer
	if p.reading.OutProjTwice {
		p.notes.of(l.Module, "the update of out_proj is added twice, as PEFT does")
		return 2
	}
	p.notes.of(l.Module, "the update of out_proj is added once, as the adapter's formula says; PEFT up to 0.21 adds it twice when it runs or merges the adapter, and so does Options.OutProjTwice")
	return 1
}
