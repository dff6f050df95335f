package resolve

import (
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/peft"
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
	format.FeatureOLoRA:            {"it was initialised with OLoRA (olora), which subtracted the first factors from the base", "with the original base, Options.RecomputeResidual takes it out again; or save it with path_initial_model_for_weight_conversion"},
	format.FeaturePattern:          {"a key of rank_pattern or alpha_pattern is a regular expression that cannot be evaluated here", "write it without inline flags, or as one key for each module"},
	format.FeaturePEFTType:         {"it is not LoRA", "merge with PEFT"},
	format.FeaturePiSSA:            {"it was initialised with PiSSA (pissa), which subtracted the principal part from the base", "with the original base, Options.RecomputeResidual takes it out again; or save it with path_initial_model_for_weight_conversion"},
	format.FeaturePiSSANiter:       {"it was initialised with a randomised PiSSA (pissa_niter), which changed the base in a way that cannot be repeated", "save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"},
	format.FeatureRankMismatch:     {"the rank in the file and the rank in the configuration differ, and with it the scale is not known", "use the adapter_config.json that was saved with these weights"},
	format.FeatureSeveralNames:     {"its keys belong to several adapters", "save each one with save_pretrained"},
	format.FeatureStrayTensor:      {"a tensor of the base lies in the file, and nothing in the configuration says that the adapter saves it (modules_to_save, bias)", "if it was trained, name its module in modules_to_save, or set bias to \"all\" for a bias; else save the adapter again without it. To make an adapter of a whole tuned model, use rank.OpenExtraction"},
	format.FeatureTokenIndices:     {"the rows of trained tokens cannot be placed (trainable_token_indices)", "use the adapter_config.json that was saved with these weights"},
	format.FeatureTwice:            {"a factor is there twice, with the adapter's name in its key and without", "keep one of the two in the file"},
	format.FeatureUndo:             {"it is the undo record of a merge, not an adapter", "merge.OpenUnmerge takes it by Removal.Records"},
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

// Verdict is what merge does with something that an adapter has.
type Verdict string

// The verdicts.
const (
	Applied     Verdict = "applied"
	NeedsOption Verdict = "needs an option"
	Refused     Verdict = "refused"
)

// Support is a line of the table of what merge does.
type Support struct {
	Verdict Verdict
	What    string // what the adapter has; of a refusal with the reason
	Option  string // the one that is needed, such as Options.AnyBase
}

// ordinary is what every version applies, and no adapter has to require.
var ordinary = []string{
	"LoRA and rsLoRA on linear layers, GPT-2's Conv1D and embeddings",
	"rank_pattern and alpha_pattern, as the release of PEFT that trained the adapter reads them; look-around and back references in their keys",
	"bias = all or lora_only, modules_to_save, trainable_token_indices",
	"modules under the names of transformers 4 or 5: " + strings.Join(naming.MovedModels(), ", "),
	"keys with adapter names, torch.compile and FSDP wrappers, with or without prefixes",
	"safetensors, pickles of torch.save (adapter_model.bin, .pt), .lora files, sub-directories of named adapters",
	"plain, sharded and mixed-dtype bases; a quantised tensor that is not adapted is carried",
	"initialised by gaussian, orthogonal, EVA or MiCA, which leave the base alone",
}

// titles say what an adapter with a feature is, for those that can be applied.
var titles = map[string]string{
	format.FeatureBDLoRA:             "BD-LoRA (use_bdlora): block-diagonal factors, stored compact",
	format.FeatureConvolution:        "convolutions of one, two and three dimensions",
	format.FeatureDoRA:               "DoRA (use_dora), or magnitudes in the file",
	format.FeatureExperts:            "stacked weights of experts (target_parameters) as every release of PEFT lays them out, and experts one by one, on bases of either kind",
	format.FeatureLoRABias:           "lora_bias",
	format.FeatureMergedLinear:       "MergedLinear of PEFT before 0.3 (enable_lora)",
	format.FeatureMonteCLoRA:         "MonteCLoRA (monteclora_config)",
	format.FeatureMultiheadAttention: "torch.nn.MultiheadAttention, out_proj once",
	format.FeatureOLoRA:              "OLoRA on the original base",
	format.FeaturePiSSA:              "PiSSA on the original base",
	format.FeatureQALoRA:             "QA-LoRA (use_qalora)",
	format.FeatureVeLoRA:             "VeLoRA (velora_config)",
	format.FeatureWeightTying:        "ensure_weight_tying: LoRA on an embedding that is tied to the head",
}

// byOption is what is done when it is asked for.
var byOption = []Support{
	{NeedsOption, "NaN or infinity in a factor, or a weight that becomes infinite", "Options.AllowNonFinite"},
	{NeedsOption, "an adapter that remembers another base", "Options.AnyBase"},
	{NeedsOption, "an adapter that the base has been merged with already", "Options.Again"},
	{NeedsOption, "a change of one of two tied ends, embedding and head", "Options.Tied"},
	{NeedsOption, "a vocabulary that has grown", "Options.GrowVocabulary"},
	{NeedsOption, "a saved head that the base lacks, or has for another number of classes", "Options.AddTensors"},
	{NeedsOption, titles[format.FeatureOLoRA], "Options.RecomputeResidual"},
	{NeedsOption, titles[format.FeaturePiSSA], "Options.RecomputeResidual"},
	{NeedsOption, "square stacked experts, where neither other shapes nor the adapter tell their orientation", "Options.ExpertInput"},
	{NeedsOption, "square Conv1D weights (fan_in_fan_out), where the base has neither a config.json nor other weights that tell", "Options.LinearInput"},
	{NeedsOption, "lora_B of stacked experts with one expert after the other, as unsloth wrote it", "Options.ExpertsSlowest"},
	{NeedsOption, "out_proj of torch.nn.MultiheadAttention twice, as PEFT up to 0.21 has it", "Options.OutProjTwice"},
}

// besideFeatures are the refusals that depend on the base.
var besideFeatures = []string{
	"a convolution in groups: the weight has no place for the update",
	"an adapted tensor of the base is quantised, or stored in less than 16 bits",
	"the base lacks a tensor that the adapter changes, or has it in another shape",
}

// Supports lists what merge does with what an adapter can have: the table of the README and of inspect --help, made of the data
// that Refusals decides by.
func Supports() []Support {
	var all []Support
	for _, what := range ordinary {
		all = append(all, Support{Verdict: Applied, What: what})
	}
	for _, f := range slices.Sorted(maps.Keys(applied)) {
		what := titles[f]
		if what == "" {
			what = f
		}
		all = append(all, Support{Verdict: Applied, What: what})
	}
	all = append(all, byOption...)
	for _, f := range slices.Sorted(maps.Keys(explanations)) {
		if applied[f] || recomputed[f] {
			continue
		}
		what := explanations[f].why
		if f == format.FeaturePEFTType {
			what = "it is of another method of PEFT: " + typeList()
		}
		all = append(all, Support{Verdict: Refused, What: what})
	}
	for _, what := range besideFeatures {
		all = append(all, Support{Verdict: Refused, What: what})
	}
	return all
}

// typeList names the methods that are not LoRA.
func typeList() string {
	var names []string
	for _, t := range peft.Methods {
		names = append(names, t.Name)
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return strings.Join(names, ", ")
}

// Explain says in words what merge does with what an adapter has beyond the plain formula: a line for every feature that it applies, or
// applies by an option.
func Explain(a *format.Adapter) []string {
	where := make(map[string][]string)
	for _, q := range a.Requires {
		where[q.Feature] = append(where[q.Feature], q.Where)
	}
	var lines []string
	for _, f := range slices.Sorted(maps.Keys(where)) {
		switch {
		case recomputed[f]:
			lines = append(lines, titles[f]+": with Options.RecomputeResidual")
		case !applied[f]:
		case f == format.FeatureExperts:
			lines = append(lines, "experts "+fault.List(where[f], 4)+": "+expertsText(a))
		case f == format.FeatureMultiheadAttention:
			lines = append(lines, titles[f]+"; PEFT adds its update twice, as Options.OutProjTwice does")
		default:
			lines = append(lines, titles[f])
		}
	}
	return lines
}

// expertsText says how stacked experts of an adapter are read.
func expertsText(a *format.Adapter) string {
	text := "the shapes tell which dimension of an expert lora_A reads"
	said := make(map[string]bool)
	for i := range a.Layers {
		said[reads[a.Layers[i].Kind]] = true
	}
	delete(said, "")
	if len(said) == 0 {
		return text + ", and Options.ExpertInput where all experts are square"
	}
	return text + ", and of square ones its " + strings.Join(slices.Sorted(maps.Keys(said)), " or its ")
}

// explainType says what an adapter of another method is, and what can be done with it.
func explainType(value string) explanation {
	t, known := peft.Methods[value]
	switch {
	case !known:
		return explanation{"it is " + value + ", not LoRA, and no method of PEFT up to 0.21", "if a newer PEFT made it, merge with that"}
	case t.NoWeight:
		return explanation{"it is " + t.Name + ", not LoRA: it adds to what the model reads or computes, and nothing to its weights", "use it with PEFT, unmerged"}
	case t.ToLoRA:
		return explanation{"it is " + t.Name + ", not LoRA", "merge with PEFT, or convert it to LoRA with save_as_lora of PEFT from 0.19 on"}
	}
	return explanation{"it is " + t.Name + ", not LoRA", "merge with PEFT"}
}
