package naming

import (
	"cmp"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/architecture"
)

// Twins says how the tensors of one image or video model make up those of another: a fine-tune of
// it that another program wrote. The two can name their tensors in different namespaces, and store
// as one weight what the other has as three.
type Twins struct {
	// Slices has the rows that make up a tensor, by its name in the first model; those of several
	// tensors lie one below the other. From counts the rows before them.
	Slices map[string][]Slice
	Pairs  []Pairing // the components that belong together
	// Strangers are components that both models have, of other architectures or sizes.
	Strangers []Pairing
	// Ambiguous are components of the first model that several of the second one fit, or reverse.
	Ambiguous []Pairing
}

// Pairing is a component of each of two models.
type Pairing struct {
	A, B    Component
	Renamed bool   // the names of some tensors differ
	Misfit  string // the first weight, of the first model, that has another shape in the second one
	Misfits int    // how many have

	slices map[string][]Slice
	fits   int // weights of the first model that the second one has in the same shape
}

// FindTwins pairs the components of two image or video models and their tensors. It returns nil if
// one of them is no such model.
func FindTwins(a, b *Base, shapesA, shapesB ShapeOf) *Twins {
	if Components(a, shapesA) == nil || Components(b, shapesB) == nil {
		return nil
	}
	t := &Twins{Slices: make(map[string][]Slice)}
	others := make(map[*component]*pieces)
	for _, c := range componentsOf(b, shapesB) {
		others[c] = c.pieces(b)
	}
	used := make(map[string]Pairing) // by the prefix of B
	for _, c := range componentsOf(a, shapesA) {
		if c.kind == anyKind {
			continue
		}
		best, strange := c.twins(c.pieces(a), componentsOf(b, shapesB), others)
		switch {
		case len(best) == 0 && strange != nil:
			t.Strangers = append(t.Strangers, *strange)
		case len(best) > 1:
			t.Ambiguous = append(t.Ambiguous, best...)
		case len(best) == 1:
			p := best[0]
			if other, ok := used[p.B.Prefix]; ok {
				t.Ambiguous = append(t.Ambiguous, other, p)
			}
			used[p.B.Prefix] = p
			t.Pairs = append(t.Pairs, p)
			for name, at := range p.slices {
				for i := range at {
					at[i].Weight = b.Actual(at[i].Weight)
				}
				t.Slices[a.Actual(name)] = at
			}
		}
	}
	return t
}

// twins compares a component with those of another model: first with those of its number, then with
// other text encoders, because programs number them differently. It returns the best fits, or a
// component that should fit and is of another architecture or size.
func (c *component) twins(
	own *pieces, others []*component, theirs map[*component]*pieces,
) (best []Pairing, strange *Pairing) {
	for i, group := range candidates(c.spelling, others, nil) {
		for _, other := range group {
			if other.kind != c.kind {
				continue
			}
			p := own.compare(theirs[other])
			switch {
			case !c.isLike(other) || p.Misfits > p.fits:
				if strange == nil && i == 0 {
					strange = &p
				}
			case p.fits == 0:
			case len(best) == 0 || p.fits > best[0].fits:
				best = []Pairing{p}
			case p.fits == best[0].fits:
				best = append(best, p)
			}
		}
		if len(best) > 0 {
			break
		}
	}
	return best, strange
}

// isLike reports whether two components can have one architecture. Two tables know CLIP: one by the
// names of transformers, and one by those of OpenCLIP.
func (c *component) isLike(other *component) bool {
	if c.table == nil || other.table == nil || c.table == other.table {
		return true
	}
	clips := []string{"clip", "open_clip"}
	return slices.Contains(clips, c.table.Name) && slices.Contains(clips, other.table.Name)
}

// pieces are the tensors of a component by their names in diffusers, which all namespaces have in
// common.
type pieces struct {
	of      *component
	weights []string                      // in the order of their names
	others  []string                      // tensors that are no weight, such as norms
	parts   map[string][]pieceOf          // by weights
	places  map[architecture.Part]pieceOf // where the parts lie
	tensors map[string]string             // others by their names in diffusers
	names   *Base
}

// pieceOf is a part of an architecture and the rows of a weight that hold it.
type pieceOf struct {
	architecture.Part
	Slice
	columns uint64
}

