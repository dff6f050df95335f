package convert

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/naming"
)

// ComfyUI returns the dialect of ComfyUI and of the adapters that authors of models publish: the
// names of the authors' own code, with diffusion_model. or text_encoders. in front, or bare as
// those of Black Forest Labs. The factors are lora_A and lora_B, or lora_down and lora_up. Without
// an alpha the scale is 1. Tensors that replace or reshape those of the base are carried, and merge
// refuses them by name. A new file has lora_down and lora_up, and an alpha for each module unless
// all scales are 1.
func ComfyUI() Dialect { return comfyUI }

var comfyUI = &pairDialect{
	readOnly: readOnly{"comfyui"}, owns: isComfyUIs,
	writing: &pairWriting{
		names: naming.OfComfyUI, tail: kohyaTail, shape: kohyaShape, alphas: true,
		features: kohyaFeatures, metadata: comfyMetadata,
	},
}

// comfyMetadata keeps the metadata of the source, but for the scales of other dialects.
func comfyMetadata(
	ctx context.Context, f *pairFile, source map[string]string,
) (map[string]string, error) {
	all := maps.Clone(source)
	delete(all, diffusersMetadata)
	delete(all, headerAlpha)
	return renewHashes(ctx, all, f.plainTensors(), f.reader(ctx))
}

// comfyPrefixes begin the names of a checkpoint in ComfyUI.
var comfyPrefixes = []string{"diffusion_model.", "model.diffusion_model.", "text_encoders."}

// nativeParts are the modules that hold most layers of transformers, as their authors name them.
var nativeParts = []string{"double_blocks", "single_blocks", "joint_blocks", "blocks"}

// isComfyUIs: a name with a prefix of ComfyUI, or an authors' name with PEFT's endings.
func isComfyUIs(k *pairKey) bool {
	begins := func(prefix string) bool { return strings.HasPrefix(k.module, prefix) }
	if slices.ContainsFunc(comfyPrefixes, begins) {
		return true
	}
	first, _, _ := strings.Cut(k.module, ".")
	isPEFTs := strings.HasPrefix(k.tail, "lora_A") || strings.HasPrefix(k.tail, "lora_B")
	if !isPEFTs {
		return false
	}
	native, _ := namespaces(k.module)
	return native || slices.Contains(nativeParts, first)
}
