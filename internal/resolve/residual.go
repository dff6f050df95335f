package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// PiSSA and OLoRA begin with factors whose product is a part P of the weight, and subtract P from
// the base before training, so the adapter belongs to W − P. On the original base its update is
// s·B·A − P. PEFT computes P in float32 and rounds W − P to the base's dtype; here P is computed in
// float64, and the sum is rounded once.

// AsOrdinaryLoRA is the hint where the part of the base is not known.
const AsOrdinaryLoRA = "save the adapter with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"

// checkResiduals refuses layers from which PEFT subtracts nothing, or in a way that is unknown
// here.
func (r *resolver) checkResiduals() error {
	isPlain := make(map[*format.Layer]bool)
	for _, f := range r.forms {
		if p, ok := f.(*plain); ok {
			isPlain[p.layer] = p.layer.Kind == format.Linear
		}
	}
	for i := range r.model.Layers {
		if l := &r.model.Layers[i]; !isPlain[l] || r.has(format.FeatureMultiheadAttention) {
			return fault.New(fault.Unsupported, "%q is not a plain linear layer, and it is not known which part its initialisation subtracted from the base", l.Module).
				WithHint(AsOrdinaryLoRA)
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
		return fault.New(fault.Unsupported, "the base stores %q transposed; OLoRA of PEFT decomposes the matrix as it is stored, so its factors do not fit", l.Module).
			WithHint(AsOrdinaryLoRA)
	case c.DType == dtype.F64:
		return fault.New(fault.Unsupported, "the base stores %q as %v, for which PEFT has no such initialisation", l.Module, c.DType)
	}
	c.Terms = append(c.Terms, x)
	p.notes.of(l.Module, "the part that the initialisation subtracted from the base is computed and subtracted again, in float64; PEFT computes it in float32 and rounds in between")
	return nil
}

// checkResidual refuses changes beside a residual, which is a part of the original base.
func (c *Change) checkResidual() error {
	n := 0
	for _, x := range c.Terms {
		if x.Residual != NoResidual {
			n++
		}
	}
	switch {
	case n > 1:
		return fault.New(fault.Unsupported, "two adapters each subtracted a part of the original base from %q", c.Name).
			WithHint("save them with path_initial_model_for_weight_conversion, which makes ordinary LoRAs")
	case c.Replace != nil || c.Rows != nil:
		return fault.New(fault.Unsupported, "the merge would subtract a part of the base from %q, but an adapter replaces values of it", c.Name)
	case c.DoRA != nil:
		return c.checkMagnitude()
	}
	return nil
}
