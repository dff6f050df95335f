package resolve

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// perExpert is a layer whose factors have three dimensions, as Megatron-Bridge and Tinker export
// them: A, E×r×n, and B, E×m×r, hold a matrix for each expert, one after the other. One of them, or
// both, may have the single matrix 1×r×n or 1×m×r, which all experts share.
type perExpert struct {
	*resolver
	layer     *format.Layer
	parameter string // the stacked parameter
	part      int    // number of the layer's part; the parts of an expert lie one below the other
	nParts    int
	nExperts  int
	style     []string // the weights of one expert if the base has a module for each; nil if it stacks them
}

// isPerExpert reports whether both factors of a layer have a matrix for each expert.
func (g *given) isPerExpert(l *format.Layer) bool {
	i, hasA := l.Roles[format.RoleA]
	k, hasB := l.Roles[format.RoleB]
	return hasA && hasB && g.has(format.FeatureExpertFactors) &&
		len(g.blob(i).Tensor().Shape) == 3 && len(g.blob(k).Tensor().Shape) == 3
}

func newPerExpert(r *resolver, l *format.Layer) form {
	a, b := r.blob(l.Roles[format.RoleA]).Tensor().Shape, r.blob(l.Roles[format.RoleB]).Tensor().Shape
	p := &perExpert{resolver: r, layer: l, parameter: l.Module, nExperts: int(max(a[0], b[0]))}
	parameter, part, nParts, ok := naming.PartOfExperts(l.Module)
	if !ok {
		return p
	}
	p.parameter, p.part, p.nParts = parameter, part, nParts
	if r.names.HasTail(tail(l.Module, 2)) { // the base stacks the part alone
		p.parameter, p.part, p.nParts = l.Module, 0, 1
	}
	if isEmpty := slices.Contains(a, 0) || slices.Contains(b, 0); !isEmpty && !r.names.HasTail(tail(parameter, 2)) {
		p.style = r.names.ExpertParts(naming.Module(parameter), naming.Leaf(parameter))
	}
	return p
}

// wants lists the parameter, or the weights of every expert that the layer changes.
func (p *perExpert) wants() (names []string) {
	if p.style == nil {
		return []string{p.parameter}
	}
	for e := range p.nExperts {
		names = append(names, p.weights(e)...)
	}
	return names
}

// weights lists the weights of one expert that the layer changes: one, or all that a parameter has.
func (p *perExpert) weights(expert int) (names []string) {
	for i, part := range p.style {
		if len(p.style) > p.nParts || i == p.part {
			names = append(names, expertWeight(naming.Module(p.parameter), expert, part))
		}
	}
	return names
}

func (p *perExpert) add() error {
	x, a, b, err := p.term(p.layer)
	if err != nil {
		return err
	}
	if err := p.check(a.Tensor().Shape, b.Tensor().Shape); err != nil {
		return err
	}
	if p.style == nil {
		return p.addStacked(x, a, b)
	}
	if p.hasMore() {
		return fault.New(fault.Mismatch, "the experts %q: lora_A and lora_B are for %s, but the "+
			"base has more", p.layer.Module, fault.Count(p.nExperts, "expert")).WithHint("%s", p.wrongBase())
	}
	for e := range p.nExperts {
		if err := p.addExpert(x, a, b, e); err != nil {
			return err
		}
	}
	return nil
}

// check refuses factors that do not go together, or that are for no experts.
func (p *perExpert) check(a, b []uint64) error {
	l, n, r := p.layer, uint64(p.nExperts), uint64(p.layer.Rank)
	switch {
	case p.nParts == 0:
		return fault.New(fault.Mismatch, "%q: lora_A has shape %d and lora_B %d, as for several "+
			"experts, and no module of that name holds the weights of experts", l.Module, a, b).
			WithHint("if it is a linear layer, drop the first dimension of both in Python and save the adapter again")
	case a[1] != r || b[2] != r || a[0] != n && a[0] != 1 || b[0] != n && b[0] != 1 || slices.Contains(a, 0) || slices.Contains(b, 0):
		return fault.New(fault.Mismatch, "the experts %q: lora_A has shape %d and lora_B %d, want "+
			"E×%d×n and E×m×%d for the rank %[4]d of the configuration", l.Module, a, b, r, r).
			WithHint("use the adapter_config.json that was saved with these weights")
	}
	return p.checkInterleaved(l, p.nParts)
}

// factors returns the factors of one expert.
func (p *perExpert) factors(a, b Blob, expert int) (fb, fa Factor) {
	sa, sb, r := a.Tensor().Shape, b.Tensor().Shape, p.layer.Rank
	n, m := int(sa[2]), int(sb[1])
	fa = Factor{Blob: a, Across: n, Along: 1, Repeat: 1, Length: n}
	fb = Factor{Blob: b, Across: 1, Along: r, Repeat: 1, Length: m}
	if sa[0] > 1 {
		fa.At = expert * r * n
	}
	if sb[0] > 1 {
		fb.At = expert * m * r
	}
	return fb, fa
}

// addStacked adds the update of all experts to the parameter that stacks them.
func (p *perExpert) addStacked(x Term, a, b Blob) error {
	n, m := a.Tensor().Shape[2], b.Tensor().Shape[1]
	shape, rows := p.tensor(p.parameter).Shape, m*uint64(p.nParts)
	if len(shape) != 3 || shape[0] != uint64(p.nExperts) ||
		!(shape[1] == rows && shape[2] == n || shape[1] == n && shape[2] == rows) {
		return fault.New(fault.Mismatch, "the experts %q: B·A is %d×%d for %s, and the factors are for %s; "+
			"the base's %q has shape %d", p.layer.Module, m, n, partOfExpert(p.nParts),
			fault.Count(int64(p.nExperts), "expert"), p.parameter, shape).WithHint("%s", p.wrongBase())
	}
	transposed, err := p.standsTransposed(p.layer, shape, n)
	if err != nil {
		return err
	}
	c, err := p.stackedChange(p.parameter)
	if err != nil {
		return err
	}
	for e := range p.nExperts {
		x.Band = e
		fb, fa := p.factors(a, b, e)
		c.add(x, p.partOf(fb, p.part, p.nParts), fa, transposed)
	}
	return nil
}

// addExpert adds the update of one expert, which is a module of the base.
func (p *perExpert) addExpert(x Term, a, b Blob, expert int) error {
	fb, fa := p.factors(a, b, expert)
	names, first := p.weights(expert), 0
	for _, name := range names {
		c, err := p.change(name, false)
		if err != nil {
			return err
		}
		if len(c.Shape) != 2 || first+int(c.Shape[0]) > fb.Length || c.Shape[1] != uint64(fa.Length) {
			return fault.New(fault.Mismatch, "the experts %q: B·A is %d×%d for each expert, and the base's %s have the shape %d",
				p.layer.Module, fb.Length, fa.Length, strings.Join(names, " and "), c.Shape).WithHint("%s", p.wrongBase())
		}
		rows := int(c.Shape[0])
		c.add(x, fb.part(first, rows), fa, false)
		first += rows
	}
	if first != fb.Length {
		return fault.New(fault.Mismatch, "the experts %q: B·A has %d rows for each expert, and the base's %s have %d together",
			p.layer.Module, fb.Length, strings.Join(names, " and "), first).WithHint("%s", p.wrongBase())
	}
	return nil
}

// hasMore reports whether the base has more experts than the factors.
func (p *perExpert) hasMore() bool {
	_, ok := p.mapping.Lookup(p.weights(p.nExperts)[0])
	return ok
}
