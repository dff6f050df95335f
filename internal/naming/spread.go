package naming

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/architecture"
)

// Update is what an adapter does to one module: its name, and the size of ΔW: a matrix
// Rows×Columns, the dimensions of a weight behind the first one taken together. A number that only
// the base tells is 0.
type Update struct {
	Name          string
	Rows, Columns uint64
	IsVector      bool // the weight has one dimension, of Rows elements, as in a norm
}

// Slice is a run of rows that a module of an adapter and a weight of the base have in common.
type Slice struct {
	Weight string // in the base
	At     uint64 // the first row in the weight
	From   uint64 // the first row in the module
	Rows   uint64
}

// Spread says where the modules of an adapter lie in the components of a base. A base can name them
// in another namespace, or divide them in another way: one projection of queries, keys and values
// there is three modules here.
type Spread struct {
	Slices map[string][]Slice // by the names of the modules

	// The rest is empty if every module was found.
	Missing   []string // modules that the base lacks
	Absent    []string // components that the adapter changes, and the base lacks
	Misfit    []Misfit // modules that the base has in another shape
	Ambiguous []string // the places where one module can lie
}

// Misfit is a module whose weight in the base has another shape.
type Misfit struct {
	Update
	Weight string
}

// IsWhole reports whether every module that was wanted has been found.
func (s *Spread) IsWhole() bool {
	return s.Missing == nil && s.Absent == nil && s.Misfit == nil && s.Ambiguous == nil
}

// FindSpread looks for modules in the components of a base. If only is not empty, it looks in these
// components alone, as diffusers calls them.
func FindSpread(b *Base, modules []Update, shapes ShapeOf, only []string) *Spread {
	s := &Spread{Slices: make(map[string][]Slice)}
	components := componentsOf(b, shapes)
	parts := make(map[spelling][]Update)
	for _, m := range modules {
		own := spellingOf(m.Name)
		parts[own] = append(parts[own], m)
	}
	for _, own := range slices.SortedFunc(maps.Keys(parts), func(a, b spelling) int { return cmp.Compare(a.prefix, b.prefix) }) {
		s.place(own, parts[own], candidates(own, components, only))
	}
	return s
}

// IsWanted reports whether a module is of a component in only. It is if its name does not say a
// component.
func IsWanted(module string, only []string) bool {
	own := spellingOf(module)
	return own.name == "" || isWanted(own, only)
}

// isWanted reports whether the user asked for a component. The names of a first denoiser mean each
// other.
func isWanted(s spelling, only []string) bool {
	return slices.ContainsFunc(only, func(name string) bool {
		return name == s.name || s.kind == denoiser && s.number < 2 && slices.Contains(denoisers, name)
	})
}

// denoisers are the names that diffusers gives to the first denoiser of a model.
var denoisers = []string{"unet", "transformer", "prior"}

// candidates lists the components of a base that a part of an adapter can be for: those of its
// number, and then other text encoders, because programs number them differently.
func candidates(own spelling, components []*component, only []string) (groups [2][]*component) {
	for _, c := range components {
		switch {
		case len(only) > 0 && !isWanted(c.spelling, only) && (c.name != "" || own.name == ""):
		case own.kind != anyKind && c.kind != anyKind && own.kind != c.kind:
		case own.number == c.number, own.number == 0, c.number == 0:
			groups[0] = append(groups[0], c)
		case own.kind == textEncoder:
			groups[1] = append(groups[1], c)
		}
	}
	return groups
}

// place finds the modules of one part of an adapter in the component that has all of them.
func (s *Spread) place(own spelling, modules []Update, groups [2][]*component) {
	var nearest *found
	for _, group := range groups {
		var whole []*found
		for _, c := range group {
			f := c.findAll(own, modules)
			if f.isWhole() {
				whole = append(whole, f)
			}
			if nearest == nil || len(f.slices) > len(nearest.slices) {
				nearest = f
			}
		}
		switch len(whole) {
		case 0:
			continue
		case 1:
			maps.Copy(s.Slices, whole[0].slices)
			return
		}
		for _, f := range whole {
			s.Ambiguous = append(s.Ambiguous, cmp.Or(f.in.name, "the tensors without a component"))
		}
		return
	}
	if nearest == nil && own.name == "" {
		nearest = (&component{}).findAll(own, modules)
	}
	if nearest == nil || own.kind != anyKind && own.kind != nearest.in.kind && nearest.isEmpty() {
		s.Absent = append(s.Absent, own.name)
		return
	}
	s.Missing = append(s.Missing, nearest.missing...)
	s.Misfit = append(s.Misfit, nearest.misfit...)
	s.Ambiguous = append(s.Ambiguous, nearest.ambiguous...)
}

// found says where modules lie in one component.
type found struct {
	in        *component
	slices    map[string][]Slice
	missing   []string
	misfit    []Misfit
	ambiguous []string
}

// isEmpty reports whether the component has none of the modules, in whatever shape.
func (f *found) isEmpty() bool {
	return len(f.slices) == 0 && f.misfit == nil && f.ambiguous == nil
}

func (f *found) isWhole() bool { return f.missing == nil && f.misfit == nil && f.ambiguous == nil }

