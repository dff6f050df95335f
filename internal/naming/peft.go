package naming

import (
	"slices"
	"strings"
)

// A checkpoint does not say of which class a module is, and PEFT can hold the change of a tensor
// only in the ways that its class allows. These rules decide by the names and shapes of all
// tensors; the tables hold what neither shows. The truth they are tested against is PEFT's own
// (testdata/extract/peft).

// Form is a way in which an adapter of PEFT can hold the change of a tensor.
type Form int

const (
	NoForm    Form = iota // it cannot
	Linear                // factors of a module in target_modules
	Embedding             // the same, of a table
	Conv                  // the same, of a convolution
	Parameter             // factors of a parameter in target_parameters
	Whole                 // its module, whole, in modules_to_save
	Bias                  // a bias on its own, beside the factors of its module or under bias = all
)

// Held says how PEFT holds the change of one tensor. Module is the one to save where Form is Whole;
// Why says what is in the way where it is NoForm.
type Held struct {
	Form   Form
	Module string
	Why    string
}

// PEFTModel knows the tensors of a model in memory.
type PEFTModel struct {
	live      []Live
	modelType string
	byName    map[string]int
	inner     map[string]bool // modules with tensors of modules below them
	numbered  map[string]bool // modules of a stack of layers, or with such a stack below them
	experts   bool            // some module stacks experts
}

// NewPEFTModel indexes the parameters that LiveNames lists.
func NewPEFTModel(live []Live, modelType string) *PEFTModel {
	m := &PEFTModel{live: live, modelType: modelType, byName: make(map[string]int)}
	m.inner, m.numbered = make(map[string]bool), make(map[string]bool)
	for i, p := range live {
		m.byName[p.Name] = i
		module := Module(p.Name)
		m.experts = m.experts || IsExperts(module) && len(p.Shape) == 3
		isNumbered := hasNumber(module)
		for path := module; path != ""; path = Module(path) {
			m.inner[path] = m.inner[path] || path != module
			m.numbered[path] = m.numbered[path] || isNumbered
		}
	}
	return m
}

// hasNumber reports whether a segment of a path is a number: the place of a layer among others like
// it.
func hasNumber(path string) bool {
	return slices.ContainsFunc(strings.Split(path, "."), func(s string) bool {
		return s != "" && strings.Trim(s, "0123456789") == ""
	})
}

