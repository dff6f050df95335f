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
		return fault.New(fault.Unsupported, "%q is DoRA, which sets the magnitudes of the base, so the adapter's weight must be 1, not %v", l.Module, p.Weight).
			WithHint("use the weight 1")
	}
	nRows, nCols := c.Matrix()
	want := nRows
	if transposed {
		want = nCols
	}
	m := p.blob(i)
	if have := m.Tensor(); have.Elements() != want || !have.DType.IsFloat() {
		return fault.New(fault.Mismatch, "%q has magnitudes of shape %d as %v, but the base's weight has %s", l.Module, have.Shape, have.DType, fault.Count(want, "output feature")).
			WithHint("%s", p.wrongBase())
	}
	if c.DoRA != nil {
		return fault.New(fault.Unsupported, "two adapters rescale %q by magnitudes of DoRA, and their order would change the result", c.Name).
			WithHint("merge one adapter, then merge the other into the result")
	}
	c.DoRA = &Magnitude{Blob: m, Module: l.Module, OfColumns: transposed}
	if p.model.Dialect == "peft" && !p.saysDoRA { // PEFT would leave them out
		p.notes.of(l.Module, "the magnitudes of DoRA are applied although the configuration does not set use_dora")
	}
	return nil
}

// checkMagnitude refuses changes beside the magnitudes.
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
		return fault.New(fault.Unsupported, "%q gets magnitudes of DoRA from %q and another change as well, and their order would change the result", c.Name, c.DoRA.Module).
			WithHint("merge one adapter, then merge the other into the result")
	}
	return nil
}
