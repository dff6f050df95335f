package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// dividedMagnitude is the error for magnitudes of a weight that the base divides.
func (p *plain) dividedMagnitude(places string) error {
	return fault.New(fault.Unsupported, "%q has magnitudes of DoRA, and the base divides its weight in another way: %s", p.layer.Module, places).
		WithHint("merge into a base that divides its weights as the adapter does: a pipeline of diffusers in place of a single file in the names of its authors, or the reverse")
}

// addMagnitude adds the magnitudes of a DoRA layer (Liu et al., arXiv:2402.09353), of its outputs
// or of its inputs.
func (p *plain) addMagnitude(c *Change, transposed bool) error {
	l := p.layer
	i, _ := p.magnitude()
	if p.Weight != 1 {
		return fault.New(fault.Unsupported, "%q is DoRA, which sets the magnitudes of the base, so the adapter's weight must be 1, not %v", l.Module, p.Weight).
			WithHint("use the weight 1")
	}
	_, ofInputs := l.Roles[format.RoleInputMagnitude]
	ofColumns, kernel, feature := transposed != ofInputs, 1, "output feature"
	if ofInputs {
		feature = "input"
		for _, k := range c.Shape[2:] {
			kernel *= int(k)
		}
	}
	nRows, nCols := c.Matrix()
	want := nRows
	if ofColumns {
		want = nCols / int64(max(1, kernel))
	}
	m := p.blob(i)
	if have := m.Tensor(); have.Elements() != want || !have.DType.IsFloat() {
		return fault.New(fault.Mismatch, "%q has magnitudes of shape %d as %v, but the base's weight has %s", l.Module, have.Shape, have.DType, fault.Count(want, feature)).
			WithHint("%s", p.wrongBase())
	}
	if c.DoRA != nil {
		return fault.New(fault.Unsupported, "two adapters rescale %q by magnitudes of DoRA, and their order would change the result", c.Name).
			WithHint("merge one adapter, then merge the other into the result")
	}
	c.DoRA = &Magnitude{Blob: m, Module: l.Module, OfColumns: ofColumns}
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
	for _, d := range c.Deltas {
		layers[layer{d.Adapter, d.Module}] = true
		if d.isScaling() {
			e := fault.New(fault.Unsupported, "%q gets magnitudes of DoRA and a scaling (IA³), and their order would change the result", c.Name)
			e.Rule = "R138"
			return e.WithHint("merge one adapter, then merge the other into the result")
		}
	}
	if len(layers) > 1 || c.Rows != nil {
		return fault.New(fault.Unsupported, "%q gets magnitudes of DoRA from %q and another change as well, and their order would change the result", c.Name, c.DoRA.Module).
			WithHint("merge one adapter, then merge the other into the result")
	}
	return nil
}
