package naming

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Diagnosis is why a base cannot take what an adapter changes, as far as its own names and shapes
// tell.
type Diagnosis struct {
	Why  string // a clause: the base has …
	Hint string // what to do
}

// Diagnose says why the base lacks one of the tensors, by their names in the base's spelling; ok is
// false where its names do not tell. The first reason that fits any of them is the one. A prefix
// that the base has or lacks hides no reason: names are compared from their place in the model on.
func (b *Base) Diagnose(missing []string) (d Diagnosis, ok bool) {
	x := &examiner{base: b}
	tests := []func(name string) (Diagnosis, bool){
		x.quantised, x.wrapped, x.fusedOrSplit, x.otherLayout, x.shallow, x.beyond, x.adapter, x.sibling,
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

// examiner looks for the reason why a base lacks a tensor. What it finds about the base is kept for
// the next name.
type examiner struct {
	base   *Base
	layout *layout
	factor *string           // the name of a factor of an adapter, "" where there is none
	leaves map[string]string // by its layer and the name of its module
	layers map[string]int    // their number, by the name of their stack
}

// Dequantise says what to do about a base that is quantised.
const Dequantise = "merge into the checkpoint that it was quantised from, or into a dequantised copy, " +
	"then quantise again"

// quantisedTails are what the schemes of quantisation store in place of a weight.
var quantisedTails = []struct{ tail, scheme string }{
	{".qweight", "GPTQ or AWQ"}, {".qzeros", "GPTQ or AWQ"},
	{".weight_packed", "compressed-tensors"}, {".W_q", "HQQ"}, {".q_weight", "EXL2"},
	{"_blocks", "MXFP4"}, {".trellis", "EXL3"}, {".Qidxs", "QuIP#"}, {".dense_weights", "SpQR"},
	{".codebooks", "AQLM"}, {".centroids.weight", "VPTQ"}, {".weight._data", "Quanto"},
	{"._weight_qdata", "torchao"}, {".weight_qdata", "torchao"},
}

// quantised looks for the codes of a weight that is not there itself, alone or as a part of others.
func (x *examiner) quantised(name string) (Diagnosis, bool) {
	for _, module := range relatives(strings.TrimSuffix(name, ".weight")) {
		for _, q := range quantisedTails {
			codes, ok := x.base.near(module + q.tail)
			if !ok {
				continue
			}
			hint := Dequantise
			if q.scheme == "MXFP4" {
				hint = "merge into a copy in BF16: transformers writes it (from_pretrained with " +
					"quantization_config=Mxfp4Config(dequantize=True), then save_pretrained)"
			}
			why := fmt.Sprintf("the base is quantised (%s): it has %q and no %q", q.scheme, codes, name)
			return Diagnosis{why, hint}, true
		}
	}
	return Diagnosis{}, false
}

// relatives are the module itself and those that may hold its weight in other bases: stacked with
// the other experts or one of them, fused with others or one of its parts.
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

// wrappings are what PEFT puts around a module, or around one that it saves whole: which tensors of
// a file are PEFT's, and what is to be taken out of the names of the others.
var wrappings = []struct{ around, remove, cut string }{
	{nesting, "lora_", ".base_layer"},
	{nesting + nesting, "lora_", ".base_layer"},
	{".modules_to_save.default", "original_module", ".modules_to_save.default"},
}

// wrapped looks for layers of PEFT in the base.
func (x *examiner) wrapped(name string) (Diagnosis, bool) {
	module, leaf := Module(name), Leaf(name)
	for _, w := range wrappings {
		inner, ok := x.base.near(module + w.around + "." + leaf)
		if !ok {
			continue
		}
		return Diagnosis{
			fmt.Sprintf("the base was saved with the layers of an adapter of its own around its weights: "+
				"it has %q", inner),
			fmt.Sprintf("merge into the base without them: take them off in PEFT (unload, or "+
				"merge_and_unload, then save_pretrained); or, in the file, remove the tensors with %q in "+
				"their names, and %q from the names of the others", w.remove, w.cut),
		}, true
	}
	return Diagnosis{}, false
}

// layout is one in which a model is published beside the one that its loader reads: how names begin
// there and here.
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

// otherLayout tells a base in another layout from another model.
func (x *examiner) otherLayout(name string) (Diagnosis, bool) {
	if x.layout == nil {
		x.layout = x.findLayout()
	}
	l := x.layout
	if l.adapter == nil || !l.adapter.MatchString(name) {
		return Diagnosis{}, false
	}
	return Diagnosis{
		fmt.Sprintf("the base has the names %s, such as %q, and the adapter those of %s, %q",
			l.words, l.example, l.loader, name),
		"merge into the checkpoint of the same model that " + l.loader + " loads",
	}, true
}

// findLayout finds the layout of the base; that of a base without one is empty.
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

// shallow tells a base that has fewer layers.
func (x *examiner) shallow(name string) (Diagnosis, bool) {
	at, layers, ok := x.stack(name)
	if !ok || layers == 0 || at < layers {
		return Diagnosis{}, false
	}
	return Diagnosis{
		fmt.Sprintf("the layers of the base end with number %d, and the adapter changes number %d: %q",
			layers-1, at, name),
		"the adapter was made for another base, which has more layers",
	}, true
}

// stack returns the number of the layer that a name is in, and how many layers the base has in the
// stack of the same name.
func (x *examiner) stack(name string) (at, layers int, ok bool) {
	head, rest, ok := cutNumber(place(name))
	at, isNumber := leadingNumber(rest)
	if !ok || !isNumber {
		return 0, 0, false
	}
	if x.layers == nil {
		x.layers = make(map[string]int)
		for own := range x.base.byName {
			if other, tail, ok := cutNumber(place(own)); ok {
				if n, ok := leadingNumber(tail); ok {
					x.layers[other] = max(x.layers[other], n+1)
				}
			}
		}
	}
	return at, x.layers[head], true
}

// beyond tells a base that has fewer of what is numbered inside a layer, such as experts.
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
				fmt.Sprintf("the %s of the base end with number %d, and the adapter changes number %d: %q",
					parts[i-1], n-1, number, name),
				"the adapter was made for another base, which has more of them",
			}, true
		}
	}
	return Diagnosis{}, false
}

// numbered is a place with another number in one of its segments.
func numbered(parts []string, i, number int) string {
	parts = slices.Clone(parts)
	parts[i] = strconv.Itoa(number)
	return strings.Join(parts, ".")
}

// sibling tells a module under another name: the base has others where it is looked for, inside a
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
		"the adapter was made for another base, or for a program that gives the modules other names: " +
			"then merge into the checkpoint of that program, or rename the modules in the adapter's keys",
	}, true
}

// ofAdapter are the names of factors, as the dialects of adapters have them.
var ofAdapter = regexp.MustCompile(`(?i)lora_(a|b|up|down|mid)\b|\.(hada_|lokr_|oft_)|\.dora_scale$`)

// adapter tells an adapter that is given for the base.
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
		fmt.Sprintf("an adapter is given for the base: it has %q", *x.factor),
		"give the model that is adapted first, then its adapters",
	}, true
}
