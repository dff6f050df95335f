package resolve

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Adapter is one adapter of a merge.
type Adapter struct {
	Source format.Source
	Name   string  // how errors name it
	Weight float64 // ω
}

// Checked holds the adapters of one merge, and the reading that settles their ambiguities. This
// version supports every feature that they require, but has not yet compared them with a base. Only
// Check makes one.
type Checked struct {
	adapters []given
	reading  Reading
}

// unfolded returns the adapters with a reading that does not fold tied ends.
func (c *Checked) unfolded() *Checked {
	u := *c
	if u.reading.Tied == Fold {
		u.reading.Tied = ""
	}
	return &u
}

// sheet holds the changes of the adapters of one merge, as far as they have been resolved.
type sheet struct {
	*Checked
	base    *Base
	names   *naming.Base
	changes map[string]*Change
	made    []*Change // all of changes
	notes   *notes
	looksUp bool         // whether an adapter changes a table that tokens are looked up in
	ties    *naming.Ends // nil until something asks for the base's two ends
	fold    *fold        // nil where tied ends are not folded
}

// components lists the components of an image or video model; none for any other base.
func (s *sheet) components() []naming.Component {
	return naming.Components(s.names, s.shape)
}

// isImage reports whether the base is an image or video model. Its names have components in front
// as a matter of course, and none of its weights is tied to another.
func (s *sheet) isImage() bool { return len(s.components()) > 0 }

// shape returns the shape of a tensor by its name without wrappers.
func (s *sheet) shape(plain string) []uint64 { return s.base.Tensors[s.names.Actual(plain)].Shape }

// resolver pairs the tensors of one adapter with those of the base.
type resolver struct {
	*sheet
	given
	mapping naming.Mapping
	forms   []form
	votes   votes

	folded map[bool]bool // whether the adapter changes the head (true) and the embedding (false)

	hasTwins bool // the adapter saves one tensor of the base under the names of all modules that share it
}

// form is one way to turn tensors of an adapter into changes of the base. Each kind of layer has
// one, and so have the tensors beside the layers.
type form interface {
	// wants lists the tensors that the base must have, by the adapter's names.
	wants() []string
	// add adds the change to the sheet.
	add() error
}

// wanted lists the names that the base must have for some forms.
func (r *resolver) wanted(which func(form) bool) (names []string) {
	for _, f := range r.forms {
		if which(f) {
			names = append(names, f.wants()...)
		}
	}
	return names
}

// tensor returns the base's tensor for a name of the adapter; resolve has found every name.
func (r *resolver) tensor(name string) Tensor {
	actual, _ := r.mapping.Lookup(name)
	return r.base.Tensors[actual]
}

// given is one adapter before it meets the base.
type given struct {
	Adapter
	index    int // among the adapters of the merge
	manifest *format.Manifest
	model    *format.Adapter
	left     []string                    // modules of components that the reading leaves out
	features map[format.Feature][]string // the features that it requires, each with the places of its requirements
	saysDoRA bool                        // the configuration of PEFT says that every layer has magnitudes
}

// peftDoRA is the place of DoRA's requirement in PEFT's configuration: the field, which holds for
// all layers.
const peftDoRA = "use_dora"

func newGiven(a Adapter, index int) (*given, error) {
	m := a.Source.Manifest()
	if len(m.Adapters) != 1 {
		return nil, fault.New(fault.Unsupported, "this is a bundle of %d adapters, and merge needs one", len(m.Adapters)).WithHint("name one of them, as in %s#%s", a.Name, m.Adapters[0].Name)
	}
	g := &given{Adapter: a, index: index, manifest: m, model: &m.Adapters[0], features: placesOf(&m.Adapters[0])}
	g.saysDoRA = slices.Contains(g.features[format.FeatureDoRA], peftDoRA)
	return g, nil
}

// keepOnly leaves out the layers and tensors of components that are not in only, as
// Reading.Only says.
func (g *given) keepOnly(only []string) error {
	if len(only) == 0 {
		return nil
	}
	kept := *g.model
	drop := func(module string) bool {
		if naming.IsWanted(module, only) {
			return false
		}
		g.left = append(g.left, module)
		return true
	}
	kept.Layers = slices.DeleteFunc(slices.Clone(kept.Layers), func(l format.Layer) bool { return drop(l.Module) })
	kept.Beside = slices.DeleteFunc(slices.Clone(kept.Beside), func(b format.Beside) bool { return drop(naming.Module(b.Target)) })
	kept.Requires = slices.DeleteFunc(slices.Clone(kept.Requires), func(q format.Requirement) bool { return slices.Contains(g.left, q.Where) })
	if len(kept.Layers)+len(kept.Beside) == 0 && len(g.left) > 0 {
		has := make(map[string]bool)
		for _, module := range g.left {
			has[naming.ComponentOf(module)] = true
		}
		return fault.New(fault.Mismatch, "the adapter has no layer of %s; it has layers of %s",
			strings.Join(only, ", "), strings.Join(slices.Sorted(maps.Keys(has)), ", ")).WithHint("name one of its components in Options.Only")
	}
	g.model, g.features = &kept, placesOf(&kept)
	return nil
}

