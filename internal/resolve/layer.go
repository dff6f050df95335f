package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// plain is a layer whose factors are those of the formula: a linear layer, an embedding or a
// convolution.
type plain struct {
	*resolver
	layer *format.Layer
}

func (p *plain) wants() []string {
	names := []string{p.weightName(p.layer)}
	if _, ok := p.layer.Roles[format.RoleBias]; ok {
		names = append(names, p.layer.Module+".bias")
	}
	return names
}

func (p *plain) add() error {
	l := p.layer
	x, a, b, err := p.term(l)
	if err != nil {
		return err
	}
	if isOutProj(l) {
		x.Scale *= p.outProj(l)
	}
	c, err := p.change(p.weightName(l), false)
	if err != nil {
		return err
	}
	transposed, err := p.orientation(l, c.Shape, a.Tensor().Shape, b.Tensor().Shape)
	if err != nil {
		return err
	}
	c.add(x, wholeB(b, l.Rank), WholeA(a, l.Rank), transposed)
	if p.has(format.FeaturePiSSA) || p.has(format.FeatureOLoRA) {
		if err := p.addResidual(l, c, transposed); err != nil {
			return err
		}
	}
	if _, ok := l.Roles[format.RoleMagnitude]; ok || p.has(format.FeatureDoRA) {
		if err := p.addMagnitude(l, c, transposed); err != nil {
			return err
		}
	}
	if i, ok := l.Roles[format.RoleBias]; ok {
		return p.addBias(x, p.blob(i))
	}
	return nil
}

// addBias adds the bias of lora_B, with the scale of the layer's term.
func (p *plain) addBias(x Term, b Blob) error {
	c, err := p.change(x.Module+".bias", false)
	if err != nil {
		return err
	}
	if have, want := b.Tensor().Elements(), c.Elements(); have != want || len(c.Shape) != 1 {
		return fault.New(fault.Mismatch, "lora_B.bias of %q has %d elements, the base's bias has shape %d", x.Module, have, c.Shape)
	}
	x.Rank, x.Left, x.Right = 1, one, WholeA(b, 1)
	c.Terms = append(c.Terms, x)
	return nil
}

// weightName is the name of the weight that a layer changes: its module's, or one that the module
// has for several of its parts.
func (r *resolver) weightName(l *format.Layer) string {
	if !r.names.HasTail(tail(l.Module, 2) + ".weight") {
		return r.attentionWeight(l)
	}
	return l.Module + ".weight"
}

// orientation decides whether the base stores the weight of a layer transposed. The shape tells, and
// where it is square, orientSquare.
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
		return r.orientSquare(l)
	case straight || turned:
		r.compareFlag(l, turned)
		return turned, nil
	}
	if len(shape) > 2 {
		return false, fault.New(fault.Mismatch, "%q: the base's weight has shape %d, and the factors are those of a linear layer %d×%d", l.Module, shape, m, n).
			WithHint("%s", r.wrongBase())
	}
	return false, fault.New(fault.Mismatch, "%q: B·A is %d×%d, the base's weight has shape %d", l.Module, m, n, shape).WithHint("%s", r.wrongBase())
}

// compareFlag notes a layer whose orientation is not what the adapter's configuration says.
func (r *resolver) compareFlag(l *format.Layer, turned bool) {
	if r.model.Orientation != format.OrientationUnknown && turned != (r.model.Orientation == format.NxM) {
		r.notes.of(l.Module, "fan_in_fan_out of the adapter's configuration does not fit the base, which decides")
	}
}
