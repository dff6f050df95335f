package merge

import (
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// orientation decides whether the base stores the weight of a layer transposed. The shape tells, and where it is square, what
// the base is: its model type, and how it stores the other weights of modules with the same name. Only then the word of
// the adapter's configuration counts, which is often wrong.
func (r *resolver) orientation(l *format.Layer, shape, a, b []uint64) (transposed bool, err error) {
	if l.Kind == format.Conv {
		return false, r.checkConvolution(l, shape, a, b)
	}
	n, m := a[1], b[0]
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
	leaf := naming.Leaf(l.Module)
	config := r.plan.base.Config
	var turned bool
	switch votes := r.transposed[leaf]; {
	case votes != 0:
		turned = votes > 0
	case config.ModelType != "":
		turned = naming.IsConv1DModel(config.ModelType) && naming.IsConv1DName(leaf)
	case r.transposed[""] != 0 && naming.IsConv1DName(leaf):
		turned = r.transposed[""] > 0
	case naming.IsConv1DName(leaf) && r.adapter.Orientation != format.OrientationUnknown:
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
		leaf := naming.Leaf(l.Module)
		votes[leaf] += vote
		if naming.IsConv1DName(leaf) {
			votes[""] += vote
		}
	}
	return votes
}

func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"` }
