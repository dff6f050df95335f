package merge

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// An adapter of stacked experts has, for a parameter of E matrices d1×d2, the factors A, (E·r)×n with one expert after the other, and
// B, m×(r·E) with the expert running fastest. (n, m) is (d2, d1), or (d1, d2), and then every product stands transposed in the
// parameter: PEFT has changed its mind about that twice.
//
// The base may hold the experts stacked or one by one, and so may the adapter be made.

// experts are the layers that adapt parameters of one module.
type experts struct {
	module string
	names  []string        // of the parameters, as the model registers them
	layers []*format.Layer // by nesting, the innermost first
	stacks []stack         // the shapes of the parameters
}

// groupExperts gathers the layers of stacked experts by their modules.
func (r *resolver) groupExperts() error {
	var paths []string
	for _, q := range r.adapter.Requires {
		if q.Feature == format.FeatureExperts {
			paths = append(paths, q.Where)
		}
	}
	at := make(map[string]int)
	for i := range r.adapter.Layers {
		l := &r.adapter.Layers[i]
		if l.Kind != format.Expert {
			continue
		}
		a, b := r.blob(l.Roles[format.RoleA]).tensor().Shape, r.blob(l.Roles[format.RoleB]).tensor().Shape
		if len(a) != 2 || len(b) != 2 || a[0] != b[1] || a[0] == 0 || a[0]%uint64(l.Rank) != 0 {
			return fault.New(fault.Corrupt, "the experts %q: lora_A has shape %d and lora_B %d, want (E·%d)×n and m×(%d·E)", l.Module, a, b, l.Rank, l.Rank)
		}
		module, _ := naming.CutNesting(l.Module)
		if _, ok := at[module]; !ok {
			at[module] = len(r.experts)
			r.experts = append(r.experts, &experts{module: module, names: naming.ParametersOf(module, paths)})
		}
		g := r.experts[at[module]]
		g.layers = append(g.layers, l)
	}
	for _, g := range r.experts {
		slices.SortFunc(g.layers, func(a, b *format.Layer) int { return len(b.Module) - len(a.Module) })
		if len(g.names) != len(g.layers) {
			return fault.New(fault.Unsupported, "the adapter has the factors of %d parameters of %q, and target_parameters names %d: %s", len(g.layers), g.module, len(g.names), fault.List(g.names, 3)).
				WithHint("name in target_parameters the parameters that the factors are for; a .lora file of an older version is converted again from its source")
		}
	}
	return nil
}

// parameter is the path of a parameter of a group.
func (g *experts) parameter(i int) string { return g.module + "." + g.names[i] }

// wantedExperts lists the tensors that the base must have for a group: its parameters, or the weights of every expert.
func (r *resolver) wantedExperts(g *experts) (names []string) {
	for i, l := range g.layers {
		parts := r.split(g, i)
		if parts == nil {
			names = append(names, g.parameter(i))
			continue
		}
		for e := range r.nExperts(l) {
			for _, part := range parts {
				names = append(names, expertWeight(g.module, e, part))
			}
		}
	}
	return names
}

// split returns the weights of each expert that the base has in place of a parameter, or nil if it has the parameter.
func (r *resolver) split(g *experts, i int) []string {
	if r.names.HasTail(naming.Leaf(g.module) + "." + g.names[i]) {
		return nil
	}
	return r.names.ExpertParts(g.module, g.names[i])
}

func expertWeight(module string, expert int, part string) string {
	return fmt.Sprintf("%s.%d.%s.weight", module, expert, part)
}

// nExperts is how many experts the factors of a layer are for.
func (r *resolver) nExperts(l *format.Layer) int {
	return int(r.blob(l.Roles[format.RoleA]).tensor().Shape[0]) / l.Rank
}

// factorShape returns n and m: A is (E·r)×n and B m×(r·E).
func (r *resolver) factorShape(l *format.Layer) (n, m uint64) {
	return r.blob(l.Roles[format.RoleA]).tensor().Shape[1], r.blob(l.Roles[format.RoleB]).tensor().Shape[0]
}

// stack is the shape that the base has for a parameter: n experts d1×d2, whether it holds them stacked or one by one. A parameter of
// two dimensions, such as a router, is a matrix, on which PEFT applies factors as on a linear layer.
type stack struct {
	n, d1, d2 uint64
	matrix    bool
}

