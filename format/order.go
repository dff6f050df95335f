package format

import (
	"cmp"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/jsontext"
)

// This file puts the contents of a file in order, whatever the order of the source: the lists of
// the manifest as R33 requires, and the tensors by dtype, since a change of dtype ends a chunk.
// Within a dtype stand all A, all B and the rest, each by adapter, module and role: tensors of one
// kind side by side compress better. Or, if the writer wants layers together, the tensors by
// adapter, module and role, and after all layers the tensors beside them.

// arranged is a manifest in the order of the file.
type arranged struct {
	manifest *Manifest
	codings  []coding
	source   []int // for each blob of the file, its index in the source
}

// arrange is arrangeBy with the usual order.
func arrange(m *Manifest) (a *arranged, text []byte, err error) { return arrangeBy(m, compareGroups) }

// arrangeBy puts a manifest in order, the tensors as compare says, and drops repeated requirements.
// It checks the result as if it came from a file; text is its canonical form.
func arrangeBy(m *Manifest, compare order) (a *arranged, text []byte, err error) {
	s, err := sortBy(m, compare)
	if err != nil {
		return nil, nil, err
	}
	out := s.Manifest
	a = &arranged{source: s.tensors}
	out.Tensors = make([]Tensor, len(s.tensors))
	for to, from := range s.tensors {
		out.Tensors[to] = m.Tensors[from]
		a.codings = append(a.codings, codingOf(&m.Tensors[from]))
	}
	for _, from := range s.attachments {
		a.source = append(a.source, len(m.Tensors)+from)
	}
	if text, err = encodeManifest(&out, a.codings, s.appendPosition); err != nil {
		return nil, nil, err
	}
	// Reading the text back checks it by the rules of every reader, and numbers the tensors by
	// their new positions.
	if a.manifest, _, err = parseManifest(string(text), false); err != nil {
		return nil, nil, err
	}
	return a, text, nil
}

// sorted is a manifest whose lists are in the order of the file, but for the tensors: they stand as
// in the source, and the records refer to them so.
type sorted struct {
	Manifest
	tensors     []int // their indices in the source, in the order of the file
	position    []int // of each tensor of the source in the file
	attachments []int // their indices in the source, in the order of the file
}

func (s *sorted) appendPosition(dst []byte, i int) []byte { return appendIndex(dst, s.position[i]) }

func sortBy(m *Manifest, compare order) (*sorted, error) {
	if m == nil {
		return nil, noManifest()
	}
	s := &sorted{Manifest: *m}
	s.Adapters = slices.Clone(m.Adapters)
	slices.SortStableFunc(s.Adapters, func(x, y Adapter) int { return strings.Compare(x.Name, y.Name) })
	for i := range s.Adapters {
		x := &s.Adapters[i]
		x.Layers = slices.Clone(x.Layers)
		slices.SortStableFunc(x.Layers, func(l, k Layer) int { return strings.Compare(l.Module, k.Module) })
		x.Requires = slices.Clone(x.Requires)
		slices.SortFunc(x.Requires, compareRequirements)
		x.Requires = slices.Compact(x.Requires)
		x.Beside = slices.Clone(x.Beside)
	}
	var err error
	if s.tensors, err = storageOrder(&s.Manifest, compare); err != nil {
		return nil, err
	}
	s.position = make([]int, len(s.tensors))
	for to, from := range s.tensors {
		s.position[from] = to
	}
	for i := range s.Adapters {
		slices.SortStableFunc(s.Adapters[i].Beside, func(x, y Beside) int {
			return cmp.Compare(s.position[x.Tensor], s.position[y.Tensor])
		})
	}
	s.attachments = make([]int, len(m.Attachments))
	for i := range s.attachments {
		s.attachments[i] = i
	}
	slices.SortStableFunc(s.attachments, func(i, j int) int {
		return strings.Compare(m.Attachments[i].Name, m.Attachments[j].Name)
	})
	s.Attachments = make([]Attachment, len(m.Attachments))
	for to, from := range s.attachments {
		s.Attachments[to] = m.Attachments[from]
	}
	return s, nil
}

// codingOf returns the coding in which a file holds a tensor.
func codingOf(t *Tensor) coding {
	if t.DType.IsFloat() {
		return planes
	}
	return raw
}

// checked sorts a manifest and checks it as arrange does, without holding its text: it writes and
// reads one record after the other. The text of a manifest of many small layers takes more memory
// than its tensors.
func checked(m *Manifest) (*sorted, error) {
	s, err := sortBy(m, compareGroups)
	if err != nil {
		return nil, err
	}
	if s.isReadable() {
		return s, nil
	}
	if _, _, err := arrange(m); err != nil {
		return nil, err // it says at which byte
	}
	return s, nil
}

