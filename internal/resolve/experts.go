package resolve

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// An adapter of stacked experts adapts a parameter of E matrices d1×d2 by the factors A, (E·r)×n
// with one expert after the other, and B, m×(r·E) with the expert running fastest. (n, m) is (d2,
// d1), or else (d1, d2), and then the parameter stores every product transposed: PEFT has changed
// this twice.
//
// The base may stack the experts or have a module for each, and so may the model that the adapter
// was trained in.

// stacked is the form of all layers of an adapter that adapt stacked experts. PEFT treats all of
// them alike, so one module can show the orientation of another.
type stacked struct {
	*resolver
	modules []*experts
	sides   map[bool]bool // the orientations seen in parameters that are not square; true is transposed
}

// experts groups the layers that adapt parameters of one module.
type experts struct {
	module string
	names  []string        // of the parameters, as the model registers them
	layers []*format.Layer // by nesting, the innermost first
	stacks []stack         // the shapes of the parameters
}

// groupExperts gathers the layers of stacked experts by their modules.
func (r *resolver) groupExperts() error {
	s := &stacked{resolver: r}
	paths := r.features[format.FeatureExperts]
	at := make(map[string]int)
	for i := range r.model.Layers {
		l := &r.model.Layers[i]
		if !l.Kind.IsExpert() {
			continue
		}
		a, b := r.blob(l.Roles[format.RoleA]).Tensor().Shape, r.blob(l.Roles[format.RoleB]).Tensor().Shape
		if len(a) != 2 || len(b) != 2 || a[0] != b[1] || a[0] == 0 || a[0]%uint64(l.Rank) != 0 {
			return fault.New(fault.Corrupt, "the experts %q: lora_A has shape %d and lora_B %d, want (E·%d)×n and m×(%d·E)", l.Module, a, b, l.Rank, l.Rank)
		}
		module, _ := naming.CutNesting(l.Module)
		if _, ok := at[module]; !ok {
			at[module] = len(s.modules)
			s.modules = append(s.modules, &experts{module: module, names: naming.ParametersOf(module, paths)})
		}
		g := s.modules[at[module]]
		g.layers = append(g.layers, l)
	}
	for _, g := range s.modules {
		slices.SortFunc(g.layers, func(a, b *format.Layer) int { return len(b.Module) - len(a.Module) })
		if len(g.names) != len(g.layers) {
			return fault.New(fault.Unsupported, "the adapter has factors for %s of %q, but target_parameters names %d: %s", fault.Count(len(g.layers), "parameter"), g.module, len(g.names), fault.List(g.names, 3)).
				WithHint("list in target_parameters every parameter that has factors; convert a .lora file of an older version again from its source")
		}
	}
	r.forms = append(r.forms, s)
	return nil
}

// parameter returns the path of parameter i.
func (g *experts) parameter(i int) string { return g.module + "." + g.names[i] }

// wants lists the parameters, or the weights of every expert.
func (s *stacked) wants() (names []string) {
	for _, g := range s.modules {
		nExperts := 0
		for _, l := range g.layers {
			nExperts = max(nExperts, s.nExperts(l))
		}
		for i := range g.layers {
			parts := s.split(g, i)
			if parts == nil {
				names = append(names, s.stacks(g, i)...)
				continue
			}
			for e := range nExperts {
				for _, part := range parts {
					names = append(names, expertWeight(g.module, e, part))
				}
			}
		}
	}
	return names
}

// split returns the weights of each expert that the base has in place of a parameter, or nil if it
// has the parameter.
func (s *stacked) split(g *experts, i int) []string {
	if s.names.HasTail(naming.Leaf(g.module) + "." + g.names[i]) {
		return nil
	}
	return s.names.ExpertParts(g.module, g.names[i])
}

// stacks returns the stacked parameters that the base has for a parameter: itself, or its parts, as
// llama.cpp has them.
func (s *stacked) stacks(g *experts, i int) (names []string) {
	if !s.names.HasTail(naming.Leaf(g.module) + "." + g.names[i]) {
		for _, part := range naming.StackedParts(s.names, g.module, g.names[i]) {
			names = append(names, g.module+"."+part)
		}
	}
	if names == nil {
		names = []string{g.parameter(i)}
	}
	return names
}

