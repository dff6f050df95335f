package merge

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// checkTied refuses to change a tensor that the model uses twice, as input embedding and as output head: the change would
// leak into the other end.
func (r *resolver) checkTied(name string) error {
	module := naming.Module(name)
	isEmbedding, isHead := naming.IsInputEmbedding(module), naming.IsHead(module)
	if !isEmbedding && !isHead || naming.Leaf(name) == "bias" { // only weights are tied
		return nil
	}
	if r.plan.options.Tied == Fold {
		return nil
	}
	tied, certain := r.isTied()
	if !tied || isEmbedding && r.meansBothEnds() {
		return nil
	}
	if !certain {
		if isEmbedding {
			r.plan.warn("%q is changed, the base holds no output head, and there is no config.json to say whether the two are tied: the head may change too", name)
		}
		return nil
	}
	return r.tiedError(name)
}

// meansBothEnds reports whether the adapter says that its change of the embedding is meant for the tied head as well
// (ensure_weight_tying of PEFT), so that changing the one tensor is what it asks for.
func (r *resolver) meansBothEnds() bool {
	return r.hasTwins || slices.ContainsFunc(r.adapter.Requires, func(q format.Requirement) bool { return q.Feature == format.FeatureWeightTying })
}

func (r *resolver) tiedError(name string) error {
	return fault.New(fault.Unsupported, "the adapter changes %q, which the base has tied to its other end: input embedding and output head are one tensor, and the change would apply to both", name).
		WithHint("--tied untie makes the head a tensor of its own; --tied fold makes the change to both ends")
}

func (r *resolver) isTied() (tied, certain bool) { return r.plan.isTied() }

// isTied reports whether the base ties its head to its embedding, and whether that is certain or only possible.
func (p *Plan) isTied() (tied, certain bool) {
	c := p.base
	if !c.Config.Found {
		return naming.IsTied(c.Names(), "", nil, c.Config.TieWordEmbeddings), c.Config.TieWordEmbeddings != nil
	}
	return naming.IsTied(c.Names(), c.Config.ModelType, c.Config.Architectures, c.Config.TieWordEmbeddings), true
}

// explainMissing says why the base lacks tensors that the adapter wants to change.
func (r *resolver) explainMissing(wanted, missing []string) error {
	if err := r.explainAbsent(); err != nil {
		return err
	}
	for _, name := range missing {
		module := naming.Module(name)
		if naming.IsHead(module) {
			if tied, certain := r.isTied(); tied && certain {
				return r.tiedError(name)
			}
		}
		renamed := r.mapping.Renamed(module)
		switch {
		case r.names.Has(renamed+".qweight") || r.names.Has(renamed+".qzeros"):
			return fault.New(fault.Unsupported, "%q of the base is quantised (it has a qweight and no weight)", module).
				WithHint("merge into the checkpoint that it was quantised from, then quantise again")
		case strings.HasSuffix(name, ".bias") && r.names.Has(renamed+".weight"):
			return fault.New(fault.Mismatch, "the adapter changes the bias of %q, and the base has none there", module).
				WithHint("%s", r.wrongBase())
		}
	}
	if len(missing) == len(wanted) {
		return fault.New(fault.Mismatch, "the base has none of the %d tensors that the adapter changes: %s", len(wanted), fault.List(missing, 3)).
			WithHint("%s", r.wrongBase())
	}
	e := fault.New(fault.Mismatch, "the base lacks %d of the %d tensors that the adapter changes: %s", len(missing), len(wanted), fault.List(missing, 3))
	for _, b := range r.adapter.Beside {
		if slices.Contains(missing, b.Target) {
			return e.WithHint("the adapter saves modules whole that the base does not have, such as a new head; give a base that has them")
		}
	}
	return e.WithHint("%s", r.wrongBase())
}
