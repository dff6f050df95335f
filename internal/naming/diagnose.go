package naming

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Diagnosis is why a base lacks a tensor that an adapter changes, as far as the base's own names tell.
type Diagnosis struct {
	Why  string // a clause: the base has …
	Hint string // what to do
}

// Diagnose says why the base lacks one of the tensors, by their names in the base's spelling; ok is false where its names do not
// tell. The first reason that fits any of them is the one.
func (b *Base) Diagnose(missing []string) (d Diagnosis, ok bool) {
	for _, test := range []func(name string) (Diagnosis, bool){b.quantised, b.wrapped, b.unstacked, b.fusedOrSplit} {
		for _, name := range missing {
			if d, ok := test(name); ok {
				return d, true
			}
		}
	}
	return Diagnosis{}, false
}

// quantisedTails are what the schemes of quantisation store in place of a weight.
var quantisedTails = []struct{ tail, scheme string }{
	{".qweight", "GPTQ or AWQ"}, {".qzeros", "GPTQ or AWQ"},
	{".weight_packed", "compressed-tensors"}, {".W_q", "HQQ"}, {".q_weight", "EXL2"},
	{"_blocks", "MXFP4"}, {".trellis", "EXL3"},
}

// quantised looks for the codes of a weight that is not there itself.
func (b *Base) quantised(name string) (Diagnosis, bool) {
	module := strings.TrimSuffix(name, ".weight")
	for _, q := range quantisedTails {
		if b.Has(module + q.tail) {
			return Diagnosis{
				fmt.Sprintf("the base is quantised (%s): it has %q and no %q", q.scheme, module+q.tail, name),
				"merge into the checkpoint that it was quantised from, then quantise again",
			}, true
		}
	}
	return Diagnosis{}, false
}

// wrapped looks for layers of PEFT in the base.
func (b *Base) wrapped(name string) (Diagnosis, bool) {
	module := strings.TrimSuffix(name, ".weight")
	for _, start := range []string{"", "base_model.model."} {
		if inner := start + module + nesting + ".weight"; b.Has(inner) {
			return Diagnosis{
				fmt.Sprintf("the base was saved with the layers of an adapter of its own around its weights: it has %q", inner),
				"merge into the base without them: save it after merge_and_unload or unload of PEFT",
			}, true
		}
	}
	return Diagnosis{}, false
}

// oneExpert is a module for one expert, as unsloth makes them for gpt-oss.
var oneExpert = regexp.MustCompile(`^(.*\.)?experts\.(gate_up_proj|down_proj)s\.\d+\.weight$`)

// unstacked tells modules of one expert each from a base that stacks them.
func (b *Base) unstacked(name string) (Diagnosis, bool) {
	m := oneExpert.FindStringSubmatch(name)
	if m == nil {
		return Diagnosis{}, false
	}
	stacked := m[1] + "experts." + m[2]
	if b.Has(stacked + "_blocks") {
		return b.quantised(stacked)
	}
	if !b.Has(stacked) {
		return Diagnosis{}, false
	}
	return Diagnosis{
		fmt.Sprintf("the base stacks its experts in %q, and the adapter has a module for each, %q, which is not merged yet", stacked, name),
		"merge with the library that trained it",
	}, true
}

// fusions are modules that some models have as one and others apart.
var fusions = []struct {
	fused []string
	split []string
}{
	{[]string{"qkv_proj", "query_key_value", "Wqkv", "qkv", "c_attn", "in_proj"}, []string{"q_proj", "k_proj", "v_proj"}},
	{[]string{"gate_up_proj"}, []string{"gate_proj", "up_proj"}},
	{[]string{"in_proj_qkv", "in_proj_qkvz"}, []string{"in_proj_q", "in_proj_k", "in_proj_v"}},
}

// fusedOrSplit looks for the projections that are one module here and several there.
func (b *Base) fusedOrSplit(name string) (Diagnosis, bool) {
	module := Module(name)
	parent, leaf := Module(module), Leaf(module)
	at := func(s string) string { return strings.TrimPrefix(parent+"."+s, ".") }
	for _, f := range fusions {
		has := func(names []string) string {
			for _, s := range names {
				if b.Has(at(s) + ".weight") {
					return at(s)
				}
			}
			return ""
		}
		if fused := has(f.fused); fused != "" && slices.Contains(f.split, leaf) {
			return Diagnosis{
				fmt.Sprintf("the base has %q in one, where the adapter has %s apart", fused, strings.Join(f.split, ", ")),
				"merge into a checkpoint of the model that has them apart, or train on this one",
			}, true
		}
		if split := has(f.split); split != "" && slices.Contains(f.fused, leaf) {
			return Diagnosis{
				fmt.Sprintf("the base has %s apart, where the adapter has %q in one", strings.Join(f.split, ", "), module),
				"merge into a checkpoint of the model that has them in one, or train on this one",
			}, true
		}
	}
	return Diagnosis{}, false
}
