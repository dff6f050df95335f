package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// addMagnitude adds the magnitudes of a DoRA layer (Liu et al., arXiv:2402.09353).
func (p *plain) addMagnitude(c *Change, transposed bool) error {
	l := p.layer
	i := l.Roles[format.RoleMagnitude]
	if p.Weight != 1 {
		return fault.New(fault.Unsupported, "%q is DoRA, which replaces the magnitudes of the weight, and they cannot be weighted by %v", l.Module, p.Weight).
			WithHint("use the weight 1")
	}
	nRows, nCols := c.Matrix()
	want := nRows
	if transposed {
		want = nCols
	}
	m := p.blob(i)
	if have := m.Tensor(); have.Elements() != want || !have.DType.IsFloat() {
		return fault.New(fault.Mismatch, "%q has the magnitudes %v of shape %d, and the base's weight has %d output features", l.Module, have.DType, have.Shape, want).
			WithHint("%s", p.wrongBase())
	}
	if c.DoRA != nil {
		return fault.New(fault.Unsupported, "two adapters rescale %q by magnitudes of DoRA, and which comes first changes the result", c.Name).
			WithHint("merge one adapter, then the other into what comes out")
	}
	c.DoRA = &Magnitude{Blob: m, Module: l.Module, OfColumns: transposed}
	if p.model.Dialect == "peft" && !p.saysDoRA { // PEFT would leave them out
		p.notes.of(l.Module, "the magnitudes of DoRA are applied though the configuration does not say use_dora")
	}
	return nil
}

// checkMagnitude looks for changes that do not go with magnitudes.
func (c *Change) checkMagnitude() error {
	type layer struct {
		adapter int
		module  string
	}
	layers := make(map[layer]bool)
	for _, x := range c.Terms {
		layers[layer{x.Adapter, x.Module}] = true
	}
	if len(layers) > 1 || c.Rows != nil {
		return fault.New(fault.Unsupported, "%q gets the magnitudes of DoRA from %q and another change as well, and which comes first changes the result", c.Name, c.DoRA.Module).
			WithHint("merge one adapter, then the other into what comes out")
	}
	return nil
}
