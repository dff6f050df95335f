package merge

import (
	"cmp"
	"context"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/undo"
)

// addSteps adds to the targets what is taken out of them.
func (p *Plan) addSteps(ctx context.Context, byTensor map[string]*target) error {
	if p.nRemoved == 0 {
		return nil
	}
	warnings, options := p.warnings, p.options
	p.options.AnyBase = true // the checkpoint has other values than the base that the adapters remember
	defer func() { p.warnings, p.options = warnings, options }()
	if p.records == nil {
		merged := make(map[string]*target)
		if err := p.addAdapters(ctx, 0, p.nRemoved, merged); err != nil {
			return err
		}
		return p.subtract(merged, byTensor)
	}
	first := 0
	for _, r := range p.records {
		var err error
		if p.options.Reading, err = readingOf(r.record.Reading); err != nil {
			return fault.InFile(err, r.Name)
		}
		merged := make(map[string]*target)
		if err := p.addAdapters(ctx, first, first+len(r.record.Adapters), merged); err != nil {
			return err
		}
		if err := p.addRecord(r, first, merged, byTensor); err != nil {
			return fault.InFile(err, r.Name)
		}
		first += len(r.record.Adapters)
	}
	return nil
}

// subtract adds steps without a record.
func (p *Plan) subtract(merged, byTensor map[string]*target) error {
	for name, t := range merged {
		if t.hasResidual() {
			return fault.New(fault.Unsupported, "the merge has taken a part out of %q, and what was there before is in its undo record only", name).
				WithHint("give the record that merge --undo has written, or take the tensor from the base")
		}
		if t.dora != nil {
			return fault.New(fault.Unsupported, "DoRA has rescaled %q, and the norms of what was there before are in its undo record only", name).
				WithHint("give the record that merge --undo has written, or take the tensor from the base")
		}
		if t.replace != nil || t.rows != nil {
			return fault.New(fault.Unsupported, "the merge has replaced values of %q, and what was there before is in its undo record only", name).
				WithHint("give the record that merge --undo has written, or take the tensor from the base")
		}
		if err := p.addStep(byTensor, t, step{terms: negative(t.terms)}); err != nil {
			return err
		}
	}
	return nil
}

// addRecord adds the steps of one record, which must be what this version makes of the same adapters.
func (p *Plan) addRecord(r *Record, firstAdapter int, merged, byTensor map[string]*target) error {
	for i := range r.record.Tensors {
		d := &r.record.Tensors[i]
		ref, ok := p.base.Lookup(d.Name)
		if !ok || ref.File != p.fileOf(r.record, d.File) || ref.Tensor.DType.String() != d.DType || !slices.Equal(ref.Tensor.Shape, d.Shape) {
			e := fault.New(fault.Mismatch, "the undo record is of another checkpoint: it has %q as %s of shape %d, and this checkpoint has no such tensor", d.Name, d.DType, d.Shape)
			e.Rule = undo.RuleHeader
			return e
		}
		t := merged[d.Name]
		if t == nil {
			return otherReading(d.Name)
		}
		delete(merged, d.Name)
		s := step{record: r.record, name: r.Name, tensor: i}
		if d.Predict == undo.Subtract {
			if !sameTerms(t.terms, d.Terms, firstAdapter) {
				return otherReading(d.Name)
			}
			s.terms = negative(t.terms)
		}
		if err := p.addStep(byTensor, t, s); err != nil {
			return err
		}
	}
	for name := range merged {
		return otherReading(name)
	}
	return nil
}

func otherReading(name string) error {
	return fault.New(fault.Unsupported, "the version of loratool that wrote the undo record has applied the adapter to %q in another way than this one would", name).
		WithHint("use that version; verify names it")
}

// sameTerms reports whether two sums have the same terms, in any order.
func sameTerms(have []term, want []undo.Term, firstAdapter int) bool {
	got := make([]undo.Term, len(have))
	for i, t := range have {
		got[i] = undo.Term{Adapter: t.adapter - firstAdapter, Module: t.module, Scale: t.scale, Transposed: t.transposed}
	}
	order := func(a, b undo.Term) int {
		return cmp.Or(cmp.Compare(a.Adapter, b.Adapter), cmp.Compare(a.Module, b.Module), cmp.Compare(a.Scale, b.Scale))
	}
	want = slices.Clone(want)
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	return slices.Equal(got, want)
}

func negative(terms []term) []term {
	n := slices.Clone(terms)
	for i := range n {
		n[i].scale = -n[i].scale
	}
	return n
}

func (p *Plan) addStep(byTensor map[string]*target, merged *target, s step) error {
	name := merged.ref.Tensor.Name
	t := byTensor[name]
	if t == nil {
		t = &target{ref: merged.ref, module: merged.module, nBands: 1}
		byTensor[name] = t
	}
	if merged.stacked {
		if err := t.stackUp(); err != nil {
			return err
		}
	} else if t.stacked && len(s.terms) > 0 {
		return stackedAndNot(name)
	}
	t.undo = append(t.undo, s)
	return nil
}
