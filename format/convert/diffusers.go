package convert

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/architecture"
)

// Diffusers returns the dialect of diffusers, in each of its generations: attention processors
// (….attn1.processor.to_q_lora.down.weight), layers (….to_q.lora.down.weight) with text encoders
// (….q_proj.lora_linear_layer.down.weight), and PEFT's layers (….to_q.lora_A.weight) with or
// without the configuration in the header. Names begin with the component (unet., transformer.,
// text_encoder.), or with a module of a denoiser. Without an alpha and a configuration the scale is
// 1. A new file has PEFT's keys and the configuration in the header.
func Diffusers() Dialect { return diffusers }

var diffusers = &pairDialect{
	readOnly: readOnly{"diffusers"}, owns: isDiffusers, inHeader: diffusersHeader,
	writing: writeDiffusers,
}

// diffusersMetadata is the metadata entry in which diffusers stores PEFT's configuration of every
// component.
const diffusersMetadata = "lora_adapter_metadata"

func diffusersHeader(metadata map[string]string) string {
	if metadata[diffusersMetadata] != "" {
		return diffusersMetadata + " in the header"
	}
	return ""
}

// isDiffusers: an ending that only diffusers had, or PEFT's ending behind the name of a component
// or of a module in a denoiser. Elsewhere PEFT's endings say nothing of the scale.
func isDiffusers(k *pairKey) bool {
	switch {
	case isComfyUIs(k):
		return false
	case strings.HasPrefix(k.tail, "lora.") || strings.HasPrefix(k.tail, "lora_linear_layer.") ||
		k.tail == processorTail:
		return true
	case !strings.HasPrefix(k.tail, "lora_A") && !strings.HasPrefix(k.tail, "lora_B"):
		return false
	}
	return isOfDiffusion(k.module)
}

// isOfDiffusion reports whether a module is of an image or video model, by its name.
func isOfDiffusion(module string) bool {
	first, rest, _ := strings.Cut(module, ".")
	second, _, _ := strings.Cut(rest, ".")
	switch first {
	case "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer_2", "prior":
		return rest != ""
	case "transformer":
		return rest != "" && !slices.Contains(languageParts, second)
	}
	_, ofDiffusers := namespaces(module)
	return slices.Contains(denoiserParts, first) || ofDiffusers
}

// namespaces reports whether the tables of the architectures know a module by a name that only its
// authors use, or by one that diffusers uses. Both are false for a name that diffusers uses in one
// architecture and only the authors in another: img_in is native in Flux, and the one name in
// Qwen-Image.
func namespaces(module string) (native, ofDiffusers bool) {
	for _, t := range architecture.Tables() {
		parts, ok := t.Parts(module)
		switch {
		case !ok:
		case parts[0].Module == module:
			ofDiffusers = true
		default:
			native = true
		}
	}
	return native && !ofDiffusers, ofDiffusers && !native
}

// languageParts are modules in the transformer of language models such as GPT-2 and ChatGLM.
var languageParts = []string{
	"h", "wte", "wpe", "word_embeddings", "encoder", "layer", "embedding", "output_layer",
}

// denoiserParts are the modules that hold most layers of denoisers.
var denoiserParts = []string{
	"down_blocks", "mid_block", "up_blocks", // U-Nets
	"transformer_blocks", "single_transformer_blocks", // transformers
}
