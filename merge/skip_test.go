package merge_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// The functions below are the rules by which programs decide whether a module has plain weights, as
// read in vLLM 0.33.0 (the one for bitsandbytes in 0.10, which had it still) and transformers
// 5.24.0. names are those of vLLM's modules, some of which are fused.

var fusedByVLLM = map[string][]string{
	"qkv_proj": {"q_proj", "k_proj", "v_proj"}, "gate_up_proj": {"gate_proj", "up_proj"}, "fused_qkv_a_proj": {"q_a_proj", "kv_a_proj_with_mqa"},
}

// partsOf lists the modules of the checkpoint behind a module, nil if it is fused of none.
func partsOf(name string) (parts []string) {
	parent, leaf := name[:strings.LastIndex(name, ".")+1], name[strings.LastIndex(name, ".")+1:]
	for _, part := range fusedByVLLM[leaf] {
		parts = append(parts, parent+part)
	}
	return parts
}

// together is what a rule says of every part, an error if it says two things.
func together(parts []string, rule func(name string) bool) (bool, error) {
	for _, p := range parts {
		if rule(p) != rule(parts[0]) {
			return false, fmt.Errorf("%s and %s differ", p, parts[0])
		}
	}
	return rule(parts[0]), nil
}

// isLayerSkipped is vllm/model_executor/layers/quantization/utils/quant_utils.py, is_layer_skipped
// with match_mode "exact", for FP8 and ModelOpt.
func isLayerSkipped(name string, list []string) (bool, error) {
	isListed := func(name string) bool { return slices.Contains(list, name) }
	parts := partsOf(name)
	switch {
	case parts != nil && isListed(name):
		return true, nil
	case parts != nil:
		return together(parts, isListed)
	case strings.Contains(name, "experts"):
		return slices.ContainsFunc(list, func(l string) bool { return strings.Contains(l, "experts") && strings.Contains(l, name) }), nil
	}
	return isListed(name), nil
}

// isExcluded is modelopt.py, ModelOptQuantConfigBase.is_layer_excluded.
func isExcluded(name string, list []string) (bool, error) {
	if skipped, err := isLayerSkipped(name, list); skipped || err != nil {
		return skipped, err
	}
	return slices.ContainsFunc(list, func(l string) bool {
		matches, _ := path.Match(l, name)
		return l != name && strings.Contains(name, l) || matches
	}), nil
}

// isIgnored is compressed_tensors/utils.py, should_ignore_layer, and for experts
// compressed_tensors_moe.py, get_moe_method, which asks about the projections of expert 0.
func isIgnored(name string, list []string) (bool, error) {
	isListed := func(name string) bool {
		return slices.ContainsFunc(list, func(l string) bool {
			pattern, isPattern := strings.CutPrefix(l, "re:")
			return isPattern && regexp.MustCompile("^(?:"+pattern+")").MatchString(name) || l == name
		})
	}
	switch parts := partsOf(name); {
	case strings.HasSuffix(name, ".experts"):
		return together([]string{name + ".0.gate_proj", name + ".0.up_proj", name + ".0.down_proj"}, isListed)
	case parts != nil && !slices.Contains(list, name):
		return together(parts, isListed)
	}
	return isListed(name), nil
}

// isSkippedBNB is bitsandbytes.py, is_layer_skipped_bnb, of vLLM 0.10: a part of the name, or its
// beginning.
func isSkippedBNB(name string, list []string) (bool, error) {
	parts := strings.Split(name, ".")
	for i, part := range parts {
		if slices.Contains(list, part) || slices.Contains(list, strings.Join(parts[:i+1], ".")) {
			return true, nil
		}
	}
	return false, nil
}

// shouldConvert is transformers/quantizers/quantizers_utils.py, should_convert_module.
func shouldConvert(name string, list []string) bool {
	return !slices.ContainsFunc(list, func(key string) bool {
		end := regexp.MustCompile("^(?:" + key + ")").FindStringIndex(name)
		isWhole := end != nil && (end[1] == len(name) || name[end[1]] == '.' || end[1] > 0 && name[end[1]-1] == '.')
		return isWhole || strings.HasSuffix(name, key)
	})
}

