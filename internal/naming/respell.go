package naming

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/architecture"
)

// Namespace is how a program names the modules of image and video models.
type Namespace int

const (
	// Flat: kohya's names, such as lora_unet_single_blocks_0_linear1.
	Flat Namespace = iota
	// OfDiffusers: a component and the name in diffusers, such as transformer.proj_out.
	OfDiffusers
	// OfComfyUI: a text of ComfyUI and the authors' name, such as
	// diffusion_model.final_layer.linear.
	OfComfyUI
)

// Piece is a run of rows of a respelled module that comes from a module of the adapter.
type Piece struct {
	Module string
	At     uint64 // the first row in the respelled module
	From   uint64 // the first row in the adapter's module
	Rows   uint64
}

// Respelled is a module of an adapter in another namespace. The adapter does not change the rows
// that no piece has.
type Respelled struct {
	Name      string
	Component string  // as diffusers calls it
	Rows      uint64  // of the whole module
	Points    int     // dimensions of a weight of the base whose kernel is a single point; 0 if unknown
	Pieces    []Piece // by their first rows
}

// Respelling is an adapter in another namespace. One projection of queries, keys and values in one
// namespace can be three modules in another.
type Respelling struct {
	Modules  []Respelled // in the order of their names
	Denoiser string      // the architecture of the denoiser, "" if it is unknown

	// The rest is empty if every module has a name in the namespace.
	Unknown  []string // modules that no table and no base knows
	Several  []string // architectures that fit, and give the modules different names
	Nameless []string // modules of a component that the namespace does not have
	Partial  []string // modules whose further rows nothing counts
	Twice    []string // modules that are there under two names
	Absent   *Spread  // where the base lacks modules; nil if it lacks none
}

// IsWhole reports whether every module has been named.
func (r *Respelling) IsWhole() bool {
	return r.Unknown == nil && r.Several == nil && r.Nameless == nil && r.Partial == nil &&
		r.Twice == nil && r.Absent == nil
}

// Respell gives the modules of an adapter their names in another namespace. It knows them by the
// tables of the architectures, or by a base, which may be nil. Where several tables know them,
// architecture, which may be "", is the one to take. A flat name is never divided by a guess.
func Respell(
	to Namespace, modules []Update, base *Base, shapes ShapeOf, architecture string,
) *Respelling {
	r := &respeller{to: to, out: &Respelling{}, atoms: make(map[atomKey]*atom), wanted: architecture}
	if base != nil {
		r.components = componentsOf(base, shapes)
	}
	parts := make(map[spelling][]Update)
	for _, m := range modules {
		own := spellingOf(m.Name)
		parts[own] = append(parts[own], m)
	}
	var order []spelling // denoisers first: the numbers of text encoders depend on them
	for own := range parts {
		order = append(order, own)
	}
	slices.SortFunc(order, func(a, b spelling) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.prefix, b.prefix))
	})
	for _, own := range order {
		r.place(own, parts[own])
	}
	if r.out.IsWhole() {
		r.build()
	}
	r.out.Denoiser = r.denoiser
	return r.out
}

// respeller collects the parts of an adapter's modules.
type respeller struct {
	to         Namespace
	components []*component // of the base; nil without one
	wanted     string       // the architecture to take where several fit; "" if it is unknown
	denoiser   string       // its architecture, "" if it is unknown
	manyTexts  bool         // the adapter has a second text encoder
	atoms      map[atomKey]*atom
	order      []atomKey
	out        *Respelling
}

// atomKey is a part of an architecture that no namespace divides any further. Without a table, the
// part is a whole module of the base.
type atomKey struct {
	component string
	table     *architecture.Table
	part      architecture.Part // not Square
}

// atom is where the rows of a part come from.
type atom struct {
	piece   Piece
	columns uint64
	in      *component // of the base; nil without one
}

// place finds the parts of the modules that begin with one text.
func (r *respeller) place(own spelling, modules []Update) {
	if r.components != nil {
		r.placeByBase(own, modules)
		return
	}
	var found []*architecture.Table
	for _, t := range architecture.Tables() {
		if isText := kindOf(t) == textEncoder; own.kind != anyKind && isText != (own.kind == textEncoder) {
			continue
		}
		if namesIn(t, own, modules) != nil {
			found = append(found, t)
		}
	}
	if len(found) == 0 {
		r.out.Unknown = append(r.out.Unknown, namesOf(modules)...)
		return
	}
	isWanted := func(t *architecture.Table) bool { return t.Name == r.wanted }
	if i := slices.IndexFunc(found, isWanted); i >= 0 {
		found = found[i : i+1]
	}
	if !r.agree(found, own, modules) {
		for _, t := range found {
			r.out.Several = append(r.out.Several, t.Name)
		}
		return
	}
	r.add(found[0], nil, own, modules)
}