func expertWeight(module string, expert int, part string) string {
	return fmt.Sprintf("%s.%d.%s.weight", module, expert, part)
}

// nExperts returns the number of experts in the factors of a layer.
func (g *given) nExperts(l *format.Layer) int {
	return int(g.blob(l.Roles[format.RoleA]).Tensor().Shape[0]) / l.Rank
}

// factorShape returns n and m: A is (E·r)×n and B m×(r·E).
func (g *given) factorShape(l *format.Layer) (n, m uint64) {
	return g.blob(l.Roles[format.RoleA]).Tensor().Shape[1], g.blob(l.Roles[format.RoleB]).Tensor().Shape[0]
}

// stack is the shape of a parameter: n experts d1×d2, whether the base stacks them or has a module
// for each. A parameter of two dimensions, such as a router, is a matrix; PEFT applies factors to
// it as to a linear layer.
type stack struct {
	n, d1, d2 uint64
	matrix    bool
}

// stackOf looks up the shape of a parameter. If the base has a module for each expert, their
// weights make up the parameter.
func (s *stacked) stackOf(g *experts, i int) (stack, error) {
	parts := s.split(g, i)
	if parts == nil {
		return s.shapeOf(s.stacks(g, i))
	}
	var all stack
	first := s.tensor(expertWeight(g.module, 0, parts[0])).Shape
	for s.hasExpert(g.module, int(all.n), parts[0]) {
		for _, part := range parts {
			shape := s.tensor(expertWeight(g.module, int(all.n), part)).Shape
			if len(shape) != 2 || !slices.Equal(shape, first) {
				return stack{}, fault.New(fault.Mismatch, "the weights %s of the experts %q do not fit together: one has shape %d", strings.Join(parts, " and "), g.module, shape).
					WithHint("%s", s.wrongBase())
			}
		}
		all.n++
	}
	all.d1, all.d2 = first[0]*uint64(len(parts)), first[1]
	return all, nil
}

// shapeOf returns the shape of the parameter that stacked parameters make up.
func (s *stacked) shapeOf(names []string) (stack, error) {
	first := s.tensor(names[0]).Shape
	for _, name := range names {
		shape := s.tensor(name).Shape
		if len(shape) != 2 && len(shape) != 3 || !slices.Equal(shape, first) || len(names) > 1 && len(shape) != 3 {
			return stack{}, fault.New(fault.Mismatch, "%q of the base has shape %d, but target_parameters need two or three dimensions", name, shape).
				WithHint("%s", s.wrongBase())
		}
	}
	if len(first) == 2 {
		return stack{1, first[0], first[1], true}, nil
	}
	return stack{first[0], first[1] * uint64(len(names)), first[2], false}, nil
}

func (s *stacked) hasExpert(module string, expert int, part string) bool {
	_, ok := s.mapping.Lookup(expertWeight(module, expert, part))
	return ok
}

// fits reports whether the factors of a layer are for a parameter of this shape.
func (g *given) fits(l *format.Layer, s stack) bool {
	n, m := g.factorShape(l)
	return uint64(g.nExperts(l)) == s.n && (n == s.d2 && m == s.d1 || n == s.d1 && m == s.d2 && !s.matrix)
}

