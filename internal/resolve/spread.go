package resolve

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// spread is a layer of an image or video model whose module the base names in another way, or
// divides: rows of one weight or of several.
type spread struct {
	plain
	slices []naming.Slice
}

func (s *spread) wants() (names []string) {
	for _, at := range s.slices {
		names = append(names, at.Weight)
		if _, ok := s.layer.Roles[format.RoleBias]; ok {
			names = append(names, naming.BiasOf(at.Weight))
		}
	}
	return names
}

func (s *spread) add() error {
	if len(s.slices) == 1 && strings.HasSuffix(s.slices[0].Weight, ".weight") && s.isWhole(s.slices[0]) {
		return (&plain{s.resolver, s.layer, s.slices[0].Weight}).add()
	}
	x, a, b, err := s.term(s.layer)
	if err != nil {
		return err
	}
	if _, ok := s.magnitude(); ok {
		return s.dividedMagnitude(s.places())
	}
	if s.isInPairs(s.layer) {
		return fault.New(fault.Unsupported, "%q has the rows of each attention head in the order of llama.cpp, "+
			"and the base divides its weight: %s", s.layer.Module, s.places())
	}
	left, right := wholeB(b, s.layer.Rank), WholeA(a, s.layer.Rank)
	for _, at := range s.slices {
		c, err := s.change(at.Weight, false)
		if err != nil {
			return err
		}
		c.add(x, left.part(int(at.From), int(at.Rows)).to(int(at.At)), right, false)
		if i, ok := s.layer.Roles[format.RoleBias]; ok {
			if err := s.addBiasRows(x, s.blob(i), at); err != nil {
				return err
			}
		}
	}
	return nil
}

// isWhole reports whether a slice is the whole weight.
func (s *spread) isWhole(at naming.Slice) bool {
	shape := s.tensor(at.Weight).Shape
	return at.At == 0 && len(shape) > 0 && at.Rows == shape[0]
}

// addBiasRows adds the rows of lora_B's bias that belong to a slice.
func (s *spread) addBiasRows(x Term, b Blob, at naming.Slice) error {
	c, err := s.change(naming.BiasOf(at.Weight), false)
	if err != nil {
		return err
	}
	have, want := b.Tensor().Elements(), s.layerRows()
	if have != want || len(c.Shape) != 1 || c.Shape[0] < at.At+at.Rows {
		return fault.New(fault.Mismatch, "lora_B.bias of %q has %s, want %d; the base's %q has shape %d",
			x.Module, fault.Count(have, "element"), want, c.Name, c.Shape)
	}
	x.Rank, x.Left = 1, one
	x.Right = WholeA(b, 1).part(int(at.From), int(at.Rows)).to(int(at.At))
	c.Terms = append(c.Terms, x)
	return nil
}

func (s *spread) layerRows() int64 {
	return int64(s.manifest.Tensors[s.layer.Roles[format.RoleB]].Shape[0])
}

// places names the weights of the slices.
func (s *spread) places() string {
	var names []string
	for _, at := range s.slices {
		names = append(names, at.Weight)
	}
	return fault.List(slices.Compact(names), 3)
}

// updater is a form of one module, which can lie in a base as slices of rows.
type updater interface {
	form
	update() naming.Update
	// spreadOver returns the form for these slices.
	spreadOver(at []naming.Slice) form
}

func (p *plain) spreadOver(at []naming.Slice) form { return &spread{*p, at} }

func (m *method) spreadOver(at []naming.Slice) form {
	spread := *m
	spread.at = at
	return &spread
}

// spread looks for the layers in the components of an image or video model, and gives each that it
// finds another form. ok is false if the adapter is not of such a model.
func (r *resolver) spread() (ok bool, err error) {
	var modules []naming.Update
	for _, f := range r.forms {
		u, is := f.(updater)
		if !is {
			return false, nil
		}
		modules = append(modules, u.update())
	}
	s := naming.FindSpread(r.names, modules, r.shape, r.reading.Only)
	if !s.IsWhole() {
		says := slices.ContainsFunc(modules, func(m naming.Update) bool { return naming.ComponentOf(m.Name) != "" })
		isAsked := len(r.reading.Only) > 0 && r.isImage()
		if !says && !isAsked && len(s.Slices) == 0 && s.Misfit == nil {
			return false, nil
		}
		return true, explainSpread(r, s, len(modules))
	}
	for i, f := range r.forms {
		module := f.(updater).update().Name
		x := f.(updater).spreadOver(s.Slices[module])
		if slices.ContainsFunc(x.wants(), func(name string) bool { return !r.names.Has(name) }) {
			return true, noBias(r, module)
		}
		r.forms[i] = x
	}
	r.mapping = naming.Unchanged(r.names)
	return true, nil
}