// agree reports whether several tables give the modules the same names.
func (r *respeller) agree(tables []*architecture.Table, own spelling, modules []Update) bool {
	var first *Respelling
	for _, t := range tables {
		alone := &respeller{to: r.to, denoiser: r.denoiser, manyTexts: r.manyTexts,
			out: &Respelling{}, atoms: make(map[atomKey]*atom)}
		alone.add(t, nil, own, modules)
		alone.build()
		if first == nil {
			first = alone.out
		} else if !reflect.DeepEqual(first, alone.out) {
			return false
		}
	}
	return true
}

// placeByBase finds modules in the one component of the base that has all of them.
func (r *respeller) placeByBase(own spelling, modules []Update) {
	for _, c := range r.components {
		if c.table != nil && kindOf(c.table) == denoiser && r.denoiser == "" {
			r.denoiser = c.table.Name
		}
	}
	groups := candidates(own, r.components, nil)
	var whole []*found
	for _, group := range groups {
		for _, c := range group {
			if f := c.findAll(own, modules); f.isWhole() {
				whole = append(whole, f)
			}
		}
		if whole != nil {
			break
		}
	}
	if len(whole) != 1 {
		absent := &Spread{Slices: make(map[string][]Slice)}
		absent.place(own, modules, groups)
		r.out.Absent = absent
		return
	}
	c := whole[0].in
	if c.table != nil && namesIn(c.table, own, modules) != nil {
		r.add(c.table, c, own, modules)
		return
	}
	for _, m := range modules {
		at := whole[0].slices[m.Name]
		if len(at) != 1 || c.table != nil {
			r.out.Unknown = append(r.out.Unknown, m.Name)
			continue
		}
		name := strings.TrimPrefix(WeightModule(at[0].Weight), c.prefix)
		component := cmp.Or(c.name, own.name, "transformer")
		key := atomKey{component, nil, architecture.Part{Module: name, Share: 1, Shares: 1}}
		r.put(key, &atom{Piece{m.Name, 0, 0, m.Rows}, m.Columns, c})
	}
}

// namesIn returns the names of modules in a table, nil if it does not know each by one name.
func namesIn(t *architecture.Table, own spelling, modules []Update) []string {
	var names []string
	for _, m := range modules {
		name, ok := nameIn(t, own, strings.TrimPrefix(m.Name, own.prefix))
		if !ok {
			return nil
		}
		names = append(names, name)
	}
	return names
}

// nameIn returns the name of a module in a table. Text encoders may lack a segment of it.
func nameIn(t *architecture.Table, own spelling, inner string) (name string, ok bool) {
	spelled := []string{inner}
	if kindOf(t) == textEncoder {
		spelled = append(spelled, textModel+inner)
	}
	for _, name := range spelled {
		if !own.flat {
			if _, ok := t.Parts(name); ok {
				return name, true
			}
			continue
		}
		if names := t.Unflatten(architecture.Flatten(name)); len(names) > 0 {
			return names[0], len(names) == 1
		}
	}
	return "", false
}

// add takes the parts of modules that a table knows.
func (r *respeller) add(t *architecture.Table, c *component, own spelling, modules []Update) {
	if kindOf(t) == denoiser {
		r.denoiser = t.Name
	}
	component := r.componentOf(t, own)
	r.manyTexts = r.manyTexts || component == "text_encoder_2" || component == "text_encoder_3"
	for i, name := range namesIn(t, own, modules) {
		m := modules[i]
		parts, _ := t.PartsOfShape(name, m.Rows, m.Columns)
		from := uint64(0)
		for i, p := range parts {
			_, rows := holder{parts: parts, i: i}.rows(m.Rows, m.Columns)
			if rows == 0 {
				r.out.Unknown = append(r.out.Unknown, m.Name)
				break
			}
			p.Square = false
			r.put(atomKey{component, t, p}, &atom{Piece{m.Name, 0, from, rows}, m.Columns, c})
			from += rows
		}
	}
}

// componentOf returns the component that modules with this beginning belong to.
func (r *respeller) componentOf(t *architecture.Table, own spelling) string {
	switch {
	case kindOf(t) == denoiser && own.number < 2 && own.name != "prior":
		return t.Component
	case kindOf(t) == textEncoder && own.name == "text_encoder_3" && r.denoiser == "flux":
		return "text_encoder_2" // kohya and ComfyUI number T5 as in Stable Diffusion 3
	}
	return cmp.Or(own.name, t.Component)
}

