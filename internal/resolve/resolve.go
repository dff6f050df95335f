package resolve

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Resolve pairs every tensor of the adapters of one merge with the tensor of the base that it
// changes. It fails if any tensor could not be used exactly once. The changes are in the order of
// their names; notes are facts for the user. It reads no values but those of adapters that
// save one tensor twice, to compare the two.
func Resolve(b *Base, adapters []Adapter, reading Reading) (changes []*Change, texts []string, err error) {
	s, err := newSheet(b, adapters, reading)
	if err != nil {
		return nil, nil, err
	}
	for i := range adapters {
		r, err := s.resolver(i)
		if err == nil {
			err = r.resolve()
		}
		if err != nil {
			return nil, nil, fault.InFile(err, adapters[i].Name)
		}
	}
	if s.fold != nil {
		s.mirror()
	}
	for _, name := range slices.Sorted(maps.Keys(s.changes)) {
		c := s.changes[name]
		if err := c.check(); err != nil {
			return nil, nil, err
		}
		changes = append(changes, c)
	}
	return changes, s.notes.list(), nil
}

func newSheet(b *Base, adapters []Adapter, reading Reading) (*sheet, error) {
	s := &sheet{
		base: b, names: naming.Index(b.Names()), adapters: adapters, reading: reading,
		changes: make(map[string]*Change), notes: new(notes),
		looksUp: slices.ContainsFunc(adapters, Adapter.looksUp),
	}
	if reading.Tied == Fold && len(adapters) > 0 {
		return s, s.foldEnds()
	}
	return s, nil
}

// resolver begins with adapter i: what it holds is known, and not yet what it means in the base.
func (s *sheet) resolver(i int) (*resolver, error) {
	g, err := newGiven(s.adapters[i], i)
	if err != nil {
		return nil, err
	}
	for _, note := range g.manifest.Notes {
		s.notes.add("%s", note)
	}
	if err := g.checkFeatures(s.reading); err != nil {
		return nil, err
	}
	r := &resolver{sheet: s, given: *g}
	return r, r.form()
}

// Check refuses an adapter that no base can take.
func Check(a Adapter, reading Reading) error {
	g, err := newGiven(a, 0)
	if err == nil {
		err = g.checkFeatures(reading)
	}
	return fault.InFile(err, a.Name)
}

// checkFeatures refuses an adapter that requires a feature beyond this version.
func (g *given) checkFeatures(reading Reading) error {
	model := g.model
	if reading.RecomputeResidual {
		model = withoutResiduals(model)
	}
	if why, hint := Refusals(model); len(why) > 0 {
		return fault.New(fault.Unsupported, "the adapter cannot be merged: %s", strings.Join(why, "; ")).WithHint("%s", hint)
	}
	return nil
}

// form finds the form of everything that the adapter holds.
func (r *resolver) form() error {
	if len(r.model.Beside) > 1 {
		if err := (twins{r}).drop(); err != nil {
			return err
		}
	}
	stacked := false
	for i := range r.model.Layers {
		l := &r.model.Layers[i]
		stacked = stacked || l.Kind.IsExpert()
		if f := r.formOf(l); f != nil {
			r.forms = append(r.forms, f)
		}
	}
	if stacked {
		if err := r.groupExperts(); err != nil {
			return err
		}
	}
	for i := range r.model.Beside {
		if f := r.formBeside(&r.model.Beside[i]); f != nil {
			r.forms = append(r.forms, f)
		}
	}
	if r.has(format.FeaturePiSSA) || r.has(format.FeatureOLoRA) {
		return r.checkResiduals()
	}
	return nil
}

// formOf is the form of a layer, nil for one that has it together with others.
func (r *resolver) formOf(l *format.Layer) form {
	switch {
	case l.Kind.IsExpert():
		return nil
	case l.Kind == format.Other && r.isPerExpert(l):
		return newPerExpert(r, l)
	case l.Kind == format.Other:
		return &compact{resolver: r, layer: l}
	case l.Kind == format.Linear:
		if _, _, _, _, ok := naming.ExpertPart(l.Module); ok {
			if f := r.gather(l); f != nil {
				return f
			}
		}
	}
	return &plain{r, l}
}

// resolve adds the adapter's changes to the sheet.
func (r *resolver) resolve() error {
	wanted := r.wanted(func(form) bool { return true })
	if len(wanted) == 0 {
		return fault.New(fault.Corrupt, "the adapter changes nothing: it has no layer and no tensor to put in place")
	}
	mapping, missing, ambiguous := r.names.Match(wanted)
	r.mapping = mapping
	switch {
	case ambiguous != nil:
		return fault.New(fault.Mismatch, "the adapter's module names fit the base in several ways: %s", strings.Join(ambiguous, "; ")).
			WithHint("rename the modules of the adapter to those of the base")
	case missing != nil:
		return r.explainMissing(wanted, missing)
	}
	if d := mapping.Describe(); d != "as they are" {
		r.notes.add("the adapter's module names are used %s", d)
	}
	var errs []error
	for _, f := range r.forms {
		errs = append(errs, f.add())
	}
	return first(errs)
}

// first returns the first of several errors, which tells how many others there are, and what the
// next one is.
func first(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	var f *fault.Error
	if len(errs) > 1 && errors.As(errs[0], &f) {
		f.Msg += fmt.Sprintf("; %d more, the next one: %v", len(errs)-1, errs[1])
	}
	if len(errs) == 0 {
		return nil
	}
	return errs[0]
}

// check looks for changes to one tensor that do not go together.
func (c *Change) check() error {
	if c.Rows != nil && (c.Replace != nil && c.Replace.Source != c.Rows.Source || len(c.Terms) > 0) {
		return fault.New(fault.Unsupported, "%q is to get trained token rows and another change as well, and their order is not defined", c.Name)
	}
	if c.Replace != nil && len(c.Terms) > 0 && c.Replace.Tensor().DType != c.DType {
		return fault.New(fault.Unsupported, "%q is replaced by a tensor in %v and updated as well, while the base stores %v",
			c.Name, c.Replace.Tensor().DType, c.DType)
	}
	if c.HasResidual() {
		return c.checkResidual()
	}
	if c.DoRA != nil {
		return c.checkMagnitude()
	}
	return nil
}
