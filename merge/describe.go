package merge

import "github.com/loratool/loratool/internal/resolve"

// PlannedTensor is one tensor that changes, as the plan knows it.
type PlannedTensor struct {
	Tensor   string      `json:"tensor"`
	Module   string      `json:"module"`
	DType    string      `json:"dtype"`
	Shape    []uint64    `json:"shape"`
	Rank     int         `json:"rank,omitempty"`     // Σ r of the updates
	Scale    float64     `json:"scale,omitempty"`    // ω·s, where there is one update
	Replaced bool        `json:"replaced,omitempty"` // a tensor of the adapter takes its place
	Added    bool        `json:"added,omitempty"`    // the base lacks it
	Was      []uint64    `json:"was,omitempty"`      // the shape that the base has, where it is another
	DoRA     bool        `json:"dora,omitempty"`     // rescaled by magnitudes: W + ΔW is m·V/‖V‖
	Rows     int         `json:"rows,omitempty"`     // rows of it that are replaced
	Updates  []TermShort `json:"updates,omitempty"`  // where there are several
}

// TermShort is one of several updates of a tensor.
type TermShort struct {
	Adapter string  `json:"adapter"`
	Rank    int     `json:"rank"`
	Scale   float64 `json:"scale"`
}

// Tensors lists what changes, in the order of the output.
func (p *Plan) Tensors() []PlannedTensor {
	all := make([]PlannedTensor, len(p.targets))
	for i, t := range p.targets {
		all[i] = p.describe(t)
	}
	return all
}

func (p *Plan) describe(t *target) PlannedTensor {
	d := PlannedTensor{Tensor: t.ref.Tensor.Name, Module: t.Module, DType: t.ref.Tensor.DType.String(), Shape: t.ref.Tensor.Shape, Replaced: t.Replace != nil, DoRA: t.DoRA != nil}
	if was, ok := p.shaped.Added[d.Tensor]; ok {
		d.Added, d.Was = was == nil, was
	}
	if t.Rows != nil {
		d.Rows = len(t.Rows.Order)
	}
	for i, a := range p.adapters {
		if u := t.update(i); u.Rank > 0 {
			u.Adapter = a.Name
			d.Rank += u.Rank
			d.Scale = u.Scale
			d.Updates = append(d.Updates, u)
		}
	}
	if len(d.Updates) > 1 {
		d.Scale = 0
	} else {
		d.Updates = nil
	}
	return d
}

// update sums up what one adapter adds: the rank of the band that has the most, and the scale, 0 where there are several.
func (t *target) update(adapter int) (u TermShort) {
	ranks := make(map[int]int)
	for _, term := range t.Terms {
		if term.Adapter != adapter || term.Residual != resolve.NoResidual {
			continue
		}
		if len(ranks) == 0 {
			u.Scale = term.Scale
		} else if u.Scale != term.Scale {
			u.Scale = 0
		}
		ranks[term.Band] += term.Rank
		u.Rank = max(u.Rank, ranks[term.Band])
	}
	return u
}
