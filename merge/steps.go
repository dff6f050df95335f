package merge

import (
	"cmp"
	"context"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// addSteps adds the removals to the targets.
func (p *planner) addSteps(ctx context.Context) error {
	if p.removed.records == nil {
		merged, err := p.merged(p.removed.adapters, resolve.Reading(p.options.Reading))
		if err != nil {
			return err
		}
		return p.subtract(merged)
	}
	first := 0
	for _, r := range p.removed.records {
		reading, err := resolve.ReadingOf(r.record.Reading)
		if err != nil {
			return fault.InFile(err, r.Name)
		}
		merged, err := p.merged(p.removed.adapters[first:first+len(r.record.Adapters)], reading)
		if err != nil {
			return err
		}
		err = p.addRecord(r, merged)
		if err == nil {
			err = (&reversal{p, r}).run(ctx, merged)
		}
		if err != nil {
			return fault.InFile(err, r.Name)
		}
		first += len(r.record.Adapters)
	}
	return fit(p)
}

// merged lists the changes that an earlier merge of the adapters made, by tensor name.
func (p *planner) merged(adapters []Adapter, reading resolve.Reading) (map[string]*resolve.Change, error) {
	checked, err := resolve.Check(resolved(adapters), reading)
	if err != nil {
		return nil, err
	}
	changes, _, err := resolve.Resolve(p.names, checked)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*resolve.Change, len(changes))
	for _, c := range changes {
		byName[c.Name] = c
	}
	return byName, nil
}

// subtract adds removals without a record.
func (p *planner) subtract(merged map[string]*resolve.Change) error {
	for name, t := range merged {
		if t.HasResidual() {
			return fault.New(fault.Unsupported, "the merge subtracted a principal part from %q, and only its undo record can restore the original", name).
				WithHint("name the record of the merge with Removal.Records, or copy the tensor from the base")
		}
		if len(t.Deltas) > 0 {
			return fault.New(fault.Unsupported, "a method of LyCORIS changed %q, and only the merge's undo record can restore the original", name).
				WithHint("name the record of the merge with Removal.Records, or copy the tensor from the base")
		}
		if t.DoRA != nil {
			return fault.New(fault.Unsupported, "DoRA rescaled %q, and only the merge's undo record can restore the original", name).
				WithHint("name the record of the merge with Removal.Records, or copy the tensor from the base")
		}
		if t.Replace != nil || t.Rows != nil {
			return fault.New(fault.Unsupported, "the merge replaced values of %q, and only its undo record can restore the original", name).
				WithHint("name the record of the merge with Removal.Records, or copy the tensor from the base")
		}
		if err := p.addStep(t, step{terms: resolve.Negative(t.Terms)}); err != nil {
			return err
		}
	}
	return nil
}

// addRecord adds the removals of one record, and deletes their tensors from merged. This version
// must apply the record's adapters exactly as the record describes.
func (p *planner) addRecord(r *Record, merged map[string]*resolve.Change) error {
	fits := slices.Equal[[]uint64]
	if r.record.Version > 1 && p.decoding == nil {
		fits = checkpoint.IsCut // cut compares the shapes again
	}
	for i := range r.record.Tensors {
		d := &r.record.Tensors[i]
		ref, ok := checkpoint.Stored(p.base).Lookup(d.Name)
		if !ok || ref.File != fileOf(p.base, r.record, d.File) || ref.Tensor.DType.String() != d.DType || !fits(d.Shape, ref.Tensor.Shape) {
			e := fault.New(fault.Mismatch, "the undo record belongs to another checkpoint: it needs %q as %s of shape %d, but this checkpoint has no such tensor", d.Name, d.DType, d.Shape)
			e.Rule = undo.RuleHeader
			return e
		}
		name := checkpoint.WeightOf(p.base, d.Name)
		t := merged[name]
		if t == nil {
			return otherReading(d.Name)
		}
		delete(merged, name)
		s := step{record: r.record, name: r.Name, tensor: i, shape: d.Shape}
		if d.Predict == undo.Subtract {
			if !sameTerms(t.Terms, d.Terms) {
				return otherReading(d.Name)
			}
			s.terms = resolve.Negative(t.Terms)
		}
		if err := p.addStep(t, s); err != nil {
			return err
		}
	}
	return nil
}

func otherReading(name string) error {
	return fault.New(fault.Unsupported, "the undo record comes from a version of loratool that applied the adapter to %q differently", name).
		WithHint("use that version; verify names it")
}

// sameTerms reports whether two sums have the same terms, in any order.
func sameTerms(have []resolve.Term, want []undo.Term) bool {
	got := make([]undo.Term, len(have))
	for i, t := range have {
		got[i] = undo.Term{Adapter: t.Adapter, Module: t.Module, Scale: t.Scale, Transposed: t.Transposed}
	}
	order := func(a, b undo.Term) int {
		return cmp.Or(cmp.Compare(a.Adapter, b.Adapter), cmp.Compare(a.Module, b.Module), cmp.Compare(a.Scale, b.Scale))
	}
	want = slices.Clone(want)
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	return slices.Equal(got, want)
}

// addStep appends a removal to a target. A tensor can be one matrix for one merge and a stack of
// experts for another; values without terms, such as replaced ones, fit both.
func (p *planner) addStep(merged *resolve.Change, s step) error {
	t := p.targets[merged.Name]
	if t == nil {
		ref, _ := p.base.Lookup(merged.Name)
		t = &target{ref: ref, Change: &resolve.Change{Name: merged.Name, Module: merged.Module, Tensor: merged.Tensor, NBands: 1}}
		p.targets[merged.Name] = t
	}
	if merged.Stacked && !t.Stacked {
		if slices.ContainsFunc(t.undo, func(s step) bool { return len(s.terms) > 0 }) {
			return resolve.StackedAndNot(merged.Name)
		}
		t.Stacked, t.NBands = true, merged.NBands
	} else if t.Stacked && !merged.Stacked && len(s.terms) > 0 {
		return resolve.StackedAndNot(merged.Name)
	}
	t.undo = append(t.undo, s)
	return nil
}
