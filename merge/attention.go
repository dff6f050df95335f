package merge

import (
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// wrapped is what PEFT puts between an nn.MultiheadAttention and its out_proj.
const wrapped = ".base_layer."

// weightName is the name of the weight that a layer changes. An nn.MultiheadAttention has those of its three projections in one.
func (r *resolver) weightName(l *format.Layer) string {
	module := strings.Replace(l.Module, wrapped, ".", 1)
	if end := tail(module, 2); r.names.HasTail(end+".in_proj_weight") && !r.names.HasTail(end+".weight") {
		return module + ".in_proj_weight"
	}
	return module + ".weight"
}

// outProj notes a layer that is the out_proj of an nn.MultiheadAttention, and returns how often its update counts. PEFT, up to 0.21 at
// least, adds it twice, in its forward pass and in merging, as the module is adapted once alone and once as a part; the adapter
// means it once, and was trained with it twice.
func (r *resolver) outProj(l *format.Layer) float64 {
	if !strings.Contains(l.Module, wrapped) {
		return 1
	}
	r.outProjs = append(r.outProjs, l.Module)
	if r.plan.options.OutProjTwice {
		return 2
	}
	return 1
}

func (r *resolver) noteOutProjs() {
	switch modules := fault.List(r.outProjs, 3); {
	case len(r.outProjs) == 0:
	case r.plan.options.OutProjTwice:
		r.plan.warn("the update of out_proj is added twice, as PEFT does: %s", modules)
	default:
		r.plan.warn("the update of out_proj is added once, as the adapter means it; PEFT up to 0.21 adds it twice when it runs and when it merges, which --out-proj-twice does: %s", modules)
	}
}
