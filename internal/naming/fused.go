package naming

import (
	"fmt"
	"slices"
	"strings"
)

// fusion is a set of projections that some models fuse in one module and others keep apart.
type fusion struct {
	fused []string
	split [][]string
}

var fusions = []fusion{
	{
		[]string{
			"qkv_proj", "query_key_value", "Wqkv", "wqkv", "W_pack", "qkv", "c_attn", "in_proj", "to_qkv", "linear_qkv",
		},
		[][]string{
			{"q_proj", "k_proj", "v_proj"}, {"query", "key", "value"}, {"to_q", "to_k", "to_v"},
			{"wq", "wk", "wv"}, {"q_lin", "k_lin", "v_lin"}, {"q", "k", "v"},
			{"query_proj", "key_proj", "value_proj"},
		},
	},
	{
		[]string{"kv_proj", "to_kv", "Wkv"},
		[][]string{{"k_proj", "v_proj"}, {"to_k", "to_v"}, {"wk", "wv"}},
	},
	{[]string{"gate_up_proj", "w13", "linear_fc1"}, [][]string{{"gate_proj", "up_proj"}, {"w1", "w3"}}},
	{[]string{"in_proj_qkv", "in_proj_qkvz"}, [][]string{{"in_proj_q", "in_proj_k", "in_proj_v"}}},
	{[]string{"in_proj_qkvz"}, [][]string{{"in_proj_qkv", "in_proj_z"}}},
	{[]string{"in_proj_ba"}, [][]string{{"in_proj_b", "in_proj_a"}}},
}

// IsFused reports whether modules of this name hold several projections in one weight, in some
// models.
func IsFused(module string) bool {
	has := func(f fusion) bool { return slices.Contains(f.fused, Leaf(module)) }
	return slices.ContainsFunc(fusions, has)
}

// Forms returns the places whose weights a module may hold, with the form in which its name has
// them: fused or apart, one expert or all, and one name of several. Two modules with one place and
// two forms name the same weights.
func Forms(module string) map[string]string {
	forms := make(map[string]string)
	parent, leaf := Module(module), Leaf(module)
	for i, f := range fusions {
		for j, split := range f.split {
			if slices.Contains(split, leaf) {
				forms[fmt.Sprint(parent, " fusion ", i)] = fmt.Sprint("apart ", j)
			}
		}
		if slices.Contains(f.fused, leaf) {
			forms[fmt.Sprint(parent, " fusion ", i)] = "fused"
		}
	}
	for parameter, styles := range expertParts {
		for j, style := range styles {
			if slices.Contains(style, leaf) {
				forms[fmt.Sprint(parent, " experts' ", parameter)] = fmt.Sprint("style ", j)
			}
		}
	}
	if before, after, ok := strings.Cut(module+".", ".experts."); ok {
		forms[before+" experts"] = "all"
		if after != "" && after[0] >= '0' && after[0] <= '9' {
			forms[before+" experts"] = "one"
		}
	}
	return forms
}

// others lists the names that hold, in other models, what a module of this name holds, or parts of
// it.
func (f fusion) others(leaf string) (names []string) {
	if slices.Contains(f.fused, leaf) {
		for _, s := range f.split {
			names = append(names, s...)
		}
	}
	if slices.ContainsFunc(f.split, func(s []string) bool { return slices.Contains(s, leaf) }) {
		names = append(names, f.fused...)
	}
	return names
}

// fusedOrSplit looks for projections that are one module on one side and several on the other, in
// the same module or elsewhere in the layer.
func (x *examiner) fusedOrSplit(name string) (Diagnosis, bool) {
	module := Module(name)
	parent, leaf := Module(module), Leaf(module)
	for _, inLayer := range []bool{false, true} {
		has := func(leaf string) (string, bool) {
			if inLayer {
				return x.inLayer(name, leaf)
			}
			// torch.nn.MultiheadAttention has in_proj_weight.
			for _, tail := range []string{".weight", "_weight"} {
				if own, ok := x.base.near(join(parent, leaf) + tail); ok {
					return own, true
				}
			}
			return "", false
		}
		for _, f := range fusions {
			for _, split := range f.split {
				if d, ok := compareFusion(f.fused, split, module, leaf, has); ok {
					return d, true
				}
			}
		}
	}
	return Diagnosis{}, false
}

// compareFusion compares one way of fusing with a module that the base lacks.
func compareFusion(
	fused, split []string, module, leaf string, has func(string) (string, bool),
) (Diagnosis, bool) {
	parts := strings.Join(split, ", ")
	switch {
	case slices.Contains(split, leaf):
		for _, f := range fused {
			if own, ok := has(f); ok {
				return Diagnosis{
					fmt.Sprintf("the base fuses %q in one module, and nothing tells the order of its rows; "+
						"the adapter has %s apart", own, parts),
					"if the base has no config.json, put the model's own beside its weights: it names the type; " +
						"else merge into a checkpoint of the model that keeps them apart; or join them to one LoRA in " +
						"Python: stack their lora_A by rows, put their lora_B on a block diagonal with " +
						"its rows in the base's order (zeros for parts without an adapter), then set its " +
						"rank, the sum, in rank_pattern, and lora_alpha in alpha_pattern as many times larger",
				}, true
			}
		}
	case slices.Contains(fused, leaf):
		if own, ok := has(split[0]); ok {
			return Diagnosis{
				fmt.Sprintf("the base has %s apart; the adapter has %q in one module (the base has %q)", parts, module, own),
				"merge into a checkpoint of the model that fuses them; or split the LoRA in Python: " +
					"each part gets the whole lora_A and its own rows of lora_B",
			}, true
		}
	}
	return Diagnosis{}, false
}

// inLayer finds a module of the base by its last segment, in the layer of a tensor.
func (x *examiner) inLayer(name, leaf string) (own string, ok bool) {
	if x.leaves == nil {
		x.leaves = make(map[string]string)
		for _, own := range x.base.sortedNames() {
			key := layer(own) + " " + Leaf(Module(own))
			if _, seen := x.leaves[key]; !seen {
				x.leaves[key] = x.base.Actual(own)
			}
		}
	}
	where := layer(name)
	own, ok = x.leaves[where+" "+leaf]
	return own, ok && where != ""
}

// layer returns the start of a place up to the layer's number, "" if it has none.
func layer(name string) string {
	stack, rest, ok := cutNumber(place(name))
	if !ok {
		return ""
	}
	number, _, _ := strings.Cut(rest, ".")
	return stack + "." + number
}
