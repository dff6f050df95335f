package rank

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// An adapter for PEFT uses the parameter names of the model in memory, and stores each change in a
// form that its module's class allows. Changes that PEFT cannot represent are refused before any
// decomposition.

// pairLive turns pairs of the base's tensors into pairs of parameters in memory.
func (e *Extraction) pairLive() error {
	c := e.base.Config
	if !naming.KnowsLive(c.ModelType) {
		return fault.New(fault.Unsupported,
			"transformers 5 renames modules of the model type %q in memory, and this version does not know the new names, so PEFT would not find the factors",
			c.ModelType).WithHint("write a .lora file, which merge can apply")
	}
	shapeOf := func(name string) []uint64 {
		ref, _ := e.base.Lookup(name)
		return ref.Tensor.Shape
	}
	live := naming.LiveNames(e.base.Names(), shapeOf, c.ModelType, c.Architectures)
	e.peft = &forPEFT{model: naming.NewPEFTModel(live, c.ModelType)}
	e.peft.disk, e.peft.all = make(map[string]string), make(map[string]located)
	byName := make(map[string]*pair, len(e.pairs))
	for i := range e.pairs {
		byName[e.pairs[i].name] = &e.pairs[i]
	}
	var pairs []pair
	for _, l := range live {
		var parts []*pair
		for _, name := range l.Parts {
			if p := byName[name]; p != nil {
				parts = append(parts, p)
			}
		}
		e.peft.disk[l.Name] = l.Parts[0]
		pairs = append(pairs, e.pairParts(l, parts)...)
	}
	e.pairs = pairs
	e.findTwins()
	return nil
}

// pairParts pairs a parameter in memory from the pairs of its parts. It returns none if a part is
// missing.
func (e *Extraction) pairParts(l naming.Live, parts []*pair) []pair {
	switch first := l.Parts[0]; {
	case len(parts) == len(l.Parts) && len(parts) == 1:
		e.peft.all[l.Name] = parts[0].tuned
		return []pair{{name: l.Name, base: parts[0].base, tuned: parts[0].tuned}}
	case len(parts) == len(l.Parts) && sameTypes(parts):
		return []pair{stackPairs(l, parts)}
	case len(parts) > 0:
		for _, p := range parts {
			e.leave(p.name, fmt.Sprintf("PEFT stacks it in %s with tensors that are left out or have another dtype", l.Name),
				&p.base, &p.tuned)
		}
	case len(l.Parts) == 1:
		e.peft.all[l.Name] = *locate(e.base, first)
		if other, ok := e.others[first]; ok {
			e.peft.all[l.Name] = other
		}
	}
	return nil
}

func sameTypes(parts []*pair) bool {
	return !slices.ContainsFunc(parts, func(p *pair) bool {
		return p.base.dtype() != parts[0].base.dtype() || p.tuned.dtype() != parts[0].tuned.dtype()
	})
}

// stackPairs joins the pairs of the experts into one.
func stackPairs(l naming.Live, parts []*pair) pair {
	var base, tuned []located
	for _, p := range parts {
		base, tuned = append(base, p.base), append(tuned, p.tuned)
	}
	return pair{l.Name, stacked(l.Name, l.Shape, base), stacked(l.Name, l.Shape, tuned)}
}

// findTwins finds a tied input embedding in the base. PEFT stores factors for each end separately,
// and its merge adds both to the one tensor or skips the head. Only modules saved whole are right
// on both ends.
func (e *Extraction) findTwins() {
	if !e.baseEnds.isTied() {
		return
	}
	disk := e.baseEnds.embedding()
	ok := disk != ""
	var tables []string
	for i := range e.pairs {
		name := e.pairs[i].name
		if ok && e.peft.disk[name] == disk {
			e.peft.embed = name
		}
		if e.peft.model.Hold(name).Form == naming.Embedding {
			tables = append(tables, name)
		}
	}
	if !ok && len(tables) == 1 {
		e.peft.embed = tables[0]
	}
	if e.peft.embed == "" {
		return
	}
	c := e.base.Config
	e.peft.twins, _ = naming.TiedModules(naming.Module(e.peft.embed), c.ModelType, c.Architectures)
}

// hold returns how PEFT stores the change of a parameter.
func (e *Extraction) hold(name string) naming.Held {
	held := e.peft.model.Hold(name)
	if name != e.peft.embed {
		return held
	}
	if e.peft.twins == nil {
		return naming.Held{Why: fmt.Sprintf("it is tied to the head, and this version does not know the head's name in the model type %q", e.base.Config.ModelType)}
	}
	return naming.Held{Form: naming.Whole, Module: naming.Module(name)}
}