var (
	// tables are the names that modules of torch.nn.Embedding have beside those that end in
	// embedding or embeddings.
	tables = set("embed_tokens", "embed_in", "embed_tokens_per_layer", "pos_embed", "wte", "wpe", "shared",
		"tok_embeddings", "relative_attention_bias")
	// readPast are the modules whose weight their models read past the module, or that look up
	// otherwise than torch.nn.Embedding: what PEFT puts around them has no effect, or fails. The
	// names under "" are those of many models.
	readPast = map[string]map[string]bool{
		"":             set("embed_positions", "rel_embeddings"),
		"mamba":        set("out_proj", "dt_proj"),
		"falcon_mamba": set("out_proj", "dt_proj", "x_proj"),
		"mamba2":       set("out_proj"),
		"falcon_h1":    set("out_proj"),
		"whisper":      set("conv1", "conv2"), // it asks for their stride
		"mobilenet_v1": set("convolution"),
		"mobilenet_v2": set("convolution"),
		"regnet":       set("convolution"), // in groups, which no shape shows
	}
	// asParameters are the names of modules that PEFT, in a model with stacked experts, takes for
	// weights of these.
	asParameters = set("gate", "router", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
)

// Hold says how PEFT can hold the change of a parameter.
func (m *PEFTModel) Hold(name string) Held {
	module, leaf := Module(name), Leaf(name)
	shape := m.live[m.byName[name]].Shape
	if owner, _, ok := strings.Cut(name, ".parametrizations."); ok {
		return Held{Form: Whole, Module: owner}
	}
	if owner := m.attention(module); owner != "" {
		return Held{Form: Whole, Module: owner}
	}
	switch {
	case module == "":
		return Held{Why: "it belongs to the model itself, and PEFT saves modules"}
	case IsExperts(module) && len(shape) == 3:
		return Held{Form: Parameter}
	case IsExperts(module):
		return Held{Why: "the other parameters of its module are experts, which get factors"}
	case leaf == "bias" && m.inner[module]:
		return Held{Form: Bias}
	case leaf == "bias" && m.holdsFactors(module):
		return Held{Form: Bias, Module: module}
	case leaf == "weight" && !m.inner[module] && len(shape) > 1:
		return m.weight(module, shape)
	}
	return m.whole(module)
}

// weight says how the change of the weight of a module without others below it is held.
func (m *PEFTModel) weight(module string, shape []uint64) Held {
	leaf := Leaf(module)
	switch {
	case readPast[m.modelType][leaf] || readPast[""][leaf]:
		return m.whole(module)
	case len(shape) > 2 && shape[1] == 1 && shape[0] > 1:
		return m.whole(module) // depthwise, or of one channel: this costs little
	case len(shape) > 2:
		return Held{Form: Conv}
	case isTable(module):
		return Held{Form: Embedding}
	case m.experts && asParameters[leaf]:
		return Held{Form: Parameter}
	}
	return Held{Form: Linear}
}

// isTable reports whether modules of this path are of torch.nn.Embedding.
func isTable(module string) bool {
	leaf := Leaf(module)
	if strings.Contains(leaf, "patch") {
		return false
	}
	return tables[leaf] || strings.HasSuffix(leaf, "embedding") || strings.HasSuffix(leaf, "embeddings")
}

// holdsFactors reports whether the weight of a module is held in factors.
func (m *PEFTModel) holdsFactors(module string) bool {
	i, ok := m.byName[module+".weight"]
	if !ok || m.inner[module] || len(m.live[i].Shape) < 2 {
		return false
	}
	form := m.weight(module, m.live[i].Shape).Form
	return form == Linear || form == Embedding || form == Conv || form == Parameter
}

// attention returns the path of the torch.nn.MultiheadAttention that a module is, or belongs to. It
// reads the weight of its out_proj past that module, and what PEFT puts around the whole applies
// out_proj twice.
func (m *PEFTModel) attention(module string) string {
	for _, path := range []string{module, Module(module)} {
		if _, ok := m.byName[path+".in_proj_weight"]; ok && path != "" {
			return path
		}
	}
	return ""
}

// IsTurned reports whether the checkpoint holds stacked experts transposed, compared with the model
// in memory. Of the types of which that is known it may hold them either way; two parameters of a
// module tell, as gate_up_proj has twice as many outputs as down_proj has inputs.
func (m *PEFTModel) IsTurned(name string) bool {
	if !HasTurnedExperts(m.modelType) {
		return false
	}
	up, hasUp := m.byName[Module(name)+".gate_up_proj"]
	down, hasDown := m.byName[Module(name)+".down_proj"]
	return !hasUp || !hasDown || m.live[up].Shape[1] != 2*m.live[down].Shape[2]
}

// whole is the form of a parameter whose module has to be saved. Where others lie below that
// module, they go with it: once in a model this costs little, in every layer it is most of the
// model.
func (m *PEFTModel) whole(module string) Held {
	if m.inner[module] && m.numbered[module] {
		return Held{Why: "its module holds other modules, and PEFT would save all of them whole"}
	}
	return Held{Form: Whole, Module: module}
}

// Close adds to the modules to save those that PEFT saves with them: it compares the ends of their
// paths, whatever stands before. The paths come back sorted, without those that lie within others;
// why says what is in the way.
func (m *PEFTModel) Close(save []string) (closed []string, why string) {
	saved := make(map[string]bool)
	for _, s := range save {
		saved[s] = true
	}
	paths := m.paths()
	for again := true; again; {
		again = false
		for _, path := range paths {
			if saved[path] || !endsLike(path, save) {
				continue
			}
			saved[path], again = true, true
			save = append(save, path)
			if m.inner[path] && m.numbered[path] {
				return nil, "PEFT compares the ends of names, and would save " + path + " whole as well"
			}
		}
	}
	for path := range saved {
		if within(path, saved) == "" {
			closed = append(closed, path)
		}
	}
	slices.Sort(closed)
	for _, path := range paths {
		parent := within(path, saved)
		if parent != "" && endsLike(path, closed) {
			return nil, "PEFT compares the ends of names, and would save " + path + " once more than in " + parent
		}
	}
	return closed, ""
}

// endsLike reports whether PEFT takes a path for one of the modules to save.
func endsLike(path string, save []string) bool {
	return slices.ContainsFunc(save, func(s string) bool { return strings.HasSuffix(path, s) })
}

// within returns the module of saved that a path lies in, "" if there is none.
func within(path string, saved map[string]bool) string {
	for parent := Module(path); parent != ""; parent = Module(parent) {
		if saved[parent] {
			return parent
		}
	}
	return ""
}

// paths lists the paths of all modules, sorted.
func (m *PEFTModel) paths() []string {
	all := make([]string, 0, len(m.numbered))
	for path := range m.numbered {
		all = append(all, path)
	}
	slices.Sort(all)
	return all
}

// Under lists the parameters of a module and of those below it.
func (m *PEFTModel) Under(module string) (names []string) {
	for _, p := range m.live {
		if strings.HasPrefix(p.Name, module+".") {
			names = append(names, p.Name)
		}
	}
	return names
}
