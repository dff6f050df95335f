package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// PiSSA and OLoRA start from factors that are a part P of the weight, and take that out of the
// base, so that the adapter belongs to W − P. On the original base its update is s·B·A − P. PEFT
// computes P in float32 and rounds W − P to the base's dtype; here P is computed in float64, and
// the sum is rounded once.

const asOrdinaryLoRA = "save the adapter with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"

// checkResiduals refuses layers of which PEFT does not take a part out, or not in a way that is
// known here.
func (r *resolver) checkResiduals() error {
	isPlain := make(map[*format.Layer]bool)
	for _, f := range r.forms {
		if p, ok := f.(*plain); ok {
			isPlain[p.layer] = p.layer.Kind == format.Linear
		}
	}
	for i := range r.model.Layers {
		if l := &r.model.Layers[i]; !isPlain[l] || r.has(format.FeatureMultiheadAttention) {
			return fault.New(fault.Unsupported, "%q is no plain linear layer, and what its initialisation has taken out of the base is not known", l.Module).
				WithHint(asOrdinaryLoRA)
		}
	}
	return nil
}

// addResidual subtracts the part of the base that the initialisation of a layer subtracted.
func (p *plain) addResidual(c *Change, transposed bool) error {
	l := p.layer
	x := Term{Adapter: p.index, Module: l.Module, Scale: -p.Weight, Rank: l.Rank, Left: one, Right: one, Residual: PiSSAResidual}
	if p.has(format.FeatureOLoRA) {
		x.Scale, x.Residual = -(p.Weight * l.Scale()), OLoRAResidual
	}
	switch {
	case x.Residual == OLoRAResidual && transposed:
		return fault.New(fault.Unsupported, "%q is stored transposed, and OLoRA of PEFT decomposes it as it is stored, so that its factors do not fit", l.Module).
			WithHint(asOrdinaryLoRA)
	case c.DType == dtype.F64:
		return fault.New(fault.Unsupported, "%q is stored as %v, for which PEFT has no such initialisation", l.Module, c.DType)
	}
	c.Terms = append(c.Terms, x)
	p.notes.of(l.Module, "what the initialisation has taken out of the base is computed again and taken out, in float64; PEFT does so in float32 and rounds in between")
	return nil
}

// checkResidual looks for changes that do not go with a residual: it is that of the base as it is.
func (c *Change) checkResidual() error {
	n := 0
	for _, x := range c.Terms {
		if x.Residual != NoResidual {
			n++
		}
	}
	switch {
	case n > 1:
		return fault.New(fault.Unsupported, "two adapters have taken a part out of %q, each of the original base", c.Name).
			WithHint("save them with path_initial_model_for_weight_conversion, which makes ordinary LoRAs")
	case c.Replace != nil || c.Rows != nil:
		return fault.New(fault.Unsupported, "a part is to be taken out of %q, and an adapter replaces it", c.Name)
	case c.DoRA != nil:
		return c.checkMagnitude()
	}
	return nil
}
