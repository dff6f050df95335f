package convert

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// Megatron returns the dialect of Megatron-Bridge and NeMo, as their own checkpoints name adapters:
// MODULE.adapter.linear_in.weight and linear_out.weight, and below adapter_layer in NeMo 1. The
// modules are those of Megatron, whose linear_qkv has q, k and v in turns, group by group. Merge
// finds them in models of transformers (spec/NAMES.md, section 3). The file says no scale: it is
// Options.Alpha/r, or Options.Scale. It is read only.
func Megatron() Dialect { return megatron }

var megatron = &pairDialect{
	readOnly: readOnly{"megatron"}, owns: func(k *pairKey) bool { return k.tail == megatronTail }, needsScale: true,
	ofLanguage: true,
	hintScale: "set Options.Alpha=ALPHA, the alpha (lora_alpha) of the training, which is divided by the rank, " +
		"or Options.Scale=SCALE",
}

// megatronTail stands for the endings of Megatron's adapters.
const megatronTail = "adapter"

// megatronFactors are the linear layers of an adapter.
var megatronFactors = map[string]format.Role{"linear_in": roleA, "linear_out": roleB}

// canonicalModules are the modules that CanonicalLoRA adapts each by itself, below the one that
// fuses them. Its factors have the rows of the modules of transformers.
var canonicalModules = map[string]string{
	"adapter_q": "self_attn.q_proj", "adapter_k": "self_attn.k_proj", "adapter_v": "self_attn.v_proj",
	"adapter_gate": "mlp.gate_proj", "adapter_up": "mlp.up_proj",
}

// nemoModules are the modules that the adapters of NeMo 1 belong to.
var nemoModules = map[string]string{
	"lora_kqv_adapter": "linear_qkv", "lora_dense_attention_adapter": "linear_proj",
	"lora_hto4h_adapter": "linear_fc1", "lora_4htoh_adapter": "linear_fc2",
}

// nemoLayers is what stands before the number of a layer in NeMo 1.
var nemoLayers = []string{"model", "language_model", "encoder", "layers"}

// parseMegatron parses a key of an adapter of Megatron-Bridge or NeMo.
func parseMegatron(parts []string) (k pairKey, ok bool) {
	n := len(parts)
	if n < 4 || parts[n-1] != "weight" {
		return k, false
	}
	if k.role, ok = megatronFactors[parts[n-2]]; !ok {
		return k, false
	}
	path := slices.Clone(parts[:n-2])
	last := path[len(path)-1]
	switch before := path[:len(path)-1]; {
	case last == "adapter":
		path = before
	case len(before) > 2 && before[len(before)-1] == "adapter" && canonicalModules[last] != "":
		path = append(before[:len(before)-3], canonicalModules[last]) // for linear_qkv and its parent
	case before[len(before)-1] == "adapter_layer" && nemoModules[last] != "":
		path = append(before[:len(before)-1], nemoModules[last])
		if len(path) > len(nemoLayers) && slices.Equal(path[:len(nemoLayers)], nemoLayers) {
			path = append([]string{"decoder", "layers"}, path[len(nemoLayers):]...)
		}
	default:
		return k, false
	}
	k.module, k.tail = strings.Join(path, "."), megatronTail
	return k, true
}

// refuseMegatron refuses to write an adapter in another dialect of language models under the names
// of Megatron, which programs for transformers do not know: only merge translates them, by the
// base.
func refuseMegatron(a *format.Adapter) error {
	if a.Dialect != megatron.name {
		return nil
	}
	return fault.New(fault.Unsupported, "the modules have Megatron's names, and only a merge translates them").
		WithHint("merge it, and extract an adapter from the base and the result; or keep it as a .lora file")
}