// stackOf looks the shape up. Where the base has the experts one by one, their weights make up the parameter.
func (r *resolver) stackOf(g *experts, i int) (stack, error) {
	parts := r.split(g, i)
	if parts == nil {
		shape := r.refShape(g.parameter(i))
		switch len(shape) {
		case 2:
			return stack{1, shape[0], shape[1], true}, nil
		case 3:
			return stack{shape[0], shape[1], shape[2], false}, nil
		}
		return stack{}, fault.New(fault.Mismatch, "%q of the base has shape %d, and target_parameters are of two or three dimensions", g.parameter(i), shape).
			WithHint("%s", r.wrongBase())
	}
	var s stack
	for _, part := range parts {
		shape := r.refShape(expertWeight(g.module, 0, part))
		if len(shape) != 2 || s.d1 > 0 && (shape[1] != s.d2 || shape[0]*uint64(len(parts)-1) != s.d1*uint64(len(parts)-1)) {
			return stack{}, fault.New(fault.Mismatch, "the weights %s of %q do not go together: shape %d", strings.Join(parts, " and "), g.module, shape)
		}
		s.d1 += shape[0]
		s.d2 = shape[1]
	}
	for r.hasExpert(g.module, int(s.n), parts[0]) {
		s.n++
	}
	return s, nil
}

func (r *resolver) hasExpert(module string, expert int, part string) bool {
	_, ok := r.mapping.Lookup(expertWeight(module, expert, part))
	return ok
}

// refShape is the shape of a tensor that the base has.
func (r *resolver) refShape(name string) []uint64 {
	actual, _ := r.mapping.Lookup(name)
	ref, _ := r.plan.base.Lookup(actual)
	return ref.Tensor.Shape
}

// fits reports whether the factors of a layer are for a parameter of this shape.
func (r *resolver) fits(l *format.Layer, s stack) bool {
	n, m := r.factorShape(l)
	return uint64(r.nExperts(l)) == s.n && (n == s.d2 && m == s.d1 || n == s.d1 && m == s.d2 && !s.matrix)
}

// pairExperts pairs the layers of a module with its parameters. The shapes say which is which, and where several
// orders fit, the order in which models are known to register the parameters.
func (r *resolver) pairExperts(g *experts) error {
	stacks := make([]stack, len(g.layers))
	for i := range g.layers {
		var err error
		if stacks[i], err = r.stackOf(g, i); err != nil {
			return err
		}
	}
	var fitting [][]int // orders of the parameters
	eachOrder(len(g.layers), func(order []int) {
		for i, l := range g.layers {
			if !r.fits(l, stacks[order[i]]) {
				return
			}
		}
		fitting = append(fitting, slices.Clone(order))
	})
	if len(fitting) == 0 {
		return r.explainExperts(g, stacks)
	}
	inOrder := slices.IsSorted(fitting[0]) // the plain order comes first
	known := !slices.ContainsFunc(g.names, func(name string) bool { return !naming.IsRegistered(name) })
	if len(fitting) > 1 && !(known && inOrder) || !inOrder && !g.isUniform() {
		return fault.New(fault.Unsupported, "it is not known which factors of %q are for which of its parameters %s: their keys do not say it, PEFT nests them in the order in which the model registers them, and %d orders fit the shapes",
			g.module, strings.Join(g.names, ", "), len(fitting)).WithHint("train one adapter for each of the parameters")
	}
	if !inOrder {
		names, ordered := slices.Clone(g.names), make([]stack, len(stacks))
		for i, k := range fitting[0] {
			g.names[i], ordered[i] = names[k], stacks[k]
		}
		stacks = ordered
		r.plan.warn("the shapes say that the parameters of %q nest in the order %s", g.module, strings.Join(g.names, ", "))
	}
	g.stacks = stacks
	for i, l := range g.layers {
		if s := stacks[i]; !s.matrix && s.d1 != s.d2 {
			n, _ := r.factorShape(l)
			r.sides[n == s.d1] = true
		}
	}
	return nil
}

