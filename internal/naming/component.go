package naming

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/architecture"
)

// Image and video models have several components: a denoiser (a U-Net or a transformer) and text
// encoders. Their names begin with the component, in one of several spellings.

// kind is what a component does.
type kind int

const (
	anyKind kind = iota // names without a component
	denoiser
	textEncoder
)

// role is a component's place in its model. The number tells components of one kind apart; it is 0
// where the spelling does not say it: Wan 2.2 has two denoisers, and most programs name neither.
type role struct {
	kind   kind
	number int
}

// spelling is a way to begin the names of a component.
type spelling struct {
	prefix string
	role
	name string // as diffusers calls the component
	flat bool   // the rest of the name has underscores in place of dots
}

// spellings are looked through in their order: a longer one stands before its beginning.
var spellings = []spelling{
	// Adapters of kohya's sd-scripts and of the programs that follow it.
	{"lora_unet__", role{denoiser, 0}, "unet", true},
	{"lora_unet_", role{denoiser, 0}, "unet", true},
	{"lora_transformer_", role{denoiser, 0}, "transformer", true},
	{"lora_prior_unet_", role{denoiser, 0}, "prior", true},
	{"lycoris_", role{denoiser, 0}, "transformer", true},
	{"lora_te_", role{textEncoder, 1}, "text_encoder", true},
	{"lora_te1_", role{textEncoder, 1}, "text_encoder", true},
	{"lora_te2_", role{textEncoder, 2}, "text_encoder_2", true},
	{"lora_te3_", role{textEncoder, 3}, "text_encoder_3", true},
	{"lora_prior_te_", role{textEncoder, 1}, "text_encoder", true},
	// Components of diffusers: folders of a pipeline, and the beginnings of an adapter's names.
	{"unet.", role{denoiser, 1}, "unet", false},
	{"transformer.", role{denoiser, 1}, "transformer", false},
	{"transformer_2.", role{denoiser, 2}, "transformer_2", false},
	{"prior.", role{denoiser, 1}, "prior", false},
	{"text_encoder.", role{textEncoder, 1}, "text_encoder", false},
	{"text_encoder_2.", role{textEncoder, 2}, "text_encoder_2", false},
	{"text_encoder_3.", role{textEncoder, 3}, "text_encoder_3", false},
	// Single files of LDM, SGM and ComfyUI.
	{"model.diffusion_model.", role{denoiser, 0}, "unet", false},
	{"diffusion_model.", role{denoiser, 0}, "unet", false},
	{"cond_stage_model.transformer.", role{textEncoder, 1}, "text_encoder", false},
	{"cond_stage_model.model.", role{textEncoder, 1}, "text_encoder", false},
	{"conditioner.embedders.0.transformer.", role{textEncoder, 1}, "text_encoder", false},
	{"conditioner.embedders.0.model.", role{textEncoder, 2}, "text_encoder_2", false}, // SDXL's refiner
	{"conditioner.embedders.1.model.", role{textEncoder, 2}, "text_encoder_2", false},
	{"text_encoders.clip_l.transformer.", role{textEncoder, 1}, "text_encoder", false},
	{"text_encoders.clip_g.transformer.", role{textEncoder, 2}, "text_encoder_2", false},
	{"text_encoders.t5xxl.transformer.", role{textEncoder, 3}, "text_encoder_3", false},
}

// spellingOf returns the spelling that a name begins with; one without a prefix if it begins with
// none.
func spellingOf(name string) spelling {
	for _, s := range spellings {
		if strings.HasPrefix(name, s.prefix) {
			return s
		}
	}
	return spelling{}
}

