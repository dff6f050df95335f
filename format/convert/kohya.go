package convert

import (
	"context"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// Kohya returns the dialect of kohya's sd-scripts and musubi-tuner, of OneTrainer, LyCORIS and all
// programs that follow them. The names of modules are flat: every dot is an underscore, and the
// model's part is a prefix, as in lora_unet_mid_block_attentions_0_proj_in.lora_down.weight. The
// factors are lora_down (A) and lora_up (B). Each module may have an alpha of its own; without one,
// alpha is the rank. A new file has an alpha for every module.
func Kohya() Dialect { return kohya }

var kohya = &pairDialect{
	readOnly: readOnly{"kohya"}, owns: isKohyas, inHeader: kohyaHeader, modules: dotted,
	writing: &pairWriting{
		names: naming.Flat, tail: kohyaTail, alphas: true, needsAlphas: true,
		features: []format.Feature{format.FeatureConvolution},
		metadata: func(ctx context.Context, f *pairFile, source map[string]string) (map[string]string, error) {
			return kohyaMetadata(ctx, source, f.plainTensors(), f.reader(ctx))
		},
	},
}

// kohyaTail returns the end of a key.
func kohyaTail(kind format.Kind, role format.Role) string {
	return kohyaTails[kind][role]
}

// kohyaTails has the ends of keys in the files of kohya, LyCORIS and ComfyUI.
var kohyaTails = map[format.Kind]map[format.Role]string{
	format.Linear: {format.RoleA: "lora_down.weight", format.RoleB: "lora_up.weight"},
	format.Conv:   {format.RoleA: "lora_down.weight", format.RoleB: "lora_up.weight"},
}

// isKohyas: a flat name, or a factor under kohya's name, or a method of LyCORIS that no other
// program uses.
func isKohyas(k *pairKey) bool {
	if isFlat(k.module) {
		return true
	}
	for _, tail := range []string{"lora_down.", "lora_up.", "lokr_", "hada_", "dora_scale"} {
		if strings.HasPrefix(k.tail, tail) {
			return true
		}
	}
	return false
}

// kohyaHeader names the entry in which sd-scripts and LyCORIS say which network they trained. An
// entry that cannot be a module's name says nothing.
func kohyaHeader(metadata map[string]string) string {
	if module := metadata["ss_network_module"]; checkName(module) == nil {
		return "ss_network_module = " + module + " in the header"
	}
	return ""
}