// pair pairs the layers of a module with its parameters. The shapes decide. If several orders fit,
// the order decides in which known models register the parameters.
func (s *stacked) pair(g *experts) error {
	stacks := make([]stack, len(g.layers))
	for i := range g.layers {
		var err error
		if stacks[i], err = s.stackOf(g, i); err != nil {
			return err
		}
	}
	var fitting [][]int // orders of the parameters
	eachOrder(len(g.layers), func(order []int) {
		for i, l := range g.layers {
			if !s.fits(l, stacks[order[i]]) {
				return
			}
		}
		fitting = append(fitting, slices.Clone(order))
	})
	if len(fitting) == 0 {
		return s.explain(g, stacks)
	}
	inOrder := slices.IsSorted(fitting[0]) // the plain order comes first
	known := !slices.ContainsFunc(g.names, func(name string) bool { return !naming.IsRegistered(name) })
	if len(fitting) > 1 && !(known && inOrder) || !inOrder && !g.isUniform() {
		why := fmt.Sprintf("their keys do not say, PEFT nests them in the order in which the model registers them, "+
			"and %d orders fit the shapes", len(fitting))
		if len(fitting) == 1 {
			why = "only another order than PEFT's fits the shapes, and the factors differ in rank or scale"
		}
		return fault.New(fault.Mismatch, "cannot tell which factors of %q belong to which of its parameters %s: %s",
			g.module, strings.Join(g.names, ", "), why).WithHint("train one adapter for each of the parameters")
	}
	if !inOrder {
		names, ordered := slices.Clone(g.names), make([]stack, len(stacks))
		for i, k := range fitting[0] {
			g.names[i], ordered[i] = names[k], stacks[k]
		}
		stacks = ordered
		s.notes.add("the shapes say that the parameters of %q nest in the order %s", g.module, strings.Join(g.names, ", "))
	}
	g.stacks = stacks
	for i, l := range g.layers {
		if x := stacks[i]; !x.matrix && x.d1 != x.d2 {
			n, _ := s.factorShape(l)
			s.sides[n == x.d1] = true
		}
	}
	return nil
}

// add adds the updates of all stacked experts.
func (s *stacked) add() error {
	s.sides = make(map[bool]bool)
	for _, g := range s.modules {
		if err := s.pair(g); err != nil {
			return err
		}
	}
	for _, g := range s.modules {
		for i, l := range g.layers {
			if err := s.addStack(g, i, l, g.stacks[i]); err != nil {
				return err
			}
		}
	}
	if s.reading.ExpertsSlowest {
		s.notes.add("lora_B of the experts is read with one expert after the other, as Options.ExpertsSlowest asks")
	}
	return nil
}

// isUniform reports whether all factors have the same rank and scale, so that no order of the
// parameters changes these.
func (g *experts) isUniform() bool {
	return !slices.ContainsFunc(g.layers, func(l *format.Layer) bool { return l.Rank != g.layers[0].Rank || l.Scale() != g.layers[0].Scale() })
}

func (s *stacked) explain(g *experts, stacks []stack) error {
	for i, l := range g.layers {
		if x := stacks[i]; !s.fits(l, x) {
			n, m := s.factorShape(l)
			return fault.New(fault.Mismatch, "the experts %q: lora_A is for %s of %d columns and lora_B has %d rows, but the base's parameter %s is %d×%d×%d",
				l.Module, fault.Count(s.nExperts(l), "expert"), n, m, g.names[i], x.n, x.d1, x.d2).WithHint("%s", s.wrongBase())
		}
	}
	return nil
}

// eachOrder calls f with every order of n things, the plain one first.
func eachOrder(n int, f func(order []int)) {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	var place func(i int)
	place = func(i int) {
		if i == n {
			f(order)
			return
		}
		for k := i; k < n; k++ {
			order[i], order[k] = order[k], order[i]
			place(i + 1)
			order[i], order[k] = order[k], order[i]
		}
	}
	place(0)
}

// addStack adds the update of one parameter.
func (s *stacked) addStack(g *experts, i int, l *format.Layer, shape stack) error {
	x, a, b, err := s.term(l)
	if err != nil {
		return err
	}
	n, m := s.factorShape(l)
	transposed, err := s.orient(l, shape, n)
	if err != nil {
		return err
	}
	nExperts, rank := s.nExperts(l), l.Rank
	ofExpert := func(e int) (fb, fa Factor) {
		fa = Factor{Blob: a, At: e * rank * int(n), Across: int(n), Along: 1, Repeat: 1, Length: int(n)}
		fb = Factor{Blob: b, At: e, Across: nExperts, Along: nExperts * rank, Repeat: 1, Length: int(m)}
		if s.reading.ExpertsSlowest {
			fb.At, fb.Across = e*rank, 1
		}
		return fb, fa
	}
	parts := s.split(g, i)
	if parts == nil {
		return s.addTo(s.stacks(g, i), x, nExperts, ofExpert, transposed)
	}
	rows := int(shape.d1) / len(parts)
	for e := range nExperts {
		for k, part := range parts {
			c, err := s.change(expertWeight(g.module, e, part), false)
			if err != nil {
				return err
			}
			fb, fa := ofExpert(e)
			if transposed {
				fa = fa.part(k*rows, rows)
			} else {
				fb = fb.part(k*rows, rows)
			}
			c.add(x, fb, fa, transposed)
		}
	}
	return nil
}