// addExperts adds the updates of all stacked experts.
func (r *resolver) addExperts() error {
	r.sides = make(map[bool]bool)
	for _, g := range r.experts {
		if err := r.pairExperts(g); err != nil {
			return err
		}
	}
	for _, g := range r.experts {
		for i, l := range g.layers {
			if err := r.addStack(g, i, l, g.stacks[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// isUniform reports whether all factors have the same rank and scale, so that these are right whichever parameter they are for.
func (g *experts) isUniform() bool {
	return !slices.ContainsFunc(g.layers, func(l *format.Layer) bool { return l.Rank != g.layers[0].Rank || l.Scale() != g.layers[0].Scale() })
}

func (r *resolver) explainExperts(g *experts, stacks []stack) error {
	for i, l := range g.layers {
		if s := stacks[i]; !r.fits(l, s) {
			n, m := r.factorShape(l)
			return fault.New(fault.Mismatch, "the experts %q: lora_A is for %d experts of %d columns and lora_B has %d rows, the base's parameter %s is %d×%d×%d",
				l.Module, r.nExperts(l), n, m, g.names[i], s.n, s.d1, s.d2).WithHint("%s", r.wrongBase())
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
func (r *resolver) addStack(g *experts, i int, l *format.Layer, s stack) error {
	scale, a, b, err := r.product(l)
	if err != nil {
		return err
	}
	n, m := r.factorShape(l)
	turned, err := r.turned(l, s, n)
	if err != nil {
		return err
	}
	nExperts, rank := r.nExperts(l), l.Rank
	x := term{adapter: r.index, module: l.Module, scale: scale, rank: rank}
	ofExpert := func(e int) (fb, fa factor) {
		fa = factor{blob: a, at: e * rank * int(n), across: int(n), along: 1, repeat: 1, length: int(n)}
		fb = factor{blob: b, at: e, across: nExperts, along: nExperts * rank, repeat: 1, length: int(m)}
		if r.plan.options.ExpertsSlowest {
			fb.at, fb.across = e*rank, 1
		}
		return fb, fa
	}
	parts := r.split(g, i)
	if parts == nil {
		t, err := r.target(g.parameter(i))
		if err != nil {
			return err
		}
		if err := t.stackUp(); err != nil {
			return err
		}
		for e := range nExperts {
			x.band = e
			fb, fa := ofExpert(e)
			t.add(x, fb, fa, turned)
		}
		return nil
	}
	rows := int(s.d1) / len(parts)
	for e := range nExperts {
		for k, part := range parts {
			t, err := r.target(expertWeight(g.module, e, part))
			if err != nil {
				return err
			}
			fb, fa := ofExpert(e)
			if turned {
				fa = fa.part(k*rows, rows)
			} else {
				fb = fb.part(k*rows, rows)
			}
			t.add(x, fb, fa, turned)
		}
	}
	return nil
}

// stackUp makes a target one band per expert.
func (t *target) stackUp() error {
	if len(t.ref.Tensor.Shape) != 3 || t.stacked {
		return nil
	}
	if len(t.terms) > 0 || slices.ContainsFunc(t.undo, func(s step) bool { return len(s.terms) > 0 }) {
		return stackedAndNot(t.ref.Tensor.Name)
	}
	t.stacked, t.nBands = true, max(1, int(t.ref.Tensor.Shape[0]))
	return nil
}

func stackedAndNot(name string) error {
	return fault.New(fault.Mismatch, "%q gets an update as stacked experts and another one as a convolution", name)
}

// turned decides whether the products stand transposed in a parameter. The shapes tell, and where the parameter is square, those of the
// adapter's other parameters, as PEFT treats all of a model alike; then the release of PEFT. The user has the last word.
func (r *resolver) turned(l *format.Layer, s stack, n uint64) (bool, error) {
	if s.matrix || s.d1 != s.d2 {
		return !s.matrix && n == s.d1, nil
	}
	modelType := r.plan.base.Config.ModelType
	transposed := naming.HasTransposedExperts(modelType)
	version, known := releaseOf(r.manifest.Provenance.Source)
	why := ""
	switch {
	case r.plan.options.ExpertInput > 0:
		return r.plan.options.ExpertInput == 1, nil
	case len(r.sides) == 1:
		r.bySides = append(r.bySides, l.Module)
		return r.sides[true], nil
	case len(r.sides) == 2:
		why = "the other parameters of the adapter do not agree"
	case modelType == "":
		why = "the base has no config.json that says what model it is"
	case !known:
		why = "the adapter's configuration does not say which release of PEFT made it"
	case slices.Compare(version, []int{0, 19, 0}) < 0 && !naming.HasTurnedExperts(modelType):
		r.eras = append(r.eras, l.Module)
		return true, nil
	case transposed || naming.HasTurnedExperts(modelType):
		why = "for a model of type " + modelType + " it also depends on the release of transformers"
	default:
		r.eras = append(r.eras, l.Module)
		return slices.Equal(version, []int{0, 19, 0}), nil
	}
	return false, r.undecided(l, s, why)
}

func (r *resolver) undecided(l *format.Layer, s stack, why string) error {
	return fault.New(fault.Unsupported, "the experts of %q are square, %d×%d, so that their shape does not tell which dimension is the input: %s", l.Module, s.d1, s.d2, why).
		WithHint("say it with --expert-input: 1 where lora_A reads the first dimension of an expert (PEFT up to 0.18 on most models, and gpt-oss), 2 where it reads the second")
}

// releaseOf is the release of PEFT that wrote an adapter, as three numbers.
func releaseOf(source string) (version []int, known bool) {
	version = make([]int, 3)
	n, _ := fmt.Sscanf(source, "PEFT %d.%d.%d", &version[0], &version[1], &version[2])
	return version, n >= 2
}

// noteEras says where a release decided.
func (r *resolver) noteEras() {
	if len(r.eras) > 0 {
		r.plan.warn("the experts are square, and their orientation is that of the release that made the adapter, %s: %s", r.manifest.Provenance.Source, fault.List(r.eras, 3))
	}
	if len(r.bySides) > 0 {
		r.plan.warn("the experts are square, and their orientation is that of the adapter's other parameters: %s", fault.List(r.bySides, 3))
	}
	if r.plan.options.ExpertsSlowest && len(r.experts) > 0 {
		r.plan.warn("lora_B of the experts is read with one expert after the other, as --expert-slowest says")
	}
}

// gathered reports that a layer is a weight of one expert, and the base has it stacked with others in a parameter.
func (r *resolver) gathered(l *format.Layer) (parameter string, expert, part, parts int, ok bool) {
	if l.Kind != format.Linear {
		return "", 0, 0, 0, false
	}
	parameter, expert, part, parts, ok = naming.ExpertPart(l.Module)
	if !ok || r.names.HasTail(tail(l.Module, 3)+".weight") || !r.names.HasTail(tail(parameter, 2)) {
		return "", 0, 0, 0, false
	}
	return parameter, expert, part, parts, true
}

// tail is the last n segments of a path.
func tail(path string, n int) string {
	s := strings.Split(path, ".")
	return strings.Join(s[max(0, len(s)-n):], ".")
}

// addGathered adds the update of a weight of one expert to the parameter that it is part of.
func (r *resolver) addGathered(l *format.Layer) error {
	parameter, expert, part, parts, _ := r.gathered(l)
	scale, a, b, err := r.product(l)
	if err != nil {
		return err
	}
	if len(l.Roles) > 2 {
		return fault.New(fault.Unsupported, "%q has more than lora_A and lora_B, and the base has that expert stacked with others in %q", l.Module, parameter).
			WithHint("merge into a checkpoint with a module per expert")
	}
	modelType := r.plan.base.Config.ModelType
	if parts > 1 && naming.HasInterleavedExperts(modelType) {
		return fault.New(fault.Unsupported, "%q: models of type %s have the projections of an expert row by row in turns, and which ones belong to this layer is not known", l.Module, modelType).
			WithHint("merge into a checkpoint with a module per expert")
	}
	n, m := r.factorShape(l)
	shape := r.refShape(parameter)
	rows := m * uint64(parts)
	if len(shape) != 3 || uint64(expert) >= shape[0] || !(shape[1] == rows && shape[2] == n || shape[1] == n && shape[2] == rows) {
		return fault.New(fault.Mismatch, "%q: B·A is %d×%d and one of %d parts of an expert, the base's %q has shape %d", l.Module, m, n, parts, parameter, shape).
			WithHint("%s", r.wrongBase())
	}
	turned := shape[1] == n
	if shape[1] == shape[2] {
		switch {
		case r.plan.options.ExpertInput > 0:
			turned = r.plan.options.ExpertInput == 1
		case modelType == "" || naming.HasTurnedExperts(modelType):
			return r.undecided(l, stack{d1: shape[1], d2: shape[2]}, "the base does not say how it stores them")
		default:
			turned = naming.HasTransposedExperts(modelType)
		}
	}
	t, err := r.target(parameter)
	if err != nil {
		return err
	}
	if err := t.stackUp(); err != nil {
		return err
	}
	x := term{adapter: r.index, module: l.Module, band: expert, scale: scale, rank: l.Rank}
	t.add(x, wholeB(b, l.Rank).to(part*int(m)), wholeA(a, l.Rank), turned)
	return nil
}