// viewPEFT is view for PEFT.
func (e *Extraction) viewPEFT(p *pair) (v view, ok bool) {
	shape := p.tuned.ref.Tensor.Shape
	held := e.hold(p.name)
	if slices.Contains(shape, 0) || e.peft.saved[p.name] || len(shape) < 2 {
		return view{}, false
	}
	v = view{module: naming.Module(p.name), kind: format.Linear, slabs: 1, rows: int(shape[0]), shape: shape}
	v.cols = int(p.tuned.ref.Tensor.Elements() / int64(shape[0]))
	switch modelType := e.base.Config.ModelType; held.Form {
	case naming.Linear:
		v.transposed = naming.IsConv1DModel(modelType) && naming.IsConv1DName(v.module)
	case naming.Embedding:
		v.kind, v.transposed = format.Embedding, true
	case naming.Conv:
		v.kind = format.Conv
	case naming.Parameter:
		v.kind, v.parameter = format.Expert, p.name
		if len(shape) == 3 {
			v.slabs, v.rows, v.cols = int(shape[0]), int(shape[1]), int(shape[2])
			v.transposed = naming.HasTransposedExperts(modelType) != e.peft.model.LoadsTransposed(p.name)
		}
	default:
		return view{}, false
	}
	return v, true
}

// prepare decides which parameters are saved whole, and refuses those that PEFT cannot represent.
func (r *extracting) prepare(ctx context.Context) error {
	changes := &changes{ctx: ctx, pairs: make(map[string]*pair), known: make(map[string]bool)}
	for i := range r.pairs {
		changes.pairs[r.pairs[i].name] = &r.pairs[i]
	}
	var wholes, modules []string // parameters to save whole, and the module of each
	refused := make(map[string]string)
	for i := range r.pairs {
		name := r.pairs[i].name
		held := r.hold(name)
		if held.Form == naming.Bias {
			held = r.peft.holdBias(name, held, changes)
		}
		switch {
		case held.Form != naming.Whole && held.Form != naming.NoForm || !changes.has(name):
		case held.Form == naming.NoForm:
			refused[name] = held.Why
		default:
			wholes, modules = append(wholes, name), append(modules, held.Module)
		}
	}
	if changes.err != nil || r.options.Only { // tensors without factors are left out, whatever the reason
		return changes.err
	}
	return r.peft.save(wholes, modules, refused)
}

// save marks everything that PEFT saves with the modules of these parameters. It fails if PEFT
// cannot save them, or if an entry was refused before.
func (f *forPEFT) save(wholes, modules []string, refused map[string]string) error {
	ends := append([]string{naming.Module(f.embed)}, f.twins...)
	if slices.ContainsFunc(modules, func(s string) bool { return slices.Contains(ends, s) }) {
		modules = append(modules, ends...)
	}
	closed, why := f.model.Close(modules)
	for i, name := range wholes {
		if why == "" {
			break
		}
		// If no single module is the obstacle, all are.
		_, alone := f.model.Close(modules[i : i+1])
		if alone != "" || i == len(wholes)-1 && len(refused) == 0 {
			refused[name] = why
		}
	}
	if len(refused) > 0 {
		return refusal(refused)
	}
	f.saved = make(map[string]bool)
	for _, module := range closed {
		for _, name := range f.model.Under(module) {
			f.saved[name] = true
		}
	}
	return nil
}

// changes knows which parameters differ. It compares each at most once and keeps the first error.
type changes struct {
	ctx   context.Context
	pairs map[string]*pair
	known map[string]bool
	err   error
}

func (c *changes) has(name string) bool {
	p := c.pairs[name]
	if p == nil || c.err != nil {
		return false
	}
	differs, ok := c.known[name]
	if !ok {
		var same bool
		same, c.err = p.equal(c.ctx)
		differs = !same
		c.known[name] = differs
	}
	return differs
}

// holdBias returns how a bias is stored: with the factors of its module if there are any. The bias
// of a module with submodules is stored alone, among the changes of these.
func (f *forPEFT) holdBias(name string, held naming.Held, c *changes) naming.Held {
	if held.Module != "" {
		if c.has(held.Module + ".weight") {
			return held
		}
		return naming.Held{Form: naming.Whole, Module: held.Module}
	}
	module := naming.Module(name)
	for _, twin := range f.twins { // a head with this bias
		if naming.Module(twin) == module && c.has(name) {
			return naming.Held{Form: naming.Whole, Module: twin}
		}
	}
	if slices.ContainsFunc(f.model.Under(module), func(other string) bool {
		return other != name && naming.Module(other) != module && c.has(other)
	}) {
		return held
	}
	return naming.Held{Why: "PEFT saves it only with changes of its submodules, and none changed"}
}

