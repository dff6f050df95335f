package naming

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Diagnosis explains why a base cannot take the changes of an adapter, as far as names and shapes
// tell.
type Diagnosis struct {
	Why  string // a clause, such as "the base has …"
	Hint string // what to do
}

// Diagnose explains why the base lacks the missing tensors, named in the base's spelling. It
// returns the first reason that fits any of them; ok is false if the names give none. A prefix that
// one side lacks hides no reason: names are compared from the stack of layers on.
func (b *Base) Diagnose(missing []string) (d Diagnosis, ok bool) {
	x := &examiner{base: b}
	tests := []func(name string) (Diagnosis, bool){
		x.wrapped, x.fusedOrSplit, x.otherLayout, x.shallow, x.beyond, x.adapter, x.sibling,
	}
	for _, test := range tests {
		for _, name := range missing {
			if d, ok := test(name); ok {
				return d, true
			}
		}
	}
	return Diagnosis{}, false
}

// examiner looks for the reason why a base lacks a tensor. It keeps its findings about the base for
// the next name.
type examiner struct {
	base   *Base
	layout *layout
	factor *string           // the name of an adapter's factor in the base, "" if it has none
	leaves map[string]string // the base's tensors, by layer and module name
	layers map[string]int    // the number of layers, by the name of their stack
}

// Dequantise is the hint for a quantised base.
const Dequantise = "merge into the checkpoint that it was quantised from, or into a dequantised copy, " +
	"then quantise again"

// Holder returns which of some weights holds one of the missing tensors: the tensor itself, or a
// relative that contains it. It returns "" if none does. The base need not list the weights: codes
// that cannot be read stand for them.
func Holder(missing, weights []string) string {
	module := func(name string) string { return strings.TrimSuffix(name, ".weight") }
	at := make(map[string]string, len(weights))
	for _, name := range weights {
		where := module(place(name))
		at[where] = min(name, cmp.Or(at[where], name))
	}
	for _, name := range missing {
		for _, relative := range relatives(module(name)) {
			if weight, ok := at[module(place(relative+".weight"))]; ok {
				return weight
			}
		}
	}
	return ""
}

// relatives returns the module and every module that may hold its weight in other bases: stacked
// with the other experts, one expert, fused with others, or one part.
func relatives(module string) []string {
	all := []string{module}
	if parameter, _, _, _, ok := ExpertPart(module); ok {
		all = append(all, parameter)
	}
	parent, leaf := Module(module), Leaf(module)
	if IsExperts(parent) {
		for _, parts := range expertParts[leaf] {
			all = append(all, parent+".0."+parts[0])
		}
	}
	for _, f := range fusions {
		for _, other := range f.others(leaf) {
			all = append(all, join(parent, other))
		}
	}
	return all
}

func join(parent, leaf string) string { return strings.TrimPrefix(parent+"."+leaf, ".") }

// wrappings are the layers that PEFT puts around a module or around a saved copy: the tensors to
// remove from a file, and the text to cut from the names of the others.
var wrappings = []struct{ around, remove, cut string }{
	{nesting, "lora_", ".base_layer"},
	{nesting + nesting, "lora_", ".base_layer"},
	{".modules_to_save.default", "original_module", ".modules_to_save.default"},
}

// wrapped looks for PEFT's layers in the base.
func (x *examiner) wrapped(name string) (Diagnosis, bool) {
	module, leaf := Module(name), Leaf(name)
	for _, w := range wrappings {
		inner, ok := x.base.near(module + w.around + "." + leaf)
		if !ok {
			continue
		}
		return Diagnosis{
			fmt.Sprintf("the base was saved with an adapter of its own around its weights: "+
				"it has %q", inner),
			fmt.Sprintf("remove them first: in PEFT with unload or "+
				"merge_and_unload, then save_pretrained; or in the file, remove the tensors with %q in "+
				"their names, and %q from the names of the others", w.remove, w.cut),
		}, true
	}
	return Diagnosis{}, false
}

// layout is a second layout in which a model is published, beside the one that its loader reads:
// the names start differently.
type layout struct {
	base, adapter *regexp.Regexp
	words, loader string
	example       string
}

var layouts = []layout{
	{base: regexp.MustCompile(`^blk\.\d+\.`), adapter: regexp.MustCompile(`(^|\.)(layers|h|blocks)\.\d+\.`),
		words: "of llama.cpp", loader: "transformers"},
	{base: regexp.MustCompile(`^(model\.)?layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.`),
		adapter: regexp.MustCompile(`\.(self_attn|mlp)\.`), words: "of the model's first release", loader: "transformers"},
	{base: regexp.MustCompile(`(^|\.)(double_blocks|joint_blocks|input_blocks)\.\d+\.`),
		adapter: regexp.MustCompile(`(^|\.)(transformer_blocks|single_transformer_blocks|down_blocks)\.`),
		words:   "of the model's first release", loader: "diffusers"},
}

