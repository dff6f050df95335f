// Package architecture knows the module names of image and video models. Two programs may name the
// same weights differently, and one may store as a single weight what the other stores as three. A
// table for each architecture says which rows of which module are which.
//
// The tables follow the classes and converters of diffusers, and testdata/architecture proves them.
// tables/README.md describes their language.
package architecture

import (
	"slices"
	"strconv"
	"strings"
)

// Table maps the native module names of an architecture, those of its authors' own code, to the
// names of diffusers (of transformers, for text encoders). It is safe for concurrent use.
type Table struct {
	Name      string // such as "flux"
	Component string // "unet", "transformer" or "text_encoder": the part of a pipeline it describes

	names *node  // all names, split at dots
	flat  *node  // all names, split at dots and underscores
	rest  *Table // the tensors that are no weight or bias of a module here, by their whole names
}

// Part is a module of diffusers or one of the equal shares of its rows.
type Part struct {
	Module string // the name in diffusers
	Share  int    // which share, from 1
	Shares int    // how many equal shares the module has; 1 means that the part is all of it
	Square bool   // the part has as many rows as its weight has columns
}

// Tables returns all tables in the order of their names. The caller must not change the slice.
func Tables() []*Table { return tables() }

// Parts returns the parts that make up a native or diffusers module, in the order of its rows. In a
// native module, the parts that are not Square have equal numbers of rows. ok is false if the
// architecture has no module of that name.
//
// A few modules have other parts in one block than in all others: see PartsOfShape.
func (t *Table) Parts(module string) (parts []Part, ok bool) {
	e, numbers := t.find(module)
	if e == nil {
		return nil, false
	}
	return e.parts(numbers), true
}

// PartsOfShape returns the parts of a module whose weight has the given rows and columns. They
// differ from those of Parts if the table has parts for just this shape: the last block of SD 3
// modulates the text with two vectors, in another order in diffusers, and all others with six.
func (t *Table) PartsOfShape(module string, rows, columns uint64) (parts []Part, ok bool) {
	e, numbers := t.find(module)
	if e == nil {
		return nil, false
	}
	if square := e.square; square != nil {
		parts = square.parts(numbers)
		if n := uint64(len(parts)); rows%n == 0 && rows/n == columns {
			return parts, true
		}
	}
	return e.parts(numbers), true
}

// Tensor returns the name in diffusers of a tensor that the table leaves out: of a norm, a position
// embedding or another bare parameter. ok is false if the architecture has none of that name.
func (t *Table) Tensor(name string) (diffusers string, ok bool) {
	parts, ok := t.rest.Parts(name)
	if !ok {
		return "", false
	}
	return parts[0].Module, true
}

// Native returns the native module that holds a part, and the part's place among the parts of that
// module, from 0. Square does not matter. ok is false if no native module holds exactly this part.
func (t *Table) Native(part Part) (module string, i int, ok bool) {
	module, _, i, ok = t.Holder(part)
	return module, i, ok
}

// Holder is Native, and returns all parts of the native module in the order of its rows.
func (t *Table) Holder(part Part) (module string, parts []Part, i int, ok bool) {
	e, numbers := t.find(part.Module)
	for ; e != nil; e = e.square {
		for _, p := range e.places {
			if have := p.part(); have.Share == part.Share && have.Shares == part.Shares {
				return fill(p.in.native, numbers), filled(p.in.parts, numbers), p.i, true
			}
		}
	}
	return "", nil, 0, false
}

// Unflatten returns every module, native or of diffusers, that Flatten maps to flat. One module is
// usual; the order is alphabetical.
func (t *Table) Unflatten(flat string) []string {
	var modules []string
	t.flat.walk(strings.Split(flat, "_"), nil, func(e *entry, numbers []string) {
		modules = append(modules, fill(e.name, numbers))
	})
	slices.Sort(modules)
	return modules
}

// Flatten returns a module's name as kohya's scripts store it, with underscores in place of dots.
func Flatten(module string) string { return strings.ReplaceAll(module, ".", "_") }

// Weight returns the name of a module's weight. It is "weight" in the module, except that a fused
// in_proj of torch has in_proj_weight.
func Weight(module string) string { return parameter(module, "weight") }

// Bias returns the name of a module's bias, by the rule of Weight.
func Bias(module string) string { return parameter(module, "bias") }

func parameter(module, name string) string {
	if module == inProj || strings.HasSuffix(module, "."+inProj) {
		return module + "_" + name
	}
	return module + "." + name
}

// inProj is the name of the projections in a torch.nn.MultiheadAttention, which are no module.
const inProj = "in_proj"

// row is one native module of a table. In its names, each # stands for a number.
type row struct {
	native string
	parts  []Part
}

// isSquare reports whether the shape of the weight follows from the number of parts.
func (r *row) isSquare() bool {
	return !slices.ContainsFunc(r.parts, func(p Part) bool { return !p.Square })
}

// place is where a native module holds a part.
type place struct {
	in *row
	i  int
}

func (p place) part() Part { return p.in.parts[p.i] }

// entry is a name in a table with # for numbers. A name that both namespaces share has both native
// and places.
type entry struct {
	name   string
	native *row
	places []place // of a diffusers module, in the order of its shares
	square *entry  // what the name means for a weight of just that shape; nil if nothing else
}

// parts returns the parts of the entry's module with these numbers in its name.
func (e *entry) parts(numbers []string) []Part {
	if e.native != nil {
		return filled(e.native.parts, numbers)
	}
	var parts []Part
	for _, p := range e.places {
		parts = append(parts, p.part())
	}
	return filled(parts, numbers)
}

// filled returns parts with these numbers in their names.
func filled(parts []Part, numbers []string) []Part {
	parts = slices.Clone(parts)
	for i := range parts {
		parts[i].Module = fill(parts[i].Module, numbers)
	}
	return parts
}

// node is a tree of names by their segments.
type node struct {
	next    map[string]*node // by segment; "#" leads on by any number
	entries []*entry         // the names that end here
}

// find returns the entry of a module and the numbers in its name; nil if there is none.
func (t *Table) find(module string) (found *entry, numbers []string) {
	t.names.walk(strings.Split(module, "."), nil, func(e *entry, n []string) {
		found, numbers = e, slices.Clone(n)
	})
	return found, numbers
}

// walk calls f for each entry whose name fits the segments. numbers has the numbers met so far.
func (n *node) walk(segments, numbers []string, f func(e *entry, numbers []string)) {
	if len(segments) == 0 {
		for _, e := range n.entries {
			f(e, numbers)
		}
		return
	}
	first, rest := segments[0], segments[1:]
	if next := n.next[first]; next != nil && first != "#" {
		next.walk(rest, numbers, f)
	}
	if next := n.next["#"]; next != nil && isNumber(first) {
		next.walk(rest, append(numbers, first), f)
	}
}

// isNumber reports whether s is a number as programs print it, without leading zeros.
func isNumber(s string) bool {
	n, err := strconv.ParseUint(s, 10, 31)
	return err == nil && strconv.FormatUint(n, 10) == s
}

// fill replaces each # in a name by the next number.
func fill(name string, numbers []string) string {
	for _, n := range numbers {
		name = strings.Replace(name, "#", n, 1)
	}
	return name
}
