package naming

import (
	"slices"
	"strings"
)

// PEFT can hold the change of a tensor only in the ways that the module's class allows, and a
// checkpoint does not store classes. These rules decide by the names and shapes of all tensors; the
// tables add facts that neither shows. The tests compare them with PEFT itself
// (testdata/extract/peft).

// Form is a way in which a PEFT adapter holds the change of a tensor.
type Form int

const (
	NoForm    Form = iota // PEFT cannot hold it
	Linear                // factors of a module in target_modules
	Embedding             // factors of a lookup table
	Conv                  // factors of a convolution
	Parameter             // factors of a parameter in target_parameters
	Whole                 // the whole module, in modules_to_save
	Bias                  // a bias, beside its module's factors or under bias="all"
)

// Held says how PEFT holds the change of one tensor. With Form Whole, Module is the module to save.
// With NoForm, Why gives the reason.
type Held struct {
	Form   Form
	Module string
	Why    string
}

// PEFTModel indexes the parameters of a model in memory.
type PEFTModel struct {
	live      []Live
	modelType string
	byName    map[string]int
	inner     map[string]bool // modules that contain other modules with tensors
	numbered  map[string]bool // modules in a stack of layers, or around one
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

// hasNumber reports whether a segment of a path is a number, such as the number of a layer.
func hasNumber(path string) bool {
	return slices.ContainsFunc(strings.Split(path, "."), func(s string) bool {
		return s != "" && strings.Trim(s, "0123456789") == ""
	})
}

var (
	// tables are the names of torch.nn.Embedding modules, beside those that end in embedding or
	// embeddings.
	tables = set("embed_tokens", "embed_in", "embed_tokens_per_layer", "pos_embed", "wte", "wpe", "shared",
		"tok_embeddings", "relative_attention_bias")
	// readPast are the modules whose weight the model reads directly, or whose lookup is not
	// torch.nn.Embedding's. A PEFT layer around them has no effect, or fails. The names under ""
	// occur in many models.
	readPast = map[string]map[string]bool{
		"":             set("embed_positions", "rel_embeddings"),
		"mamba":        set("out_proj", "dt_proj"),
		"falcon_mamba": set("out_proj", "dt_proj", "x_proj"),
		"mamba2":       set("out_proj"),
		"falcon_h1":    set("out_proj"),
		"whisper":      set("conv1", "conv2"), // Whisper reads their stride
		"mobilenet_v1": set("convolution"),
		"mobilenet_v2": set("convolution"),
		"regnet":       set("convolution"), // grouped, and no shape shows it
	}
	// asParameters are the names of modules that PEFT takes for expert weights in a model with
	// stacked experts.
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

// weight decides for the weight of a module that contains no other module.
func (m *PEFTModel) weight(module string, shape []uint64) Held {
	leaf := Leaf(module)
	switch {
	case readPast[m.modelType][leaf] || readPast[""][leaf]:
		return m.whole(module)
	case len(shape) > 2 && shape[1] == 1 && shape[0] > 1:
		return m.whole(module) // depthwise or one channel: saving it whole is cheap
	case len(shape) > 2:
		return Held{Form: Conv}
	case isTable(module):
		return Held{Form: Embedding}
	case m.experts && asParameters[leaf]:
		return Held{Form: Parameter}
	}
	return Held{Form: Linear}
}

// isTable reports whether modules of this path are torch.nn.Embedding.
func isTable(module string) bool {
	leaf := Leaf(module)
	if strings.Contains(leaf, "patch") {
		return false
	}
	return tables[leaf] || strings.HasSuffix(leaf, "embedding") || strings.HasSuffix(leaf, "embeddings")
}

// holdsFactors reports whether PEFT holds the weight of a module as factors.
func (m *PEFTModel) holdsFactors(module string) bool {
	i, ok := m.byName[module+".weight"]
	if !ok || m.inner[module] || len(m.live[i].Shape) < 2 {
		return false
	}
	form := m.weight(module, m.live[i].Shape).Form
	return form == Linear || form == Embedding || form == Conv || form == Parameter
}

// attention returns the path of the torch.nn.MultiheadAttention that contains the module or is it.
// That class reads out_proj's weight directly, and PEFT's wrapper around the class applies out_proj
// twice.
func (m *PEFTModel) attention(module string) string {
	for _, path := range []string{module, Module(module)} {
		if _, ok := m.byName[path+".in_proj_weight"]; ok && path != "" {
			return path
		}
	}
	return ""
}

// LoadsTransposed reports whether transformers transposes these stacked experts on loading.
// Checkpoints of one type exist in both layouts, so two parameters decide: gate_up_proj has twice
// as many outputs as down_proj has inputs.
func (m *PEFTModel) LoadsTransposed(name string) bool {
	if !LoadsExpertsTransposed(m.modelType) {
		return false
	}
	up, hasUp := m.byName[Module(name)+".gate_up_proj"]
	down, hasDown := m.byName[Module(name)+".down_proj"]
	return !hasUp || !hasDown || m.live[up].Shape[1] != 2*m.live[down].Shape[2]
}

// whole is the form of a parameter whose module must be saved. Modules inside it are saved with it:
// this is cheap for one module, but saving every layer would save most of the model.
func (m *PEFTModel) whole(module string) Held {
	if m.inner[module] && m.numbered[module] {
		return Held{Why: "its module holds other modules, and PEFT would save all of them whole"}
	}
	return Held{Form: Whole, Module: module}
}

// Close adds the modules that PEFT would save along with these: PEFT compares only the ends of
// paths. It returns sorted paths, without those inside others; why names an obstacle.
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

// within returns the saved module that contains a path, "" if none does.
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

// Under lists the parameters of a module and of the modules inside it.
func (m *PEFTModel) Under(module string) (names []string) {
	for _, p := range m.live {
		if strings.HasPrefix(p.Name, module+".") {
			names = append(names, p.Name)
		}
	}
	return names
}