// otherLayout recognises a base that is the right model in another layout.
func (x *examiner) otherLayout(name string) (Diagnosis, bool) {
	if x.layout == nil {
		x.layout = x.findLayout()
	}
	l := x.layout
	if x.base.isTranslated || l.adapter == nil || !l.adapter.MatchString(name) {
		return Diagnosis{}, false
	}
	return Diagnosis{
		fmt.Sprintf("the base uses the names %s, such as %q; the adapter uses those of %s, %q",
			l.words, l.example, l.loader, name),
		"merge into the checkpoint of the same model that " + l.loader + " loads",
	}, true
}

// findLayout finds the layout of the base, and returns an empty one if it knows none.
func (x *examiner) findLayout() *layout {
	for _, own := range x.base.sortedNames() {
		for _, l := range layouts {
			if l.base.MatchString(own) {
				l.example = own
				return &l
			}
		}
	}
	return new(layout)
}

// shallow recognises a base with fewer layers.
func (x *examiner) shallow(name string) (Diagnosis, bool) {
	at, layers, ok := x.stack(name)
	if !ok || layers == 0 || at < layers {
		return Diagnosis{}, false
	}
	return Diagnosis{
		fmt.Sprintf("the last layer of the base is number %d; the adapter changes number %d: %q",
			layers-1, at, name),
		"the adapter was made for another base, which has more layers",
	}, true
}

// stack returns the layer number in a name, and how many layers the base has in that stack.
func (x *examiner) stack(name string) (at, layers int, ok bool) {
	head, rest, ok := cutNumber(place(name))
	at, isNumber := leadingNumber(rest)
	if !ok || !isNumber {
		return 0, 0, false
	}
	if x.layers == nil {
		x.layers = make(map[string]int)
		for own := range x.base.all() {
			if other, tail, ok := cutNumber(place(own)); ok {
				if n, ok := leadingNumber(tail); ok {
					x.layers[other] = max(x.layers[other], n+1)
				}
			}
		}
	}
	return at, x.layers[head], true
}

// beyond recognises a base with fewer numbered parts inside a layer, such as experts.
func (x *examiner) beyond(name string) (Diagnosis, bool) {
	parts := strings.Split(place(name), ".")
	for i := 2; i < len(parts); i++ {
		number, ok := leadingNumber(parts[i])
		if !ok {
			continue
		}
		n := 0
		for len(x.base.at(numbered(parts, i, n))) > 0 {
			n++
		}
		if n > 0 && number >= n {
			return Diagnosis{
				fmt.Sprintf("the base has %s up to number %d; the adapter changes number %d: %q",
					parts[i-1], n-1, number, name),
				"the adapter was made for another base, which has more of them",
			}, true
		}
	}
	return Diagnosis{}, false
}

// numbered returns a place with segment i set to another number.
func numbered(parts []string, i, number int) string {
	parts = slices.Clone(parts)
	parts[i] = strconv.Itoa(number)
	return strings.Join(parts, ".")
}

// sibling recognises a module under another name: the base has other modules at that place in the
// layer. It cannot tell which of them is meant, so it is tried last.
func (x *examiner) sibling(name string) (Diagnosis, bool) {
	module := Module(place(name))
	parent, leaf := Module(module), Leaf(module)
	if isLayer := parent == layer(name); parent == "" || isLayer || x.base.Has(name) {
		return Diagnosis{}, false
	}
	var leaves []string
	for _, own := range x.base.sortedNames() {
		if rest, ok := strings.CutPrefix(place(own), parent+"."); ok {
			if first, _, _ := strings.Cut(rest, "."); first == leaf {
				return Diagnosis{}, false
			} else if !slices.Contains(leaves, first) {
				leaves = append(leaves, first)
			}
		}
	}
	if len(leaves) == 0 {
		return Diagnosis{}, false
	}
	return Diagnosis{
		fmt.Sprintf("the base has no %q in %q; it has %s there", leaf, parent, `"`+strings.Join(leaves[:min(6, len(leaves))], `", "`)+`"`),
		"the adapter was made for another base, or for a program that names modules differently: " +
			"in that case merge into the checkpoint of that program, or rename the modules in the adapter's keys",
	}, true
}

// ofAdapter matches the names of factors in the dialects of adapters.
var ofAdapter = regexp.MustCompile(`(?i)lora_(a|b|up|down|mid)\b|\.(hada_|lokr_|oft_)|\.dora_scale$`)

// adapter recognises an adapter given as the base.
func (x *examiner) adapter(name string) (Diagnosis, bool) {
	if x.factor == nil {
		x.factor = new(string)
		names := x.base.sortedNames()
		if i := slices.IndexFunc(names, ofAdapter.MatchString); i >= 0 {
			x.factor = &names[i]
		} else if AreOfAdapter(names) {
			x.factor = &names[0]
		}
	}
	if *x.factor == "" || x.base.Has(name) {
		return Diagnosis{}, false
	}
	return Diagnosis{
		fmt.Sprintf("the base is an adapter: it has %q", *x.factor),
		"give the model first, then its adapters",
	}, true
}
