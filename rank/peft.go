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

// An adapter for PEFT has the names of the model in memory, and holds each change in a way that the
// class of its module allows. What PEFT cannot hold is refused before anything is decomposed.

// pairLive turns the pairs, which have the names of the base's tensors, into pairs of parameters in
// memory.
func (e *Extraction) pairLive() error {
	c := e.base.Config
	if !naming.KnowsLive(c.ModelType) {
		return fault.New(fault.Unsupported,
			"transformers 5 renames modules of the model type %q in memory, and the new names are not known here: PEFT would not find them",
			c.ModelType).WithHint("write a .lora file, which merge applies")
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

// pairParts makes a pair of a parameter in memory from those of its parts that are compared; none
// where some are not.
func (e *Extraction) pairParts(l naming.Live, parts []*pair) []pair {
	switch first := l.Parts[0]; {
	case len(parts) == len(l.Parts) && len(parts) == 1:
		e.peft.all[l.Name] = parts[0].tuned
		return []pair{{name: l.Name, base: parts[0].base, tuned: parts[0].tuned}}
	case len(parts) == len(l.Parts) && sameTypes(parts):
		return []pair{stackPairs(l, parts)}
	case len(parts) > 0:
		for _, p := range parts {
			e.leave(p.name, fmt.Sprintf("PEFT has it stacked in %s, with others that are left out or of another dtype", l.Name),
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

// stackPairs makes one pair of those of the experts.
func stackPairs(l naming.Live, parts []*pair) pair {
	var base, tuned []located
	for _, p := range parts {
		base, tuned = append(base, p.base), append(tuned, p.tuned)
	}
	return pair{l.Name, stacked(l.Name, l.Shape, base), stacked(l.Name, l.Shape, tuned)}
}

// findTwins finds the input embedding of a base that ties it. PEFT keeps the factors of each end
// for itself, and merging adds both to the one tensor, or leaves the head out; only whole modules
// come out right on all ends.
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

// hold is how PEFT holds the change of a parameter.
func (e *Extraction) hold(name string) naming.Held {
	held := e.peft.model.Hold(name)
	if name != e.peft.embed {
		return held
	}
	if e.peft.twins == nil {
		return naming.Held{Why: fmt.Sprintf("it is tied to the head, whose name is not known for the model type %q", e.base.Config.ModelType)}
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
			v.transposed = naming.HasTransposedExperts(modelType) != e.peft.model.IsTurned(p.name)
		}
	default:
		return view{}, false
	}
	return v, true
}

// prepare decides what is saved whole, and refuses what PEFT cannot hold.
func (r *extracting) prepare(ctx context.Context) error {
	changes := &changes{ctx: ctx, pairs: make(map[string]*pair), known: make(map[string]bool)}
	for i := range r.pairs {
		changes.pairs[r.pairs[i].name] = &r.pairs[i]
	}
	var wholes, modules []string // the parameters that are saved whole, and the module of each
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
	if changes.err != nil || r.options.Only { // what has no factors is left out, whatever the reason
		return changes.err
	}
	return r.peft.save(wholes, modules, refused)
}

// save marks all that PEFT saves with the modules of some parameters, and fails where it cannot
// save them or where something is refused already.
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
		// Where no module alone is in the way, all are.
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

// changes knows which parameters differ. It compares each at most once, and keeps the first error.
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

// holdBias says how a bias is held. It stands beside the factors of its module, if there are any; a
// bias of a module with others below it stands alone, among what is held below.
func (f *forPEFT) holdBias(name string, held naming.Held, c *changes) naming.Held {
	if held.Module != "" {
		if c.has(held.Module + ".weight") {
			return held
		}
		return naming.Held{Form: naming.Whole, Module: held.Module}
	}
	module := naming.Module(name)
	for _, twin := range f.twins { // a head that has this bias
		if naming.Module(twin) == module && c.has(name) {
			return naming.Held{Form: naming.Whole, Module: twin}
		}
	}
	if slices.ContainsFunc(f.model.Under(module), func(other string) bool {
		return other != name && naming.Module(other) != module && c.has(other)
	}) {
		return held
	}
	return naming.Held{Why: "PEFT saves it only beside changes of modules below its own, and there are none"}
}

// refusal is the error that names what PEFT cannot hold.
func refusal(why map[string]string) error {
	var names []string
	for name := range why {
		names = append(names, name)
	}
	slices.Sort(names)
	return fault.New(fault.Unsupported, "PEFT cannot hold the changes of %d tensors, %s; about the first: %s",
		len(names), fault.List(names, 3), why[names[0]]).
		WithHint("write a .lora file, which merge applies; or leave them out with ExtractOptions.Only or ExtractOptions.Exclude")
}

// complete carries what else a saved module has, and the modules that share the weight of the
// embedding.
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
			return fault.New(fault.Unsupported, "PEFT saves %q with its module, and it is one of stacked experts", name).
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
	// PEFT ties two modules where one has a name that it knows.
	knows := r.peft.twins[0] == "lm_head" || naming.Leaf(naming.Module(r.peft.embed)) == "embed_tokens"
	if len(r.peft.twins) == 1 && knows {
		tying := format.Requirement{Feature: format.FeatureWeightTying, Where: "ensure_weight_tying"}
		r.adapter.Requires = append(r.adapter.Requires, tying)
	}
	return nil
}

// carryTwin carries a module that shares the weight of the embedding; have are the targets that are
// there already.
func (r *extracting) carryTwin(ctx context.Context, twin string, have map[string]bool) error {
	if err := r.carry(ctx, twin+".weight", r.peft.all[r.peft.embed]); err != nil {
		return err
	}
	// The bias of such a head can be that of the module around it.
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
	r.report.Skipped = slices.DeleteFunc(r.report.Skipped, func(s Skipped) bool { // a counter, or what did not change
		return s.energy == 0 && (s.Tensor == r.peft.disk[name] || s.Tensor == name)
	})
	return nil
}

// nest gives the factors of experts the paths under which PEFT keeps them. The parameters of one
// module nest in the order in which the model registers them: the last one is outermost and has the
// module's own path, each one before it a base_layer more.
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