// ComponentNames lists the names that diffusers has for components.
func ComponentNames() []string {
	var names []string
	for _, s := range spellings {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// FlatPart is a part of an adapter with flat names: all modules that begin with one text.
type FlatPart struct {
	Prefix    string
	Component string // as diffusers calls it; for a denoiser, that of its architecture goes before
	IsText    bool   // a text encoder, not a denoiser
}

// CutFlat cuts the text off that a flat name begins with. ok is false for any other name.
func CutFlat(module string) (part FlatPart, rest string, ok bool) {
	s := spellingOf(module)
	return FlatPart{s.prefix, s.name, s.kind == textEncoder}, strings.TrimPrefix(module, s.prefix), s.flat
}

// ComponentOf returns the component that a module of an adapter belongs to, as diffusers calls it;
// "" if its name does not say it.
func ComponentOf(module string) string { return spellingOf(module).name }

// PrefixOf returns what the names of a base's component begin with, of which a tensor is one; "" if
// its name does not say a component.
func PrefixOf(name string) string {
	if s := spellingOf(name); !s.flat {
		return s.prefix
	}
	return ""
}

// IsLookup is IsEmbedding for the text encoders of image models.
func IsLookup(module string) bool {
	return IsEmbedding(module) || clipTables[Leaf(module)]
}

var clipTables = set("token_embedding", "position_embedding")

// IsAverage reports whether a tensor of an image model is a running average of a weight. LDM's
// training keeps one of each; other programs read the weights.
func IsAverage(name string) bool { return strings.HasPrefix(StripWrappers(name), "model_ema.") }

// Component describes a component of a base.
type Component struct {
	Name         string // as diffusers calls it; "" for tensors without a component in front
	Prefix       string // what the names of its tensors begin with
	Architecture string // the table that knows its modules; "" if none does
	Weights      int    // tensors of two or more dimensions
}

// Components lists the components of an image or video model, in the order of their names. It
// returns nil for any other base.
func Components(b *Base, shapes ShapeOf) []Component {
	var all []Component
	isKnown := false
	for _, c := range componentsOf(b, shapes) {
		isKnown = isKnown || c.table != nil
		all = append(all, c.describe())
	}
	if !isKnown {
		return nil
	}
	return all
}

func (c *component) describe() Component {
	d := Component{Name: c.name, Prefix: c.prefix, Weights: len(c.weights)}
	if c.table != nil {
		d.Architecture = c.table.Name
	}
	return d
}

// component is a part of a base: the tensors whose names begin with one prefix.
type component struct {
	spelling
	modules []string            // without the prefix, in the order of their names
	weights map[string]string   // module → its weight
	vectors map[string]string   // module → its weight of one dimension, such as that of a norm
	flat    map[string][]string // module with underscores for dots → modules; filled on first use
	shapes  ShapeOf

	table   *architecture.Table // nil if no table knows the modules
	holders map[architecture.Part]holder
}

// holder is a weight that holds a part of an architecture, and the part's place in it.
type holder struct {
	module string
	parts  []architecture.Part // all that the weight holds, by its rows
	i      int
}

// componentsOf divides the weights of a base, on the first call. Weights are those of two or more
// dimensions; a component also knows those of one dimension that begin as they do.
func componentsOf(b *Base, shapes ShapeOf) []*component {
	if b.components != nil {
		return b.components
	}
	all := []*component{}
	byPrefix := make(map[string]*component)
	var vectors []string
	for _, name := range b.sortedNames() {
		module := WeightModule(name)
		switch nDims := len(shapes(name)); {
		case module == "" || nDims == 0:
			continue
		case nDims == 1:
			vectors = append(vectors, name)
			continue
		}
		s := spellingInBase(module)
		c := byPrefix[s.prefix]
		if c == nil {
			c = newComponent(s, shapes)
			byPrefix[s.prefix], all = c, append(all, c)
		}
		module = strings.TrimPrefix(module, s.prefix)
		c.modules = append(c.modules, module)
		c.weights[module] = name
	}
	for _, name := range vectors {
		module := WeightModule(name)
		s := spellingInBase(module)
		if c := byPrefix[s.prefix]; c != nil {
			c.vectors[strings.TrimPrefix(module, s.prefix)] = name
		}
	}
	for _, c := range all {
		c.chooseTable()
	}
	b.components = all
	return all
}

func newComponent(s spelling, shapes ShapeOf) *component {
	return &component{
		spelling: s, shapes: shapes, weights: make(map[string]string), vectors: make(map[string]string),
	}
}

// spellingInBase returns the spelling that the name of a base begins with. No base has flat names.
func spellingInBase(name string) spelling {
	if s := spellingOf(name); !s.flat {
		return s
	}
	return spelling{}
}

// WeightModule returns the module whose weight a tensor is, "" for any other tensor.
func WeightModule(name string) string {
	for _, suffix := range []string{".weight", "_weight"} {
		if module, ok := strings.CutSuffix(name, suffix); ok && architecture.Weight(module) == name {
			return module
		}
	}
	return ""
}

// BiasOf returns the name of the bias beside a weight.
func BiasOf(weight string) string { return strings.TrimSuffix(weight, "weight") + "bias" }

// chooseTable takes the table that knows the most modules, if it knows more than half. The table
// says what the component does where its names do not.
func (c *component) chooseTable() {
	best := len(c.weights) / 2
	for _, t := range architecture.Tables() {
		if c.known(t, max(1, len(c.modules)/nProbes)) == 0 {
			continue // spares the tables of other architectures a count over a large model
		}
		if n := c.known(t, 1); n > best {
			c.table, best = t, n
		}
	}
	if c.table == nil {
		return
	}
	if c.kind == anyKind {
		c.kind = kindOf(c.table)
	}
	if c.number == 0 {
		c.name = c.table.Component
	}
	c.holders = make(map[architecture.Part]holder)
	for module, weight := range c.weights {
		rows, columns := sizeOf(c.shapes(weight))
		parts, _ := c.table.PartsOfShape(module, rows, columns)
		for i, p := range parts {
			c.holders[p] = holder{module, parts, i}
		}
	}
}

// nProbes is how many modules show that a table knows none.
const nProbes = 64

// known counts the modules that a table knows, among every step-th one.
func (c *component) known(t *architecture.Table, step int) (n int) {
	for i := 0; i < len(c.modules); i += step {
		if _, ok := t.Parts(c.modules[i]); ok {
			n++
		}
	}
	return n
}

// kindOf returns what the components of an architecture do.
func kindOf(t *architecture.Table) kind {
	if t.Component == "text_encoder" {
		return textEncoder
	}
	return denoiser
}

// flatModules returns the modules of the component that a flat name can stand for.
func (c *component) flatModules(flat string) []string {
	if c.flat == nil {
		c.flat = make(map[string][]string, len(c.weights))
		for _, modules := range []map[string]string{c.weights, c.vectors} {
			for module := range modules {
				key := architecture.Flatten(module)
				c.flat[key] = append(c.flat[key], module)
			}
		}
	}
	modules := c.flat[flat]
	if c.table != nil {
		modules = append(modules[:len(modules):len(modules)], c.table.Unflatten(flat)...)
	}
	return modules
}

// sizeOf returns the size of a weight as a matrix.
func sizeOf(shape []uint64) (rows, columns uint64) {
	columns = 1
	for _, n := range shape[1:] {
		columns *= n
	}
	return shape[0], columns
}
