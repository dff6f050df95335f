package merge

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/naming"
)

// together lists modules that programs fuse when they load a model, by the last parts of their
// names: either all of them are quantised, or none. They are the packed_modules_mapping of the
// models of vLLM 0.33.0, which refuses a layer with some of them quantised.
var together = []struct {
	fused  string // the name of the module in most models of vLLM
	leaves []string
}{
	{"qkv_proj", []string{"q_proj", "k_proj", "v_proj", "b_proj", "g_proj", "f_a_proj"}},
	{"gate_up_proj", []string{"gate_proj", "up_proj", "dense_h_to_4h"}},
	{"gate_up_proj", []string{"c_fc_0", "c_fc_1"}},
	{"w13", []string{"w1", "w3"}},
	{"fc13", []string{"fc1", "fc3"}},
	{"merged_qkv", []string{"wq", "wk", "wv"}},
	{"qkv", []string{"q", "k", "v"}},
	{"qkv_proj", []string{"query", "key", "value"}},
	{"fused_qkv_a_proj", []string{"q_a_proj", "kv_a_proj_with_mqa"}},
	{"in_proj_qkvz", []string{"in_proj_qkv", "in_proj_z"}},
	{"in_proj_ba", []string{"in_proj_a", "in_proj_b"}},
	{"in_proj", []string{"in_proj_qkvz", "in_proj_ba"}},
}

// unit names the part of a model that programs load as one: all experts of a layer, the modules
// that are fused, or a single module.
func unit(weight string) string {
	if i := strings.Index(weight, ".experts."); i >= 0 {
		return weight[:i+len(".experts")]
	}
	module := strings.TrimSuffix(weight, ".weight")
	if fused, leaf := fusedWith(module); fused != "" {
		return fused + "." + leaf
	}
	return module
}

// fusedWith returns the name of the module that programs make of a module and others, "" if they
// fuse it with none, and the last part of the name of the first of them.
func fusedWith(module string) (fused, first string) {
	leaf := naming.Leaf(module)
	for _, t := range together {
		if slices.Contains(t.leaves, leaf) {
			return naming.Module(module) + "." + t.fused, t.leaves[0]
		}
	}
	return "", ""
}

// skipped lists the modules of weights that the output decodes, sorted. Those of experts are one
// entry. Programs that load bitsandbytes compare the names of fused modules.
func skipped(weights iter.Seq[string], method string) []string {
	modules := make(map[string]bool)
	for name := range weights {
		if strings.Contains(name, ".experts.") {
			modules[unit(name)] = true
			continue
		}
		module := strings.TrimSuffix(name, ".weight")
		modules[module] = true
		if fused, _ := fusedWith(module); fused != "" && method == "bitsandbytes" {
			modules[fused] = true
		}
	}
	return slices.Sorted(maps.Keys(modules))
}
