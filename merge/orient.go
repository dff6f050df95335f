package merge

import (
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// conv1DModels are the model types of transformers whose linear layers are Conv1D, which stores its weight n×m.
var conv1DModels = map[string]bool{"gpt2": true, "openai-gpt": true, "imagegpt": true, "decision_transformer": true}

// conv1DNames are the leaf names that these models give to Conv1D modules.
var conv1DNames = map[string]bool{"c_attn": true, "c_proj": true, "c_fc": true, "q_attn": true}

// orientation decides whether the base stores the weight of a layer transposed. The shape tells, and where it is square, what
// the base is: its model type, and how it stores the other weights of modules with the same name. Only then the word of
// the adapter's configuration counts, which is often wrong.
func (r *resolver) orientation(l *format.Layer, shape []uint64, n, m uint64) (transposed bool, err error) {
	if l.Kind == format.Embedding {
		if len(shape) == 2 && shape[0] == n && shape[1] == m {
			return true, nil
		}
		return false, fault.New(fault.Mismatch, "the embedding %q: A has %d columns and B %d rows, the base's weight has shape %d", l.Module, n, m, shape).
			WithHint("%s", r.wrongBase())
	}
	straight, turned := len(shape) == 2 && shape[0] == m && shape[1] == n, len(shape) == 2 && shape[0] == n && shape[1] == m
	switch {
	case straight && turned:
		return r.orientSquare(l), nil
	case straight || turned:
		r.compareFlag(l, turned)
		return turned, nil
	}
	if len(shape) > 2 {
		return false, fault.New(fault.Mismatch, "%q: the base's weight has shape %d, and the factors are those of a linear layer %d×%d", l.Module, shape, m, n)
	}
	return false, fault.New(fault.Mismatch, "%q: B·A is %d×%d, the base's weight has shape %d", l.Module, m, n, shape).WithHint("%s", r.wrongBase())
}

func (r *resolver) wrongBase() string {
	if name := r.adapter.Base.Name; name != "" {
		return "the adapter was made for another base: its configuration names " + quote(name)
	}
	return "the adapter was made for another base"
}

func (r *resolver) orientSquare(l *format.Layer) bool {
	leaf := leafOf(l.Module)
	config := r.plan.base.Config
	var turned bool
	switch votes := r.transposed[leaf]; {
	case votes != 0:
		turned = votes > 0
	case config.ModelType != "":
		turned = conv1DModels[config.ModelType] && conv1DNames[leaf]
	case r.transposed[""] != 0 && conv1DNames[leaf]:
		turned = r.transposed[""] > 0
	case conv1DNames[leaf] && r.adapter.Orientation != format.OrientationUnknown:
		r.guessed = append(r.guessed, l.Module)
		return r.adapter.Orientation == format.NxM
	default:
		// torch.nn.Linear, which every other model uses.
	}
	r.compareFlag(l, turned)
	return turned
}

// compareFlag notes a layer whose orientation is not what the adapter's configuration says.
func (r *resolver) compareFlag(l *format.Layer, turned bool) {
	if r.adapter.Orientation != format.OrientationUnknown && turned != (r.adapter.Orientation == format.NxM) {
		r.misoriented = append(r.misoriented, l.Module)
	}
}

// countOrientations counts, per leaf name and under "" for all Conv1D names together, the layers whose shape shows that
// they are stored transposed, minus those stored straight.
func (r *resolver) countOrientations() map[string]int {
	votes := make(map[string]int)
	tensors := r.manifest.Tensors
	for i := range r.adapter.Layers {
		l := &r.adapter.Layers[i]
		name, _ := r.mapping.Lookup(l.Module + ".weight")
		ref, ok := r.plan.base.Lookup(name)
		if !ok || l.Kind != format.Linear || len(ref.Tensor.Shape) != 2 {
			continue
		}
		shape, n, m := ref.Tensor.Shape, tensors[l.Roles[format.RoleA]].Shape[1], tensors[l.Roles[format.RoleB]].Shape[0]
		vote := 0
		switch {
		case n == m:
		case shape[0] == m && shape[1] == n:
			vote = -1
		case shape[0] == n && shape[1] == m:
			vote = 1
		}
		leaf := leafOf(l.Module)
		votes[leaf] += vote
		if conv1DNames[leaf] {
			votes[""] += vote
		}
	}
	return votes
}

func leafOf(module string) string {
	_, leaf, found := cutLast(module, ".")
	if !found {
		return module
	}
	return leaf
}

func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"` }