// TestListsOfPlainModulesAreRead: programs take exactly those modules for plain that the output has
// decoded, or the base has plain. Layer 0 is dense, layer 1 has experts; the head is quantised.
func TestListsOfPlainModulesAreRead(t *testing.T) {
	const attention, dense, sparse = ".self_attn.", "model.layers.0.mlp.", "model.layers.1.mlp."
	var quantised []string
	for i := range 2 {
		for _, leaf := range []string{"q_proj", "k_proj", "v_proj", "o_proj"} {
			quantised = append(quantised, fmt.Sprint("model.layers.", i, attention, leaf))
		}
		for _, leaf := range []string{"gate_proj", "up_proj", "down_proj"} {
			quantised = append(quantised, fmt.Sprint(sparse, "experts.", i, ".", leaf))
		}
	}
	for _, leaf := range []string{"gate_proj", "up_proj", "down_proj"} {
		quantised = append(quantised, dense+leaf, sparse+"shared_experts."+leaf)
	}
	quantised = append(quantised, "lm_head")
	modules := []string{ // those of vLLM
		"model.layers.0.self_attn.qkv_proj", "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.qkv_proj", "model.layers.1.self_attn.o_proj",
		dense + "gate_up_proj", dense + "down_proj", sparse + "experts", sparse + "shared_experts.gate_up_proj", sparse + "shared_experts.down_proj", "lm_head",
	}
	for _, program := range []struct {
		config, file string
		list         func(t *testing.T, out string) []string
		isPlain      func(name string, list []string) (bool, error)
	}{
		{`"quant_method":"fp8"`, "", listIn("quantization_config", "modules_to_not_convert"), isLayerSkipped},
		{`"quant_method":"fp8","ignored_layers":["model.layers.1.mlp.gate"]`, "", listIn("quantization_config", "ignored_layers"), isLayerSkipped},
		{`"quant_method":"fbgemm_fp8","modules_to_not_convert":["model.layers.1.mlp.gate"]`, "", listIn("quantization_config", "modules_to_not_convert"), isLayerSkipped},
		{`"quant_method":"compressed-tensors","ignore":["re:.*mlp.gate$"]`, "", listIn("quantization_config", "ignore"), isIgnored},
		{`"quant_method":"modelopt","quant_algo":"FP8","ignore":["model.layers.1.mlp.gate"]`, "", listIn("quantization_config", "ignore"), isExcluded},
		{`"quant_method":"modelopt_mixed","ignore":[]`, "", listIn("quantization_config", "ignore"), isExcluded},
		{`"quant_method":"modelopt","quantization":{"quant_algo":"FP8","exclude_modules":["lm_nothing*"]}`, "", listIn("quantization_config", "quantization", "exclude_modules"), isExcluded},
		{``, `{"quantization":{"quant_algo":"FP8","exclude_modules":["model.layers.1.mlp.gate"]}}`, listIn("quantization", "exclude_modules"), isExcluded},
		{`"quant_method":"bitsandbytes","load_in_8bit":true`, "", listIn("quantization_config", "llm_int8_skip_modules"), isSkippedBNB},
	} {
		for _, changed := range []string{
			"model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.o_proj", dense + "up_proj", sparse + "experts.1.down_proj",
			sparse + "shared_experts.gate_proj", sparse + "shared_experts.down_proj", "lm_head",
		} {
			base := modelOfFP8(t, quantised, program.config, program.file)
			adapter, _, _ := adapterFor(t, rand.New(rand.NewPCG(1, 2)), changed+".weight", []uint64{8, 8})
			out, _ := runMerge(t, base, adapter, merge.Options{})
			list := program.list(t, out)
			plain := make(map[string]bool)
			for name, x := range readModel(t, out, true) {
				plain[strings.TrimSuffix(name, ".weight")] = x.DType == dtype.BF16
			}
			if !plain[changed] || plain["model.layers.0.self_attn.o_proj"] && plain[dense+"down_proj"] {
				t.Fatalf("a merge into %s decodes %v", changed, plain)
			}
			for _, module := range modules {
				parts := append(partsOf(module), module)
				if strings.HasSuffix(module, ".experts") {
					parts[0] = module + ".0.up_proj"
				}
				if got, err := program.isPlain(module, list); err != nil || got != plain[parts[0]] {
					t.Errorf("%s %s: %s is plain for vLLM: %t, in the output: %t; error %v; the list is %q", program.config, changed, module, got, plain[parts[0]], err, list)
				}
			}
			if strings.Contains(program.config, "modules_to") || strings.Contains(program.config, "bitsandbytes") {
				for _, module := range quantised {
					if got := shouldConvert(module, list); got == plain[module] {
						t.Errorf("%s %s: transformers converts %s: %t; the list is %q", program.config, changed, module, got, list)
					}
				}
			}
		}
	}
}

// modelOfFP8 writes a model with quantised weights of 8×8, an embedding, and a router.
func modelOfFP8(t *testing.T, quantised []string, config, file string) (dir string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	dir = t.TempDir()
	tensors := []testkit.Tensor{
		testkit.Random(rng, "model.embed_tokens.weight", dtype.BF16, 1, 8, 8), testkit.Random(rng, "model.layers.1.mlp.gate.weight", dtype.BF16, 1, 2, 8),
	}
	for _, module := range quantised {
		codes := testkit.Tensor{Name: module + ".weight", DType: dtype.F8E4M3, Shape: []uint64{8, 8}, Data: make([]byte, 64)}
		for i := range codes.Data {
			codes.Data[i] = byte(rng.IntN(0x70))
		}
		tensors = append(tensors, codes, testkit.Random(rng, module+".weight_scale", dtype.F32, 0.01, 1))
	}
	testkit.Write(t, filepath.Join(dir, "model.safetensors"), testkit.Encode(map[string]string{"format": "pt"}, tensors...))
	text := `{"model_type":"deepseek_v3"}`
	if config != "" {
		text = `{"model_type":"deepseek_v3","quantization_config":{` + config + `}}`
	}
	testkit.Write(t, filepath.Join(dir, "config.json"), []byte(text))
	if file != "" {
		testkit.Write(t, filepath.Join(dir, "hf_quant_config.json"), []byte(file))
	}
	return dir
}

// listIn reads a list of an output's configuration, or of ModelOpt's file.
func listIn(keys ...string) func(t *testing.T, out string) []string {
	return func(t *testing.T, out string) (list []string) {
		t.Helper()
		name := filepath.Join(out, "config.json")
		if _, err := os.Stat(filepath.Join(out, "hf_quant_config.json")); err == nil {
			name = filepath.Join(out, "hf_quant_config.json")
		}
		at := any(readJSON[map[string]any](t, name))
		for _, key := range keys {
			object, ok := at.(map[string]any)
			if !ok {
				t.Fatalf("%s has no %q", name, keys)
			}
			at = object[key]
		}
		items, _ := at.([]any)
		for _, item := range items {
			list = append(list, item.(string))
		}
		return list
	}
}
