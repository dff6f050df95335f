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
		names: naming.Flat, tail: kohyaTail, shape: kohyaShape, alphas: true, needsAlphas: true,
		features: kohyaFeatures,
		metadata: func(ctx context.Context, f *pairFile, source map[string]string) (map[string]string, error) {
			return kohyaMetadata(ctx, source, f.plainTensors(), f.reader(ctx))
		},
	},
}

// kohyaFeatures are those that files with the endings of kohya and LyCORIS express.
var kohyaFeatures = []format.Feature{
	format.FeatureConvolution, format.FeatureDifference, format.FeatureDoRA, format.FeatureHadamard,
	format.FeatureInputMagnitude, format.FeatureKronecker, format.FeatureScaling, format.FeatureTucker,
}

// kohyaTail returns the end of a key in the files of kohya, LyCORIS and ComfyUI; "" if they have
// none for the role.
func kohyaTail(kind format.Kind, role format.Role) string {
	switch role {
	case format.RoleMagnitude, format.RoleInputMagnitude:
		return "dora_scale"
	case format.RoleVector:
		return "weight"
	case format.RoleAxis:
		return "on_input"
	case roleDiff:
		return "diff"
	case roleDiffBias:
		return "diff_b"
	}
	if isPlain := kind == format.Linear || kind == format.Conv; isPlain && role == roleA {
		return "lora_down.weight"
	} else if isPlain && role == roleB {
		return "lora_up.weight"
	}
	for _, t := range lyCORISTails {
		if t.kind == kind && t.role == role {
			return t.tail
		}
	}
	return ""
}

// kohyaShape returns the shape in which a factor is stored. Magnitudes have as many dimensions as
// the weight; those of outputs are m×1×…, those of inputs 1×n×….
func kohyaShape(l *newLayer, role format.Role, shape []uint64) []uint64 {
	if role != format.RoleMagnitude || len(shape) > 1 && shape[0] == product(shape) {
		return shape
	}
	n := 2
	if a := l.factors[format.RoleA]; a != nil {
		n = max(n, len(a.shape))
	}
	column := []uint64{product(shape)}
	for len(column) < n {
		column = append(column, 1)
	}
	return column
}

// isKohyas: a flat name, or a factor under kohya's name, or a method of LyCORIS that no other
// program uses.
func isKohyas(k *pairKey) bool {
	if isFlat(k.module) {
		return true
	}
	for _, tail := range []string{"lora_down.", "lora_up.", "lokr_", "hada_", "dora_scale", "on_input", "diff", "w_norm", "b_norm"} {
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
