package resolve

import (
	"sort"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// recomputed are the features that Reading.RecomputeResidual allows.
var recomputed = map[string]bool{format.FeaturePiSSA: true, format.FeatureOLoRA: true}

// applied are the features that this version applies.
var applied = map[string]bool{
	format.FeatureBDLoRA: true, format.FeatureConvolution: true, format.FeatureDoRA: true, format.FeatureExperts: true, format.FeatureLoRABias: true,
	format.FeatureMergedLinear: true, format.FeatureMonteCLoRA: true, format.FeatureMultiheadAttention: true, format.FeatureQALoRA: true,
	format.FeatureVeLoRA: true, format.FeatureWeightTying: true,
}

// explanation says why a feature keeps an adapter from being merged, and what its user can do.
type explanation struct{ why, hint string }

// explanations has an entry for every feature of package format that is not applied.
var explanations = map[string]explanation{
	format.FeatureALoRA:            {"it is an aLoRA (alora_invocation_tokens), active only after its invocation tokens: no single weight is equal to it", "serve it unmerged"},
	format.FeatureArrow:            {"it is routed per token between adapters (arrow_config): no single weight is equal to it", "serve it unmerged"},
	format.FeatureConfigField:      {"its configuration sets a field that this version does not know and that may change the result", "if the field is harmless, remove it from adapter_config.json; else try a newer loratool"},
	format.FeatureCorDA:            {"it was initialised with CorDA (corda), which changed the base by data that are not in the adapter", "save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"},
	format.FeatureExpertFactors:    {"a layer has factors of three dimensions, one for each expert, which this version does not merge", "convert it to PEFT's target_parameters, or to a module for each expert, with the tool that made it"},
	format.FeatureEmptyTensor:      {"a tensor is empty, as DeepSpeed ZeRO-3 leaves parameters that it has not gathered", "save again with stage3_gather_16bit_weights_on_model_save, or gather the checkpoint with zero_to_fp32.py first"},
	format.FeatureFactorShape:      {"a tensor of a layer does not have the shape that goes with the others", "the file is damaged, or not what its keys say"},
	format.FeatureKaSA:             {"it is KaSA (kasa_config), which truncated the base before training", "merge with PEFT"},
	format.FeatureLayerReplication: {"it was trained on a base with repeated layers (layer_replication)", "build that base first, with its layers repeated and renumbered, and merge into it"},
	format.FeatureLoftQ:            {"it was initialised with LoftQ (loftq), so it belongs to a quantised base with changed weights", "merge it into the base that LoftQ wrote"},
	format.FeatureLoRAGA:           {"it was initialised with LoRA-GA (lora_ga), which changed the base by gradients that are not in the adapter", "save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"},
	format.FeatureMissingFactor:    {"a factor is missing", "the file was not saved whole; save the adapter again"},
	format.FeatureOLoRA:            {"it was initialised with OLoRA (olora), which subtracted the first factors from the base", "with the original base, --recompute-residual takes it out again; or save it with path_initial_model_for_weight_conversion"},
	format.FeaturePattern:          {"a key of rank_pattern or alpha_pattern is a regular expression that cannot be evaluated here", "write it without inline flags, or as one key for each module"},
	format.FeaturePEFTType:         {"it is not LoRA", "merge with PEFT"},
	format.FeaturePiSSA:            {"it was initialised with PiSSA (pissa), which subtracted the principal part from the base", "with the original base, --recompute-residual takes it out again; or save it with path_initial_model_for_weight_conversion"},
	format.FeaturePiSSANiter:       {"it was initialised with a randomised PiSSA (pissa_niter), which changed the base in a way that cannot be repeated", "save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"},
	format.FeatureRankMismatch:     {"the rank in the file and the rank in the configuration differ, and with it the scale is not known", "use the adapter_config.json that was saved with these weights"},
	format.FeatureSeveralNames:     {"its keys belong to several adapters", "save each one with save_pretrained"},
	format.FeatureStrayTensor:      {"a tensor of the base lies in the file, and nothing in the configuration says that the adapter saves it (modules_to_save, bias)", "PEFT would not have written it; if it was trained, name its module in modules_to_save; else save the adapter again without it. Of a whole model that was tuned, loratool extract makes an adapter"},
	format.FeatureTokenIndices:     {"the rows of trained tokens cannot be placed (trainable_token_indices)", "use the adapter_config.json that was saved with these weights"},
	format.FeatureTwice:            {"a factor is there twice, with the adapter's name in its key and without", "keep one of the two in the file"},
	format.FeatureUndo:             {"it is the undo record of a merge, not an adapter", "loratool unmerge takes it by --undo"},
	format.FeatureUnknownTensor:    {"a tensor has no known meaning", "if a newer PEFT wrote it, try a newer loratool"},
}

// Refusals lists, in words, why the adapter cannot be merged by this version: one entry per feature, empty for an adapter
// that can. The hint belongs to the first.
func Refusals(a *format.Adapter) (why []string, hint string) {
	where := make(map[string][]string)
	var features []string
	for _, r := range a.Requires {
		if applied[r.Feature] {
			continue
		}
		if where[r.Feature] == nil {
			features = append(features, r.Feature)
		}
		where[r.Feature] = append(where[r.Feature], r.Where)
	}
	sort.SliceStable(features, func(i, j int) bool { return rank(features[i]) < rank(features[j]) })
	for _, f := range features {
		e, known := explanations[f]
		if !known {
			e = explanation{"it requires the feature " + f, "try a newer loratool"}
		}
		if f == format.FeaturePEFTType {
			e = explainType(where[f][0])
			where[f] = nil
		}
		if at := strings.Join(where[f], ""); at != "" {
			e.why += ": " + fault.List(where[f], 3)
		}
		why = append(why, e.why)
		if hint == "" {
			hint = e.hint
		}
	}
	return why, hint
}

// rank sorts the features that explain others to the front: a method of its own explains the tensors that nobody knows.
func rank(feature string) int {
	switch feature {
	case format.FeaturePEFTType:
		return 0
	case format.FeatureUnknownTensor, format.FeatureMissingFactor, format.FeatureRankMismatch, format.FeatureFactorShape:
		return 2
	}
	return 1
}