func (c *component) findAll(own spelling, modules []Update) *found {
	f := &found{in: c, slices: make(map[string][]Slice)}
	for _, m := range modules {
		fits, misfit := c.find(own, m)
		switch {
		case len(fits) == 1:
			f.slices[m.Name] = fits[0]
		case len(fits) > 1:
			for _, at := range fits {
				f.ambiguous = append(f.ambiguous, at[0].Weight)
			}
		case misfit != "":
			f.misfit = append(f.misfit, Misfit{m, misfit})
		default:
			f.missing = append(f.missing, m.Name)
		}
	}
	return f
}

// find lists the places of a module in a component. Its own name goes before those of other
// namespaces. misfit is a weight of the right name and another shape.
func (c *component) find(own spelling, m Update) (fits [][]Slice, misfit string) {
	rest := strings.TrimPrefix(m.Name, own.prefix)
	var names []string
	for _, spelled := range c.spelled(rest) {
		if own.flat {
			names = append(names, c.flatModules(architecture.Flatten(spelled))...)
		} else {
			names = append(names, spelled)
		}
	}
	for _, name := range names {
		at, weight := c.whole(name, m)
		if at == nil && weight == "" && c.table != nil {
			at, weight = c.spread(name, m)
		}
		switch {
		case at == nil:
			misfit = cmp.Or(misfit, weight)
		case !slices.ContainsFunc(fits, func(other []Slice) bool { return slices.Equal(other, at) }):
			fits = append(fits, at)
		}
	}
	return fits, misfit
}

// textModel is a segment in front of the modules of CLIP that transformers 5 dropped.
const textModel = "text_model."

// spelled lists the ways to spell the name of a module of an adapter.
func (c *component) spelled(name string) []string {
	if c.kind != textEncoder || strings.HasPrefix(name, strings.TrimSuffix(textModel, ".")) {
		return []string{name}
	}
	return []string{name, textModel + name}
}

// whole returns the weight of the very module if it has the module's shape.
func (c *component) whole(name string, m Update) (at []Slice, misfit string) {
	weight, ok := c.weights[name]
	if !ok || m.IsVector {
		weight, ok = c.vectors[name]
	}
	if !ok {
		return nil, ""
	}
	rows, columns := sizeOf(c.shapes(weight))
	if !m.fits(rows, columns) {
		return nil, weight
	}
	return []Slice{{Weight: weight, Rows: rows}}, ""
}

// fits reports whether a weight has the size of the update.
func (m *Update) fits(rows, columns uint64) bool {
	return (m.Rows == 0 || m.Rows == rows) && (m.Columns == 0 || m.Columns == columns)
}

// spread finds the parts of a module, each in the weight that holds it. Rows that follow each other
// in both are one slice.
func (c *component) spread(name string, m Update) (at []Slice, misfit string) {
	if m.IsVector {
		return nil, "" // no table divides it
	}
	if m.Columns == 0 {
		m.Columns = c.columns(name)
	}
	parts, ok := c.table.Parts(name)
	if m.Rows > 0 {
		parts, ok = c.table.PartsOfShape(name, m.Rows, m.Columns)
	}
	if !ok {
		return nil, ""
	}
	from := uint64(0)
	for _, p := range parts {
		h, ok := c.holders[p]
		if !ok {
			return nil, misfit
		}
		weight := c.weights[h.module]
		misfit = cmp.Or(misfit, weight)
		rows, columns := sizeOf(c.shapes(weight))
		first, n := h.rows(rows, columns)
		if columns != m.Columns || n == 0 {
			return nil, weight
		}
		if k := len(at) - 1; k >= 0 && at[k].Weight == weight && at[k].At+at[k].Rows == first {
			at[k].Rows += n
		} else {
			at = append(at, Slice{Weight: weight, At: first, From: from, Rows: n})
		}
		from += n
	}
	if m.Rows > 0 && from != m.Rows {
		return nil, misfit
	}
	return at, ""
}

// columns returns the number of columns of a module that the base divides, 0 if it is not there.
func (c *component) columns(name string) (columns uint64) {
	parts, _ := c.table.Parts(name)
	for _, p := range parts {
		if h, ok := c.holders[p]; ok {
			_, columns = sizeOf(c.shapes(c.weights[h.module]))
		}
	}
	return columns
}

// rows returns the rows of a weight that hold a part: the first one, and their number; 0 if the
// weight cannot be divided so.
func (h holder) rows(rows, columns uint64) (first, n uint64) {
	if len(h.parts) == 1 {
		return 0, rows
	}
	squares := uint64(0)
	for _, p := range h.parts {
		if p.Square {
			squares++
		}
	}
	others := uint64(len(h.parts)) - squares
	rest := rows - squares*columns
	if rest > rows || others > 0 && (rest == 0 || rest%others != 0) || others == 0 && rest != 0 {
		return 0, 0
	}
	size := func(p architecture.Part) uint64 {
		if p.Square {
			return columns
		}
		return rest / others
	}
	for _, p := range h.parts[:h.i] {
		first += size(p)
	}
	return first, size(h.parts[h.i])
}