// addTo adds the updates of all experts to the stacked parameters that they are for. Of several,
// each gets its part of the rows of every expert.
func (s *stacked) addTo(names []string, x Term, nExperts int, ofExpert func(e int) (fb, fa Factor), transposed bool) error {
	for k, name := range names {
		c, err := s.stackedChange(name)
		if err != nil {
			return err
		}
		for e := range nExperts {
			x.Band = e
			fb, fa := ofExpert(e)
			rows := &fb
			if transposed {
				rows = &fa
			}
			switch n := rows.Length / len(names); {
			case len(names) == 1:
			case naming.HasInterleavedExperts(s.base.Config.ModelType):
				rows.Runs = Runs{From: k, Size: 1, Step: len(names), Takes: true}
			default:
				*rows = rows.part(k*n, n)
			}
			c.add(x, fb, fa, transposed)
		}
	}
	return nil
}

// stackedChange is the change of a parameter that stacks experts: one band per expert.
func (r *resolver) stackedChange(parameter string) (*Change, error) {
	c, err := r.change(parameter, false)
	if err != nil || len(c.Shape) != 3 || c.Stacked {
		return c, err
	}
	if len(c.Terms) > 0 {
		return nil, StackedAndNot(c.Name)
	}
	c.Stacked, c.NBands = true, max(1, int(c.Shape[0]))
	return c, nil
}

// orient decides whether a parameter stores its products transposed. The shapes tell. For a square
// parameter the user decides first, then the kind of the layer, then the adapter's other
// parameters, since PEFT treats all of them alike.
func (s *stacked) orient(l *format.Layer, shape stack, n uint64) (bool, error) {
	if shape.matrix || shape.d1 != shape.d2 {
		return !shape.matrix && n == shape.d1, nil
	}
	modelType := s.base.Config.ModelType
	isTransposed, loadsTransposed := naming.HasTransposedExperts(modelType), naming.LoadsExpertsTransposed(modelType)
	isTurned := isTransposed && s.base.isGGUF() // the base has the dimensions in the other order
	releases := "for a model of type " + modelType + " it also depends on the release of transformers"
	switch {
	case s.reading.ExpertInput > 0:
		return (s.reading.ExpertInput == 1) != isTurned, nil
	case l.Kind == format.ExpertSecond:
		return isTurned, nil
	case len(s.sides) == 1:
		s.notes.of(l.Module, "the experts are square, so the adapter's other parameters decide their orientation")
		return s.sides[true], nil
	case len(s.sides) == 2:
		return false, undecided(l, shape, "the other parameters of the adapter disagree")
	case l.Kind == format.Expert:
		return false, undecided(l, shape, "the adapter does not say")
	case loadsTransposed:
		return false, undecided(l, shape, releases)
	case l.Kind == format.ExpertFirst:
		s.notes.of(l.Module, saysDimension(l.Kind))
		return !isTurned, nil
	case modelType == "":
		return false, undecided(l, shape, "the base has no config.json that names the type of the model")
	case isTransposed:
		return false, undecided(l, shape, releases)
	}
	s.notes.of(l.Module, saysDimension(l.Kind))
	return l.Kind == format.ExpertOutputs, nil
}

func saysDimension(k format.Kind) string {
	return "the experts are square, and lora_A reads their " + reads[k] + ", as the adapter says"
}

// reads says in words which dimension of a square matrix A reads.
var reads = map[format.Kind]string{
	format.ExpertInputs: "inputs", format.ExpertOutputs: "outputs", format.ExpertFirst: "first dimension", format.ExpertSecond: "second dimension",
}

func undecided(l *format.Layer, s stack, why string) error {
	return fault.New(fault.Unsupported, "the experts of %q are square, %d×%d, so their shape does not tell which dimension is the input: %s", l.Module, s.d1, s.d2, why).
		WithHint("set Options.ExpertInput, to 1 if lora_A reads the first dimension of an expert (PEFT up to 0.18 on most models, and gpt-oss), to 2 if it reads the second; a .lora file of an older version can also be converted again from its source")
}
