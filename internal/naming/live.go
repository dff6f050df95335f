package naming

import (
	"slices"
	"strconv"
	"strings"
)

// A model in memory can name its modules differently from the tensors on disk, and PEFT only knows
// the names in memory. This file uses those of transformers 5, the newer ones in moved.go.

// Live is a parameter of a model in memory and its tensors in the checkpoint: one tensor, or the
// weights of single experts in the order in which the parameter stacks them.
type Live struct {
	Name  string
	Parts []string
	Shape []uint64
}

// ShapeOf returns the shape of a tensor in the checkpoint.
type ShapeOf func(name string) []uint64

// movedTypes maps model types to the tables of moved.go.
var movedTypes = map[string]string{
	"mixtral": "Mixtral and MiniMax", "minimax": "Mixtral and MiniMax", "phimoe": "PhiMoE",
	"granitemoe": "Granite MoE", "granitemoeshared": "Granite MoE", "granitemoehybrid": "Granite MoE",
	"llava": "LLaVA and its kin", "vipllava": "LLaVA and its kin", "paligemma": "LLaVA and its kin",
	"gemma3": "LLaVA and its kin", "mistral3": "LLaVA and its kin", "aya_vision": "LLaVA and its kin",
	"got_ocr2": "LLaVA and its kin", "internvl": "LLaVA and its kin", "llava_next": "LLaVA and its kin",
	"llava_next_video": "LLaVA and its kin", "llava_onevision": "LLaVA and its kin", "mllama": "Mllama",
	"qwen2_vl": "Qwen2-VL and its kin", "qwen2_5_vl": "Qwen2-VL and its kin",
	"vit": "ViT and its kin", "deit": "ViT and its kin", "vit_msn": "ViT and its kin",
	"dinov2": "DINOv2", "dinov2_with_registers": "DINOv2", "swin": "Swin", "segformer": "SegFormer", "gpt_neox": "GPT-NeoX",
}

// stackedTypes are the model types that store experts one by one on disk and stack them in memory.
var stackedTypes = set("mixtral", "minimax", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next",
	"qwen3_5_moe_text", "olmoe", "flex_olmo", "deepseek_v2", "deepseek_v3", "dots1", "glm4_moe")

// trunkPrefix is the prefix that a model with a head has in memory, and checkpoints on the hub
// lack.
var trunkPrefix = map[string]string{"gpt2": "transformer.", "bloom": "transformer."}

// halfPrefix is the prefix of a checkpoint of one half of a model, before the names in memory.
var halfPrefix = map[string]string{
	"clip_text_model": "text_model.", "clip_vision_model": "vision_model.",
	"siglip_text_model": "text_model.", "siglip_vision_model": "vision_model.",
}

// LiveNames lists the parameters in memory of a model of this type, sorted by name, from the names
// and shapes of its tensors on disk.
func LiveNames(names []string, shapeOf ShapeOf, modelType string, architectures []string) []Live {
	rename := liveRename(names, modelType, architectures)
	all := make([]Live, 0, len(names))
	stacks := make(map[string]bool)
	for _, name := range names {
		live := rename(StripWrappers(name))
		parameter, parts := stackOf(live, modelType)
		if parts == nil {
			all = append(all, Live{Name: live, Parts: []string{name}, Shape: shapeOf(name)})
			continue
		}
		if !stacks[parameter] {
			stacks[parameter] = true
			all = append(all, stackUp(names, rename, shapeOf, parameter, parts)...)
		}
	}
	return all
}

// liveRename returns the function from the name of a tensor to the name of its parameter in memory.
func liveRename(names []string, modelType string, architectures []string) func(string) string {
	var table *move
	for _, m := range moves {
		if m.models != "" && m.models == movedTypes[modelType] {
			isOlder := m.newer[len(m.newer)-1].old.MatchString
			// The later of two layouts in the list is the more specific one: it wins if its names
			// occur.
			if table == nil || slices.ContainsFunc(names, isOlder) {
				table = m
			}
		}
	}
	cut := halfPrefix[modelType]
	add := ""
	prefix := trunkPrefix[modelType]
	hasPrefix := func(name string) bool { return strings.HasPrefix(StripWrappers(name), prefix) }
	if prefix != "" && HasHead(architectures) && !slices.ContainsFunc(names, hasPrefix) {
		add = prefix
	}
	return func(name string) string {
		if table != nil {
			name = table.apply(name, true)
		}
		if add != "" && !IsHead(Module(name)) {
			return add + name
		}
		return strings.TrimPrefix(name, cut)
	}
}

