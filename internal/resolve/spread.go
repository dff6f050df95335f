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
		// A layer of its own under the base's name: every form that plain knows fits.
		own := *s.layer
		own.Module = naming.Module(s.slices[0].Weight)
		return (&plain{s.resolver, &own}).add()
	}
	x, a, b, err := s.term(s.layer)
	if err != nil {
		return err
	}
	if _, ok := s.layer.Roles[format.RoleMagnitude]; ok {
		return fault.New(fault.Unsupported, "%q has magnitudes of DoRA, and the base divides its weight in another way: %s", s.layer.Module, s.places()).
			WithHint("merge into a base that names its modules as the adapter does, such as the pipeline of diffusers for an adapter of diffusers")
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

// spread looks for the layers in the components of an image or video model, and gives each that it
// finds another form. ok is false if the adapter is not of such a model.
func (r *resolver) spread() (ok bool, err error) {
	var modules []naming.Update
	for _, f := range r.forms {
		p, is := f.(*plain)
		if !is {
			return false, nil
		}
		modules = append(modules, p.update())
	}
	s := naming.FindSpread(r.names, modules, func(name string) []uint64 { return r.base.Tensors[r.names.Actual(name)].Shape }, r.reading.Only)
	if !s.IsWhole() {
		says := slices.ContainsFunc(modules, func(m naming.Update) bool { return naming.ComponentOf(m.Name) != "" })
		if !says && len(s.Slices) == 0 && s.Misfit == nil {
			return false, nil
		}
		return true, r.explainSpread(s, len(modules))
	}
	for i, f := range r.forms {
		x := &spread{*f.(*plain), s.Slices[f.(*plain).layer.Module]}
		if slices.ContainsFunc(x.wants(), func(name string) bool { return !r.names.Has(name) }) {
			return true, noBias(r, x.layer.Module)
		}
		r.forms[i] = x
	}
	r.mapping = naming.Unchanged(r.names)
	return true, nil
}

// update describes the layer's update for naming. Any layer has A and B: Check has refused others.
func (p *plain) update() naming.Update {
	tensors := p.manifest.Tensors
	a, b := tensors[p.layer.Roles[format.RoleA]].Shape, tensors[p.layer.Roles[format.RoleB]].Shape
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
func (r *resolver) explainSpread(s *naming.Spread, n int) error {
	switch {
	case s.Absent != nil && len(s.Slices) > 0:
		return fault.New(fault.Mismatch, "the adapter changes components that the base lacks: %s", strings.Join(s.Absent, ", ")).
			WithHint("give a base that has them, such as the directory of the whole pipeline, or say with Options.Only which components to change, to leave the others out")
	case s.Absent != nil:
		return fault.New(fault.Mismatch, "the adapter changes %s, and the base has no such component: it has, for example, %q",
			strings.Join(s.Absent, ", "), r.base.Names()[0]).WithHint("%s", r.wrongBase())
	case s.Ambiguous != nil:
		slices.Sort(s.Ambiguous)
		return fault.New(fault.Mismatch, "the adapter's module names fit the base in several places: %s", fault.List(slices.Compact(s.Ambiguous), 4)).
			WithHint("say with Options.Only which component to change")
	case s.Misfit != nil:
		m := s.Misfit[0]
		return fault.New(fault.Mismatch, "%q: B·A is %d×%d, but the base's %q has shape %d; %s do not fit",
			m.Name, m.Rows, m.Columns, m.Weight, r.base.Tensors[r.names.Actual(m.Weight)].Shape, fault.Count(len(s.Misfit), "layer")).
			WithHint("%s", r.wrongBase())
	}
	return fault.New(fault.Mismatch, "the base lacks %d of the %d modules that the adapter changes: %s", len(s.Missing), n, fault.List(s.Missing, 3)).
		WithHint("%s", r.wrongBase())
}