// pieces takes a component apart.
func (c *component) pieces(b *Base) *pieces {
	p := &pieces{of: c, names: b, parts: make(map[string][]pieceOf),
		places: make(map[architecture.Part]pieceOf), tensors: make(map[string]string)}
	isBias := make(map[string]bool)
	for _, module := range c.modules {
		weight := c.weights[module]
		isBias[BiasOf(weight)] = true
		p.weights = append(p.weights, weight)
		p.parts[weight] = c.divide(module)
		for _, piece := range p.parts[weight] {
			p.places[piece.Part] = piece
		}
	}
	for _, name := range b.sortedNames() {
		inner, ok := strings.CutPrefix(name, c.prefix)
		if !ok || isBias[name] || p.parts[name] != nil || spellingOf(name).prefix != c.prefix {
			continue
		}
		twin := c.canonical(inner)
		module, isWeight := strings.CutSuffix(twin, ".weight")
		if shape := c.shapes(name); isWeight && len(shape) > 1 { // a bare parameter in this namespace
			rows, columns := sizeOf(shape)
			piece := pieceOf{wholePart(module), Slice{Weight: name, Rows: rows}, columns}
			p.weights, p.parts[name] = append(p.weights, name), []pieceOf{piece}
			p.places[piece.Part] = piece
			continue
		}
		p.others = append(p.others, name)
		p.tensors[twin] = name
	}
	return p
}

func wholePart(module string) architecture.Part {
	return architecture.Part{Module: module, Share: 1, Shares: 1}
}

// divide returns the parts of a module, each with its rows.
func (c *component) divide(module string) []pieceOf {
	weight := c.weights[module]
	rows, columns := sizeOf(c.shapes(weight))
	whole := wholePart(c.canonical(module))
	parts := []architecture.Part{whole}
	if c.table != nil {
		if known, ok := c.table.PartsOfShape(module, rows, columns); ok {
			parts = known
		}
	}
	var pieces []pieceOf
	for i, part := range parts {
		first, n := holder{module, parts, i}.rows(rows, columns)
		if n == 0 {
			return []pieceOf{{whole, Slice{Weight: weight, Rows: rows}, columns}}
		}
		part.Square, part.Module = false, c.canonical(part.Module)
		pieces = append(pieces, pieceOf{part, Slice{Weight: weight, At: first, Rows: n}, columns})
	}
	return pieces
}

// canonical returns the name in diffusers of a module or tensor that the table of modules does not
// have.
func (c *component) canonical(name string) string {
	if c.table != nil {
		if diffusers, ok := c.table.Tensor(name); ok {
			name = diffusers
		}
	}
	if c.kind == textEncoder {
		name = strings.TrimPrefix(name, textModel)
	}
	return name
}

// compare finds the tensors of a component in another one.
func (p *pieces) compare(other *pieces) Pairing {
	pair := Pairing{A: p.of.describe(), B: other.of.describe(), slices: make(map[string][]Slice)}
	pair.Renamed = p.of.prefix != other.of.prefix
	add := func(name string, at []Slice) {
		pair.slices[name] = at
		pair.Renamed = pair.Renamed || len(at) != 1 || at[0].Weight != name
	}
	for _, weight := range p.weights {
		at, fits := other.find(p.parts[weight])
		switch {
		case fits:
			pair.fits++
		case at == nil:
			continue
		default:
			pair.Misfits++
			pair.Misfit = cmp.Or(pair.Misfit, weight)
		}
		add(weight, at)
		if bias := p.biases(weight, at, other.names); bias != nil {
			add(BiasOf(weight), bias)
		}
	}
	for _, name := range p.others {
		inner := strings.TrimPrefix(name, p.of.prefix)
		if twin, ok := other.tensors[p.of.canonical(inner)]; ok {
			rows := uint64(1)
			if shape := other.of.shapes(twin); len(shape) > 0 {
				rows = shape[0]
			}
			add(name, []Slice{{Weight: twin, Rows: rows}})
		}
	}
	return pair
}

// find returns the rows that hold the parts of a weight. fits is false if their shapes differ: then
// the rows are those of the whole weight that holds the only part, or none.
func (p *pieces) find(parts []pieceOf) (at []Slice, fits bool) {
	from := uint64(0)
	for _, part := range parts {
		twin, ok := p.places[part.Part]
		switch {
		case !ok:
			return nil, false
		case twin.columns != part.columns || twin.Rows != part.Rows:
			if len(parts) == 1 && len(p.parts[twin.Weight]) == 1 {
				return []Slice{twin.Slice}, false
			}
			return nil, false
		}
		s := twin.Slice
		s.From = from
		from += s.Rows
		if k := len(at) - 1; k >= 0 && at[k].Weight == s.Weight && at[k].At+at[k].Rows == s.At {
			at[k].Rows += s.Rows
		} else {
			at = append(at, s)
		}
	}
	return at, true
}

// biases returns the rows that make up the bias of a weight, if both models have it whole.
func (p *pieces) biases(weight string, at []Slice, other *Base) []Slice {
	if !p.names.Has(BiasOf(weight)) {
		return nil
	}
	biases := slices.Clone(at)
	for i := range biases {
		biases[i].Weight = BiasOf(biases[i].Weight)
		if !other.Has(biases[i].Weight) {
			return nil
		}
	}
	return biases
}
