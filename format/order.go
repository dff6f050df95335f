package format

import (
	"cmp"
	"slices"
	"strings"
)

// This file puts the contents of a file in order, whatever the order of the source: the lists of
// the manifest as R33 requires, the tensors by dtype, then all A, all B and the rest, then by
// adapter, module and role. Tensors of one kind side by side compress better.

// arranged is a manifest in the order of the file.
type arranged struct {
	manifest *Manifest
	codings  []coding
	source   []int // for each blob of the file, its index in the source
}

// arrange puts a manifest in order and drops repeated requirements. It checks the result as if it
// came from a file; text is its canonical form.
func arrange(m *Manifest) (a *arranged, text []byte, err error) {
	if m == nil {
		return nil, nil, noManifest()
	}
	out := *m
	out.Adapters = slices.Clone(m.Adapters)
	slices.SortStableFunc(out.Adapters, func(x, y Adapter) int { return strings.Compare(x.Name, y.Name) })
	for i := range out.Adapters {
		x := &out.Adapters[i]
		x.Layers = slices.Clone(x.Layers)
		slices.SortStableFunc(x.Layers, func(l, k Layer) int { return strings.Compare(l.Module, k.Module) })
		x.Requires = slices.Clone(x.Requires)
		slices.SortFunc(x.Requires, compareRequirements)
		x.Requires = slices.Compact(x.Requires)
		x.Beside = slices.Clone(x.Beside)
	}
	order, err := storageOrder(&out)
	if err != nil {
		return nil, nil, err
	}
	position := make([]int, len(order))
	a = &arranged{source: order}
	out.Tensors = make([]Tensor, len(order))
	for to, from := range order {
		position[from] = to
		out.Tensors[to] = m.Tensors[from]
		c := raw
		if m.Tensors[from].DType.IsFloat() {
			c = planes
		}
		a.codings = append(a.codings, c)
	}
	for i := range out.Adapters {
		slices.SortStableFunc(out.Adapters[i].Beside, func(x, y Beside) int {
			return cmp.Compare(position[x.Tensor], position[y.Tensor])
		})
	}
	attachments := make([]int, len(m.Attachments))
	for i := range attachments {
		attachments[i] = i
	}
	slices.SortStableFunc(attachments, func(i, j int) int { return strings.Compare(m.Attachments[i].Name, m.Attachments[j].Name) })
	out.Attachments = make([]Attachment, len(m.Attachments))
	for to, from := range attachments {
		out.Attachments[to] = m.Attachments[from]
		a.source = append(a.source, len(m.Tensors)+from)
	}
	index := func(dst []byte, i int) []byte { return appendIndex(dst, position[i]) }
	if text, err = encodeManifest(&out, a.codings, index); err != nil {
		return nil, nil, err
	}
	// Reading the text back checks it by the rules of every reader, and numbers the tensors by
	// their new positions.
	if a.manifest, _, err = parseManifest(string(text), false); err != nil {
		return nil, nil, err
	}
	return a, text, nil
}

// place is the sort key of a tensor.
type place struct {
	tensor       int // index in the source
	rank         int // order of dtype and group
	adapter      int
	module, role string
}

// storageOrder returns the tensors' indices in the source, in the order of the file. The adapters
// of m are sorted.
func storageOrder(m *Manifest) ([]int, error) {
	places := make([]place, len(m.Tensors))
	for i := range places {
		places[i] = place{tensor: i, rank: int(m.Tensors[i].DType) * 3, adapter: -1}
	}
	refer := func(i, adapter int, module, role string, group int) error {
		if i < 0 || i >= len(places) {
			return broken(45, "adapter %q: tensor index %d, want less than %d", m.Adapters[adapter].Name, i, len(places))
		}
		if places[i].adapter >= 0 {
			return broken(46, "adapter %q: tensor %d, %q, is referred to twice", m.Adapters[adapter].Name, i, m.Tensors[i].Name)
		}
		p := &places[i]
		p.adapter, p.module, p.role = adapter, module, role
		p.rank += group
		return nil
	}
	for n := range m.Adapters {
		a := &m.Adapters[n]
		for j := range a.Layers {
			l := &a.Layers[j]
			for role, i := range l.Roles {
				if err := refer(i, n, l.Module, string(role), groupOf(role)); err != nil {
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
			if err := refer(i, n, name, "", 2); err != nil {
				return nil, err
			}
		}
	}
	slices.SortStableFunc(places, func(p, q place) int {
		return cmp.Or(cmp.Compare(p.rank, q.rank), cmp.Compare(p.adapter, q.adapter),
			strings.Compare(p.module, q.module), strings.Compare(p.role, q.role))
	})
	order := make([]int, len(places))
	for to := range places {
		order[to] = places[to].tensor
	}
	return order, nil
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