// placesOf returns the features that an adapter requires, each with the places that the
// requirements name.
func placesOf(a *format.Adapter) map[format.Feature][]string {
	places := make(map[format.Feature][]string)
	for _, q := range a.Requires {
		places[q.Feature] = append(places[q.Feature], q.Where)
	}
	return places
}

// looksUp reports whether the adapter changes a table that tokens are looked up in.
func looksUp(g given) bool {
	return slices.ContainsFunc(g.model.Layers, func(l format.Layer) bool { return l.Kind == format.Embedding }) ||
		slices.ContainsFunc(g.model.Beside, func(b format.Beside) bool { return b.Action == format.Rows })
}

func (g *given) blob(i int) Blob { return Blob{Source: g.Source, Index: i} }

// has reports whether the adapter requires a feature.
func (g *given) has(feature format.Feature) bool { return len(g.features[feature]) > 0 }

// term begins the term of a layer, and returns its factors.
func (g *given) term(l *format.Layer) (x Term, a, b Blob, err error) {
	scale := g.Weight * l.Scale()
	if math.IsNaN(scale) || math.IsInf(scale, 0) {
		return x, a, b, fault.New(fault.Corrupt, "%q has the scale %v (alpha %v, rank %d, weight %v)", l.Module, scale, l.Alpha, l.Rank, g.Weight)
	}
	a, b = g.blob(l.Roles[format.RoleA]), g.blob(l.Roles[format.RoleB])
	for _, f := range []Blob{a, b} {
		if t := f.Tensor(); !t.DType.IsFloat() {
			return x, a, b, fault.New(fault.Unsupported, "%q is stored as %v; factors are F64, F32, F16 or BF16", t.Name, t.DType)
		}
	}
	return Term{Adapter: g.index, Module: l.Module, Scale: scale, Rank: l.Rank}, a, b, nil
}

// wrongBase returns the hint for a mismatch that nothing else explains.
func (g *given) wrongBase() string {
	if name := g.model.Base.Name; name != "" {
		return "the adapter was made for another base: its configuration names " + fault.Quote(name)
	}
	return "the adapter was made for another base"
}

// tail returns the last n segments of a path.
func tail(path string, n int) string {
	at := len(path)
	for range n {
		if at = strings.LastIndexByte(path[:at], '.'); at < 0 {
			return path
		}
	}
	return path[at+1:]
}

// notes gathers facts for the user: each text once, with the names that it is about.
type notes struct {
	texts []string
	about map[string][]string
}

// maxNamed is the largest number of names in a note.
const maxNamed = 3

// add adds a note without names.
func (n *notes) add(format string, args ...any) {
	n.texts = append(n.texts, fmt.Sprintf(format, args...))
}

// of adds a name to a note.
func (n *notes) of(name, text string) {
	if n.about == nil {
		n.about = make(map[string][]string)
	}
	if n.about[text] == nil {
		n.texts = append(n.texts, text)
	}
	n.about[text] = append(n.about[text], name)
}

// list returns the notes in the order of their first use.
func (n *notes) list() []string {
	var all []string
	for _, text := range n.texts {
		if names := n.about[text]; names != nil {
			text += ": " + fault.List(names, maxNamed)
		}
		all = append(all, text)
	}
	return all
}

// fold turns a change of either end into a change of the one tensor that the base has for both.
type fold struct {
	embedding, head string    // by their names without wrappers
	copies          [2]string // the names of embedding and head if the base stores the tensor twice
}

// votes count, per leaf name and under "" for all Conv1D names together, the layers whose shape
// shows that they are stored transposed, minus those that are stored as torch.nn.Linear does.
type votes map[string]int

// isInPairs reports whether B of a layer has the rows of each head in the order of llama.cpp, which
// rotates neighbours where transformers rotates halves (spec/METHODS.md, section 6).
func (g *given) isInPairs(l *format.Layer) bool {
	return slices.Contains(g.features[format.FeatureRotaryPairs], l.Module)
}

// nOperands counts the tensors of a layer that its formula reads. The alpha is a number of the
// layer (Layer.Alpha) wherever it is stored.
func nOperands(l *format.Layer) int {
	n := len(l.Roles)
	if _, ok := l.Roles[format.RoleAlpha]; ok {
		n--
	}
	return n
}

// noteWrapped says that the base has layers of PEFT around its weights, and what becomes of their
// tensors.
func noteWrapped(r *resolver, wanted []string) {
	names := make([]string, len(wanted))
	for i, name := range wanted {
		names[i] = r.mapping.Renamed(name)
	}
	inner, ofAdapters := naming.Wrapped(r.names, names)
	switch {
	case inner == "":
	case ofAdapters == nil:
		r.notes.add("the base was saved with layers of PEFT around its weights: the adapter changes those inside, such as %q", inner)
	default:
		r.notes.add("the base has an adapter of its own around its weights: the adapter changes those inside, such as %q, "+
			"and %s of that adapter are copied as they are: %s", inner, fault.Count(len(ofAdapters), "tensor"), fault.List(ofAdapters, 3))
	}
}
