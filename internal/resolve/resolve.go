package resolve

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Base is what resolving knows of a base model: names, shapes and its configuration. It holds no
// values. The zero value of Config is that of a checkpoint without a config.json.
type Base struct {
	Path       string // how errors name it
	Tensors    map[string]Tensor
	Config     config.Model
	ConfigText []byte // config.json as it is; nil where there is none to edit
}

// Tensor is a tensor of a base.
type Tensor struct {
	DType dtype.Type
	Shape []uint64
}

// Elements is the number of elements; a tensor without dimensions has one.
func (t Tensor) Elements() int64 {
	n := uint64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return int64(n)
}

// Names lists the tensors of a base, sorted.
func (b *Base) Names() []string { return slices.Sorted(maps.Keys(b.Tensors)) }

// Adapter is one adapter of a merge.
type Adapter struct {
	Source format.Source
	Name   string  // how errors name it
	Weight float64 // ω
}

// Resolve pairs every tensor of the adapters of one merge with the tensor of the base that it
// changes. It fails if any tensor could not be used exactly once. The changes are in the order of
// their names; notes are what a user should know. It reads no values but those of adapters that
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

// sheet is what the adapters of one merge change, as far as they have been resolved.
type sheet struct {
	base     *Base
	names    *naming.Base
	adapters []Adapter
	reading  Reading
	changes  map[string]*Change
	notes    *notes
	ties     *ties // nil until something asks for the base's two ends
	fold     *fold // nil where tied ends are not folded
}

func newSheet(b *Base, adapters []Adapter, reading Reading) (*sheet, error) {
	s := &sheet{
		base: b, names: naming.Index(b.Names()), adapters: adapters, reading: reading,
		changes: make(map[string]*Change), notes: new(notes),
	}
	if reading.Tied == Fold && len(adapters) > 0 {
		return s, s.foldEnds()
	}
	return s, nil
}

// resolver pairs the tensors of one adapter with those of the base.
type resolver struct {
	*sheet
	given
	mapping naming.Mapping
	forms   []form
	votes   votes

	hasTwins bool // the adapter saves one tensor of the base under the names of all modules that share it
}

// form is a way in which tensors of an adapter stand for a change of tensors of the base. Each kind
// of layer has one, and so has what is carried beside the layers.
type form interface {
	// wants lists the tensors that the base must have, by the adapter's names.
	wants() []string
	// add adds the change to the sheet.
	add() error
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

// Check refuses an adapter for what it is, whatever the base.
func Check(a Adapter, reading Reading) error {
	g, err := newGiven(a, 0)
	if err == nil {
		err = g.checkFeatures(reading)
	}
	return fault.InFile(err, a.Name)
}

// checkFeatures refuses an adapter that requires what this version does not apply.
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
		if err := r.dropTwins(); err != nil {
			return err
		}
	}
	stacked := false
	for i := range r.model.Layers {
		l := &r.model.Layers[i]
		stacked = stacked || l.Kind == format.Expert
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
	switch l.Kind {
	case format.Expert:
		return nil
	case format.Other:
		return &compact{resolver: r, layer: l}
	case format.Linear:
		if _, _, _, _, ok := naming.ExpertPart(l.Module); ok {
			if f := r.gather(l); f != nil {
				return f
			}
		}
	}
	return &plain{r, l}
}

// resolve adds what the adapter changes to the sheet.
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

// wanted lists the names that the base must have for some forms.
func (r *resolver) wanted(which func(form) bool) (names []string) {
	for _, f := range r.forms {
		if which(f) {
			names = append(names, f.wants()...)
		}
	}
	return names
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

// tensor is the base's tensor for a name of the adapter's, which resolve has found.
func (r *resolver) tensor(name string) Tensor {
	actual, _ := r.mapping.Lookup(name)
	return r.base.Tensors[actual]
}

// change is the change of the tensor for a name of the adapter's, made at first use. How its values
// are stored is not asked for a tensor that is only copied.
func (r *resolver) change(name string, copied bool) (*Change, error) {
	actual, _ := r.mapping.Lookup(name) // resolve has found every name
	if r.fold != nil {
		if err := r.checkFolded(name); err != nil {
			return nil, err
		}
	}
	if c := r.changes[actual]; c != nil {
		return c, nil
	}
	if !copied {
		if err := r.base.checkStorage(actual); err != nil {
			return nil, err
		}
	}
	module := naming.Module(actual)
	if !naming.IsNumbered(module) && r.fold == nil {
		if err := r.checkTied(actual); err != nil {
			return nil, err
		}
	}
	c := &Change{Name: actual, Module: module, Tensor: r.base.Tensors[actual], NBands: 1}
	r.changes[actual] = c
	return c, nil
}

// checkStorage refuses a tensor whose values are not plain floats.
func (b *Base) checkStorage(name string) error {
	quantised := ""
	if m := b.Config.QuantizationMethod; m != "" {
		quantised = fmt.Sprintf(" (quantised: config.json says %s)", m)
	}
	module := naming.Module(name)
	for _, companion := range []string{name + "_scale", name + "_scale_inv", name + ".absmax", name + ".quant_map", name + ".SCB", module + ".scales"} {
		if _, ok := b.Tensors[companion]; ok {
			quantised = fmt.Sprintf(" (quantised: beside it lies %q)", companion)
		}
	}
	d := b.Tensors[name].DType
	if !d.IsFloat() || quantised != "" && d.Size() < 2 {
		return fault.New(fault.Unsupported, "tensor %q of the base is stored as %v%s; F64, F32, F16 and BF16 can be merged into", name, d, quantised).
			WithHint(naming.Dequantise)
	}
	if quantised != "" && !strings.Contains(quantised, "config.json") {
		return fault.New(fault.Unsupported, "tensor %q of the base is not plain%s", name, quantised).
			WithHint(naming.Dequantise)
	}
	return nil
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

// notes gathers what a user should know: each text once, with the names that it is about.
type notes struct {
	texts []string
	about map[string][]string
}

// maxNamed is how many names a note spells out.
const maxNamed = 3

// add adds a text of its own.
func (n *notes) add(format string, args ...any) {
	n.texts = append(n.texts, fmt.Sprintf(format, args...))
}

// of adds a name to those that a text is about.
func (n *notes) of(name, text string) {
	if n.about == nil {
		n.about = make(map[string][]string)
	}
	if n.about[text] == nil {
		n.texts = append(n.texts, text)
	}
	n.about[text] = append(n.about[text], name)
}

// list returns the texts in the order in which they came up.
func (n *notes) list() []string {
	var all []string
	for _, text := range n.texts {
		if names := n.about[text]; names != nil {
			text += ": " + fault.List(names, maxNamed)
		}
		all = append(all, text)
	}
	return all
}
