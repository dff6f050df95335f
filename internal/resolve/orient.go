package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

func (r *resolver) countVotes() votes {
	v := make(votes)
	tensors := r.manifest.Tensors
	for i := range r.model.Layers {
		l := &r.model.Layers[i]
		if l.Kind != format.Linear {
			continue
		}
		shape := r.tensor(l.Module + ".weight").Shape
		if len(shape) != 2 {
			continue
		}
		n, m := tensors[l.Roles[format.RoleA]].Shape[1], tensors[l.Roles[format.RoleB]].Shape[0]
		vote := 0
		switch {
		case n == m:
		case shape[0] == m && shape[1] == n:
			vote = -1
		case shape[0] == n && shape[1] == m:
			vote = 1
		}
		leaf := naming.Leaf(l.Module)
		v[leaf] += vote
		if naming.IsConv1DName(leaf) {
			v[""] += vote
		}
	}
	return v
}

// orientSquare decides whether the base stores a square weight transposed: by its model type, and by
// how it stores the other weights of modules with the same name. The adapter's orientation does not
// decide: producers are often wrong about it, and the content id does not cover it. A layer that
// nothing else decides is refused.
func (r *resolver) orientSquare(l *format.Layer) (bool, error) {
	if r.votes == nil {
		r.votes = r.countVotes()
	}
	leaf := naming.Leaf(l.Module)
	modelType := r.base.Config.ModelType
	var turned bool
	switch {
	case r.votes[leaf] != 0:
		turned = r.votes[leaf] > 0
	case modelType != "":
		turned = naming.IsConv1DModel(modelType) && naming.IsConv1DName(leaf)
	case r.votes[""] != 0 && naming.IsConv1DName(leaf):
		turned = r.votes[""] > 0
	case r.reading.LinearInput > 0 && naming.IsConv1DName(leaf):
		turned = r.reading.LinearInput == 1
	case naming.IsConv1DName(leaf) && r.model.Orientation == format.NxM:
		return false, fault.New(fault.Unsupported, "the weight of %q is square, and nothing but fan_in_fan_out of the adapter's configuration tells whether the base stores it transposed: the base has no config.json, and no other weight shows it", l.Module).
			WithHint("put the model's config.json beside its weights, or say it with Options.LinearInput: 1 where lora_A reads the first dimension of the weight (Conv1D of GPT-2), 2 where it reads the second (torch.nn.Linear)")
	default:
		// torch.nn.Linear, which every other model uses.
	}
	r.compareFlag(l, turned)
	return turned, nil
}