// HasHead reports whether one of the classes puts a head on a trunk.
func HasHead(architectures []string) bool {
	return slices.ContainsFunc(architectures, func(a string) bool {
		return strings.Contains(a, "For") || strings.Contains(a, "LMHead")
	})
}

// stackOf returns the parameter in memory that stacks the weight of this expert, and its parts per
// expert.
func stackOf(name, modelType string) (parameter string, parts []string) {
	module, isWeight := strings.CutSuffix(name, ".weight")
	if !isWeight || !stackedTypes[modelType] {
		return "", nil
	}
	parameter, _, part, _, ok := ExpertPart(module)
	if !ok {
		return "", nil
	}
	for _, style := range expertParts[Leaf(parameter)] {
		if style[part] == Leaf(module) {
			return parameter, style
		}
	}
	return "", nil
}

// stackUp gathers the weights of a stacked parameter. If one is missing or has another shape, it
// leaves them as they are.
func stackUp(names []string, rename func(string) string, shapeOf ShapeOf, parameter string,
	parts []string) []Live {
	onDisk := make(map[string]string)
	var alone []Live
	for _, name := range names {
		live := rename(StripWrappers(name))
		if strings.HasPrefix(live, Module(parameter)+".") && slices.Contains(parts, Leaf(Module(live))) {
			onDisk[live] = name
			alone = append(alone, Live{Name: live, Parts: []string{name}, Shape: shapeOf(name)})
		}
	}
	stack := Live{Name: parameter}
	first := shapeOf(alone[0].Parts[0])
	for expert := 0; len(stack.Parts) < len(alone); expert++ {
		for _, part := range parts {
			name, ok := onDisk[Module(parameter)+"."+strconv.Itoa(expert)+"."+part+".weight"]
			if !ok || len(first) != 2 || !slices.Equal(shapeOf(name), first) {
				return alone
			}
			stack.Parts = append(stack.Parts, name)
		}
	}
	n := uint64(len(parts))
	stack.Shape = []uint64{uint64(len(stack.Parts)) / n, first[0] * n, first[1]}
	return []Live{stack}
}

// TiedModules lists the modules in memory that share the weight of a tied input embedding, given
// the path of the embedding's module. ok is false if it does not know them.
func TiedModules(embedding, modelType string, architectures []string) (modules []string, ok bool) {
	prefix := ""
	if strings.HasPrefix(embedding, "model.") {
		prefix = "model."
	}
	switch modelType {
	case "bert", "deberta", "deberta-v2":
		return []string{"cls.predictions.decoder"}, true
	case "albert":
		return []string{"predictions.decoder"}, true
	case "roberta", "xlm-roberta", "camembert":
		return []string{"lm_head.decoder"}, true
	case "distilbert":
		return []string{"vocab_projector"}, true
	case "electra":
		return []string{"generator_lm_head"}, true
	case "whisper":
		return []string{"proj_out"}, true
	case "t5", "mt5", "bart", "mbart":
		return []string{prefix + "encoder.embed_tokens", prefix + "decoder.embed_tokens", "lm_head"}, true
	}
	// Any other causal model calls its head lm_head. Models with an encoder vary.
	for _, a := range architectures {
		isCausal := strings.HasSuffix(a, "ForCausalLM") || strings.HasSuffix(a, "LMHeadModel")
		if isCausal || strings.HasSuffix(a, "ForConditionalGeneration") && Leaf(embedding) == "embed_tokens" {
			return []string{"lm_head"}, true
		}
	}
	return nil, false
}