// update describes the layer's update for naming. Any layer has A and B: Check has refused others.
// The factors of a convolution can have any shape; those of fewer than two dimensions get the size
// 0, which no weight has.
func (p *plain) update() naming.Update {
	tensors := p.manifest.Tensors
	a, b := tensors[p.layer.Roles[format.RoleA]].Shape, tensors[p.layer.Roles[format.RoleB]].Shape
	if len(a) < 2 || len(b) < 2 {
		return naming.Update{Name: p.layer.Module}
	}
	m := naming.Update{Name: p.layer.Module, Rows: b[0], Columns: 1}
	for _, n := range a[1:] {
		m.Columns *= n
	}
	if p.layer.Kind == format.Embedding {
		m.Rows, m.Columns = m.Columns, m.Rows
	}
	return m
}

// explainSpread says why the components of the base cannot take the adapter.
func explainSpread(r *resolver, s *naming.Spread, n int) error {
	for _, name := range s.Absent {
		if file := r.base.Unread[name]; file != "" {
			return fault.New(fault.Unsupported, "the adapter changes %s, whose weights cannot be read: %s", name, file).
				In(r.base.Path).WithHint("in Python, load the pipeline with diffusers and save it with save_pretrained, which writes safetensors")
		}
	}
	switch {
	case s.Absent != nil && len(s.Slices) > 0:
		return fault.New(fault.Mismatch, "the adapter changes components that the base lacks: %s; the base has %s", strings.Join(s.Absent, ", "), describeComponents(r)).
			WithHint("give a base that has them, such as the directory of the whole pipeline, or say with Options.Only which components to change, to leave the others out")
	case s.Absent != nil:
		var wanted []string
		for _, f := range r.forms {
			wanted = append(wanted, f.wants()...)
		}
		return fault.New(fault.Mismatch, "the adapter changes %s, and the base has %s", strings.Join(s.Absent, ", "), describeComponents(r)).
			WithHint("%s", r.wrongBase()+swapped(r, wanted))
	case s.Ambiguous != nil:
		slices.Sort(s.Ambiguous)
		return fault.New(fault.Mismatch, "the adapter's module names fit the base in several places: %s", fault.List(slices.Compact(s.Ambiguous), 4)).
			WithHint("say with Options.Only which component to change")
	case s.Misfit != nil:
		m := s.Misfit[0]
		return fault.New(fault.Mismatch, "%q: B·A is %d×%d, but the base's %q has shape %d; %s %s not fit; the base has %s",
			m.Name, m.Rows, m.Columns, m.Weight, r.shape(m.Weight), fault.Count(len(s.Misfit), "layer"), fault.Choose(len(s.Misfit), "does", "do"), describeComponents(r)).
			WithHint("%s", r.wrongBase())
	}
	if only := r.reading.Only; len(only) > 0 && r.isImage() {
		return fault.New(fault.Mismatch, "%d of the %d modules that the adapter changes are not in %s: %s; the base has %s", len(s.Missing), n, strings.Join(only, ", "),
			fault.List(s.Missing, 3), describeComponents(r)).WithHint("name in Options.Only the components that the adapter is for, or leave it out")
	}
	e := fault.New(fault.Mismatch, "the base lacks %d of the %d modules that the adapter changes: %s; the base has %s", len(s.Missing), n, fault.List(s.Missing, 3), describeComponents(r))
	if n > 2*len(s.Missing) {
		return e.WithHint("the base has most of them, so the adapter may be for a variant of this model; an adapter that shall go without these layers must be saved without them")
	}
	return e.WithHint("%s", r.wrongBase())
}

// describeComponents names the components of the base and their architectures.
func describeComponents(r *resolver) string {
	var names []string
	for _, c := range r.components() {
		switch {
		case c.Name == "":
		case c.Architecture == "":
			names = append(names, c.Name)
		default:
			names = append(names, c.Name+" ("+c.Architecture+")")
		}
	}
	if names == nil {
		return "no component of an image model that is known here, but, for example, " + fault.Quote(r.base.Names()[0])
	}
	return strings.Join(names, " and ")
}