// refusal returns an error that names the changes that PEFT cannot represent.
func refusal(why map[string]string) error {
	var names []string
	for name := range why {
		names = append(names, name)
	}
	slices.Sort(names)
	return fault.New(fault.Unsupported, "PEFT cannot represent the changes of %s, %s; the first because %s",
		fault.Count(len(names), "tensor"), fault.List(names, 3), why[names[0]]).
		WithHint("write a .lora file, which merge can apply, or leave them out with ExtractOptions.Only or ExtractOptions.Exclude")
}

// complete carries the other tensors of saved modules, and the modules that share the embedding's
// weight.
func (r *extracting) complete(ctx context.Context) error {
	have := make(map[string]bool)
	for _, b := range r.adapter.Beside {
		have[b.Target] = true
	}
	for _, name := range sortedKeys(r.peft.saved) {
		if have[name] {
			continue
		}
		from, ok := r.peft.all[name]
		if !ok {
			return fault.New(fault.Unsupported, "PEFT saves %q with its module, but it is one of several stacked experts", name).
				WithHint("write a .lora file, or leave the module out with ExtractOptions.Exclude")
		}
		if err := r.carry(ctx, name, from); err != nil {
			return err
		}
	}
	if !r.peft.saved[r.peft.embed] {
		return nil
	}
	for _, twin := range r.peft.twins {
		if err := r.carryTwin(ctx, twin, have); err != nil {
			return err
		}
	}
	// PEFT ties two modules if it knows the name of one of them.
	knows := r.peft.twins[0] == "lm_head" || naming.Leaf(naming.Module(r.peft.embed)) == "embed_tokens"
	if len(r.peft.twins) == 1 && knows {
		tying := format.Requirement{Feature: format.FeatureWeightTying, Where: "ensure_weight_tying"}
		r.adapter.Requires = append(r.adapter.Requires, tying)
	}
	return nil
}

// carryTwin carries a module that shares the embedding's weight, unless have lists it already.
func (r *extracting) carryTwin(ctx context.Context, twin string, have map[string]bool) error {
	if err := r.carry(ctx, twin+".weight", r.peft.all[r.peft.embed]); err != nil {
		return err
	}
	// The bias of such a head can belong to the enclosing module.
	outer := naming.Module(twin) + ".bias"
	bias, ok := r.peft.all[outer]
	for _, name := range []string{twin + ".bias", outer} {
		if ok && !have[name] {
			if err := r.carry(ctx, name, bias); err != nil {
				return err
			}
		}
	}
	return nil
}

// carry copies a tensor into the adapter.
func (r *extracting) carry(ctx context.Context, name string, from located) error {
	t := from.ref.Tensor
	i, _, err := r.spool.copy(ctx, name, t)
	if err != nil {
		return fault.InFile(err, t.Path())
	}
	r.adapter.Beside = append(r.adapter.Beside, format.Beside{Action: format.Replace, Target: name, Tensor: i})
	r.report.Beside = append(r.report.Beside, BesideReport{name, "saved with its module", t.NBytes})
	r.report.Skipped = slices.DeleteFunc(r.report.Skipped, func(s Skipped) bool { // a counter, or an unchanged tensor
		return s.energy == 0 && (s.Tensor == r.peft.disk[name] || s.Tensor == name)
	})
	return nil
}

// nest gives the factors of experts PEFT's paths. PEFT nests the parameters of a module in the
// order in which the model registers them. The last one is outermost and has the module's own path;
// each earlier one has one more base_layer.
func (r *extracting) nest() {
	parameters := make(map[string][]string)
	for _, name := range r.parameters {
		module := naming.Module(name)
		parameters[module] = append(parameters[module], naming.Leaf(name))
	}
	for i, name := range r.parameters {
		l := &r.adapter.Layers[i]
		order := naming.RegistrationOrder(parameters[naming.Module(name)])
		slices.Reverse(order)
		depth := slices.Index(order, naming.Leaf(name))
		path := naming.Module(name) + strings.Repeat(".base_layer", depth)
		for role, t := range l.Roles {
			r.spool.manifest.Tensors[t].Name = path + ".lora_" + string(role) + ".weight"
		}
		l.Module, r.report.Layers[i].Module = path, path
	}
}

func sortedKeys(set map[string]bool) []string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