// isReadable reports whether all records survive writing and reading, and fit each other.
func (s *sorted) isReadable() bool {
	e := encoder{index: s.appendPosition}
	in := newScanner("", false)
	reads := func(record func(*scanner)) bool {
		jsontext.Reset(in.Scanner, string(e.buf))
		e.buf = e.buf[:0]
		record(in)
		in.End()
		return e.err == nil && in.ok()
	}
	codings := make([]coding, len(s.Tensors))
	for i := range s.Tensors {
		codings[i] = codingOf(&s.Tensors[i])
		e.tensor(&s.Tensors[i], codings[i])
		if !reads(func(in *scanner) { in.tensor() }) {
			return false
		}
	}
	rest := s.Manifest
	rest.Tensors, rest.Adapters = nil, slices.Clone(s.Adapters)
	for i := range rest.Adapters {
		a := &rest.Adapters[i]
		for j := range a.Layers {
			if j > 0 && a.Layers[j].Module == a.Layers[j-1].Module {
				return false
			}
			e.layer(&a.Layers[j])
			if !reads(func(in *scanner) { in.layer() }) {
				return false
			}
		}
		a.Layers = nil
	}
	text, err := encodeManifest(&rest, nil, s.appendPosition)
	e.buf = text
	return err == nil && reads(func(in *scanner) { in.manifest() }) && validate(&s.Manifest, codings) == nil
}

// place is the sort key of a tensor.
type place struct {
	tensor       int // index in the source
	dtype        dtype.Type
	group        int // within the layer
	beside       int // 0 in a layer, 1 beside
	adapter      int
	module, role string
}

// order compares the places of two tensors.
type order func(p, q place) int

// compareGroups puts all A before all B, and all B before the rest.
func compareGroups(p, q place) int {
	return cmp.Or(cmp.Compare(p.dtype, q.dtype), cmp.Compare(p.group, q.group), compareModules(p, q))
}

// compareLayers keeps the tensors of a layer together.
func compareLayers(p, q place) int {
	return cmp.Or(cmp.Compare(p.dtype, q.dtype), cmp.Compare(p.beside, q.beside), compareModules(p, q))
}

func compareModules(p, q place) int {
	return cmp.Or(cmp.Compare(p.adapter, q.adapter), strings.Compare(p.module, q.module),
		cmp.Compare(p.group, q.group), strings.Compare(p.role, q.role))
}

// storageOrder returns the tensors' indices in the source, in the order of the file. The adapters
// of m are sorted.
func storageOrder(m *Manifest, compare order) ([]int, error) {
	places := make([]place, len(m.Tensors))
	for i := range places {
		places[i] = place{tensor: i, dtype: m.Tensors[i].DType, adapter: -1}
	}
	refer := func(i, adapter, beside int, module, role string, group int) error {
		if i < 0 || i >= len(places) {
			return broken(45, "adapter %q: tensor index %d, want less than %d", m.Adapters[adapter].Name, i, len(places))
		}
		switch places[i].adapter {
		case -1:
		case adapter:
			return broken(46, "adapter %q: tensor %d, %q, is referred to twice", m.Adapters[adapter].Name, i, m.Tensors[i].Name)
		default:
			return nil // the first adapter that refers to a shared tensor places it
		}
		p := &places[i]
		p.adapter, p.beside, p.module, p.role, p.group = adapter, beside, module, role, group
		return nil
	}
	for n := range m.Adapters {
		a := &m.Adapters[n]
		for j := range a.Layers {
			l := &a.Layers[j]
			for role, i := range l.Roles {
				if err := refer(i, n, 0, l.Module, string(role), groupOf(role)); err != nil {
					return nil, err
				}
			}
		}
		for j := range a.Beside {
			i := a.Beside[j].Tensor
			name := ""
			if i >= 0 && i < len(m.Tensors) {
				name = m.Tensors[i].Name
			}
			if err := refer(i, n, 1, name, "", 2); err != nil {
				return nil, err
			}
		}
	}
	slices.SortStableFunc(places, compare)
	source := make([]int, len(places))
	for to := range places {
		source[to] = places[to].tensor
	}
	return source, nil
}

// groupOf sorts the tensors of a layer: A first, then B, then the rest.
func groupOf(role Role) int {
	switch role {
	case RoleA:
		return 0
	case RoleB:
		return 1
	}
	return 2
}
