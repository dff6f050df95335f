package merge

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// newPlan plans what to take out of a base and what to put in then.
func newPlan(ctx context.Context, base *checkpoint.Checkpoint, removed removal, adapters []Adapter, options Options) (*Plan, error) {
	p := &planner{
		Plan:    &Plan{base: base, removed: removed, adapters: adapters, options: options, warnings: removed.notes},
		targets: make(map[string]*target),
	}
	if len(adapters) == 0 && !removed.is() {
		return nil, fault.New(fault.Mismatch, "no adapter to merge")
	}
	if err := checkGiven(adapters); err != nil {
		return nil, err
	}
	if err := p.resolve(ctx); err != nil {
		return nil, err
	}
	p.noteFiles()
	if err := p.sortTargets(); err != nil {
		return nil, err
	}
	var err error
	if p.ids, err = contentIDs(ctx, adapters); err != nil {
		return nil, err
	}
	before, err := p.restoreHeaders(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.checkStamps(before); err != nil {
		return nil, err
	}
	return p.Plan, p.layOut(before)
}

// resolve finds what happens to each tensor.
func (p *planner) resolve(ctx context.Context) error {
	if err := p.describeBase(); err != nil {
		return err
	}
	o := &p.options
	if allowed := (resolve.Shaping{Untie: o.Tied == Untie, GrowVocabulary: o.GrowVocabulary, AddTensors: o.AddTensors}); allowed != (resolve.Shaping{}) {
		if err := p.shape(allowed); err != nil {
			return err
		}
	}
	if p.removed.is() {
		if err := p.addSteps(); err != nil {
			return err
		}
	}
	for _, a := range p.adapters {
		if err := resolve.Check(resolve.Adapter(a), o.Reading.resolved()); err != nil {
			return err
		}
		if m := &a.Source.Manifest().Adapters[0]; len(m.Base.Fingerprints) > 0 && !o.AnyBase {
			if err := p.checkBase(ctx, m); err != nil {
				return fault.InFile(err, a.Name)
			}
		}
	}
	changes, notes, err := resolve.Resolve(p.names, resolved(p.adapters), p.options.Reading.resolved())
	if err != nil {
		return err
	}
	p.warnings = append(p.warnings, notes...)
	for _, c := range changes {
		if err := p.addChange(c); err != nil {
			return err
		}
	}
	return nil
}

// describeBase reads what resolving has to know of the base.
func (p *planner) describeBase() error {
	b := &resolve.Base{Path: p.base.Path, Tensors: make(map[string]resolve.Tensor), Config: p.base.Config}
	for _, f := range p.base.Files {
		for i := range f.Tensors {
			t := &f.Tensors[i]
			b.Tensors[t.Name] = resolve.Tensor{DType: t.DType, Shape: t.Shape}
		}
	}
	if p.base.IsDir && slices.Contains(p.base.Side, checkpoint.ConfigName) {
		text, err := p.base.Dir.Read(checkpoint.ConfigName, checkpoint.MaxJSONBytes)
		if err != nil {
			return err
		}
		b.ConfigText = text
	}
	p.names, p.side, p.shaped = b, make(map[string][]byte), &resolve.Shaped{Base: b}
	return nil
}

// addChange makes a change one of a target.
func (p *planner) addChange(c *resolve.Change) error {
	t := p.targets[c.Name]
	if t == nil {
		ref, _ := p.base.Lookup(c.Name)
		p.targets[c.Name] = &target{Change: c, ref: ref}
		return nil
	}
	if c.Stacked != t.Stacked {
		hasTerms := func(s step) bool { return len(s.terms) > 0 }
		if c.Stacked && slices.ContainsFunc(t.undo, hasTerms) || t.Stacked && len(c.Terms) > 0 {
			return resolve.StackedAndNot(c.Name)
		}
		c.Stacked, c.NBands = true, max(1, int(c.Shape[0]))
	}
	t.Change = c
	return nil
}

// sortTargets lists the targets in the order of the files, and refuses what this version cannot do.
func (p *planner) sortTargets() error {
	for _, name := range slices.Sorted(maps.Keys(p.targets)) {
		t := p.targets[name]
		if err := p.checkTarget(t); err != nil {
			return err
		}
		p.Plan.targets = append(p.Plan.targets, t)
	}
	slices.SortFunc(p.Plan.targets, func(a, b *target) int {
		return cmp.Or(cmp.Compare(a.ref.File, b.ref.File), cmp.Compare(a.ref.Tensor.Off, b.ref.Tensor.Off), cmp.Compare(a.Name, b.Name))
	})
	return nil
}

// checkTarget looks for changes that this version cannot make together.
func (p *planner) checkTarget(t *target) error {
	if d := t.ref.Tensor.DType; p.options.wantsRecord() && t.changes() && !undo.Records(d) {
		return fault.New(fault.Unsupported, "the adapter replaces %q, of %v, which no undo record can hold", t.Name, d).WithHint("merge without Options.Undo")
	}
	if len(t.undo) > 0 && t.HasResidual() {
		return fault.New(fault.Unsupported, "PiSSA and OLoRA need the original values of %q, and this swap restores them only while it runs", t.Name).
			WithHint("unmerge first, then merge")
	}
	return p.checkBlocks(t)
}

// maxTogether is how much of a tensor is worked on at a time, at most, because records have cut it in different ways.
const maxTogether = 256 << 20

// checkBlocks refuses records whose blocks only fit together after more than that.
func (p *planner) checkBlocks(t *target) error {
	_, nCols := t.Matrix()
	rowBytes := nCols * int64(t.ref.Tensor.DType.Size())
	if n := p.blockRows(t) * rowBytes; n > max(maxTogether, rowBytes) {
		return fault.New(fault.Unsupported, "the undo records have cut %q into blocks that fit together after %d bytes, the limit is %d", t.ref.Tensor.Name, n, maxTogether).
			WithHint("take the merges out one at a time")
	}
	return nil
}

// checkGiven refuses adapters that cannot be merged as the caller gives them.
func checkGiven(adapters []Adapter) error {
	for _, a := range adapters {
		if err := format.Validate(a.Source.Manifest()); err != nil {
			return fault.InFile(err, a.Name)
		}
		switch w := a.Weight; {
		case w == 0:
			return fault.New(fault.Mismatch, "the adapter's weight is 0, so that it would change nothing").In(a.Name).
				WithHint("leave the adapter out, or give it another weight; 1 applies it as it was trained")
		case math.IsNaN(w) || math.IsInf(w, 0):
			return fault.New(fault.Mismatch, "the adapter's weight is %v; a weight is a finite number", w).In(a.Name)
		}
	}
	return nil
}

// noteFiles says which files of the base's directory are copied from elsewhere, and which not at all.
func (p *planner) noteFiles() {
	for _, name := range p.base.Beyond {
		p.warn("%q of the base is a link that leads out of its directory: what lies there is copied", name)
	}
	for _, name := range p.base.Left {
		p.warn("%q is not copied: it is no part of the merged model", name)
	}
}