func (r *respeller) put(key atomKey, a *atom) {
	if r.atoms[key] != nil {
		r.out.Twice = append(r.out.Twice, a.piece.Module)
		return
	}
	r.atoms[key] = a
	r.order = append(r.order, key)
}

// build makes the modules of the namespace from the parts.
func (r *respeller) build() {
	modules := make(map[string]*Respelled)
	for _, key := range r.order {
		a := r.atoms[key]
		module, parts, i := r.moduleOf(key)
		name, ok := r.nameOf(key, module)
		if !ok {
			r.out.Nameless = append(r.out.Nameless, a.piece.Module)
			continue
		}
		first, total, ok := r.rowsOf(key, a, parts, i)
		if !ok {
			r.out.Partial = append(r.out.Partial, a.piece.Module)
			continue
		}
		if modules[name] == nil {
			modules[name] = &Respelled{Name: name, Component: key.component, Rows: total}
		}
		modules[name].Points = a.points(key)
		a.piece.At = first
		modules[name].Pieces = append(modules[name].Pieces, a.piece)
	}
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		m := modules[name]
		m.join()
		r.out.Modules = append(r.out.Modules, *m)
	}
	slices.Sort(r.out.Nameless)
	slices.Sort(r.out.Partial)
}

// moduleOf returns the module of the namespace that holds a part, all its parts, and the place of
// this one among them.
func (r *respeller) moduleOf(key atomKey) (module string, parts []architecture.Part, i int) {
	isNative := key.table != nil && kindOf(key.table) == denoiser &&
		(r.to == OfComfyUI || r.to == Flat && key.table.Name != "sd1")
	if isNative {
		if module, parts, i, ok := key.table.Holder(key.part); ok {
			return module, parts, i
		}
	}
	for share := range key.part.Shares {
		p := architecture.Part{Module: key.part.Module, Share: share + 1, Shares: key.part.Shares}
		parts = append(parts, p)
	}
	return key.part.Module, parts, key.part.Share - 1
}

// rowsOf returns the first row of a part in its module, and the rows of the whole module. ok is
// false if nothing tells the rows of a part that the adapter lacks.
func (r *respeller) rowsOf(
	key atomKey, a *atom, parts []architecture.Part, place int,
) (first, total uint64, ok bool) {
	even := uint64(0) // the rows of each part that is not square
	if !parts[place].Square {
		even = a.piece.Rows
	}
	for _, p := range parts {
		if !p.Square && even == 0 {
			even = r.rowsElsewhere(key, a, p)
		}
	}
	for i, p := range parts {
		n := even
		if p.Square {
			n = a.columns
		}
		if n == 0 || i == place && n != a.piece.Rows {
			return 0, 0, false
		}
		if i < place {
			first += n
		}
		total += n
	}
	return first, total, true
}

// rowsElsewhere returns the rows of another part: in the adapter, or in the base; 0 if neither has
// it.
func (r *respeller) rowsElsewhere(key atomKey, a *atom, p architecture.Part) uint64 {
	p.Square = false
	key.part = p
	if other := r.atoms[key]; other != nil {
		return other.piece.Rows
	}
	if a.in == nil {
		return 0
	}
	h, ok := a.in.holders[p]
	if !ok {
		return 0
	}
	rows, columns := sizeOf(a.in.shapes(a.in.weights[h.module]))
	_, n := h.rows(rows, columns)
	return n
}

// points returns the dimensions of the base's weight for a part, if its kernel is a single point.
func (a *atom) points(key atomKey) int {
	if a.in == nil {
		return 0
	}
	module := key.part.Module
	if key.table != nil {
		module = a.in.holders[key.part].module
	}
	shape := a.in.shapes(a.in.weights[module])
	if len(shape) < 2 || slices.ContainsFunc(shape[2:], func(n uint64) bool { return n != 1 }) {
		return 0
	}
	return len(shape)
}

// join sorts the pieces and joins those that follow each other on both sides.
func (m *Respelled) join() {
	slices.SortFunc(m.Pieces, func(a, b Piece) int { return cmp.Compare(a.At, b.At) })
	joined := m.Pieces[:1]
	for _, p := range m.Pieces[1:] {
		last := &joined[len(joined)-1]
		if p.Module == last.Module && p.At == last.At+last.Rows && p.From == last.From+last.Rows {
			last.Rows += p.Rows
		} else {
			joined = append(joined, p)
		}
	}
	m.Pieces = joined
}

func namesOf(modules []Update) []string {
	names := make([]string, len(modules))
	for i, m := range modules {
		names[i] = m.Name
	}
	return names
}
