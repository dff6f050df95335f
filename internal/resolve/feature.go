package resolve

import (
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/peft"
)

// Verdict says how merge treats a feature of an adapter.
type Verdict string

// The verdicts.
const (
	Applied     Verdict = "applied"
	NeedsOption Verdict = "needs an option"
	Refused     Verdict = "refused"
)

// feature is a property that an adapter can have, with merge's verdict.
type feature struct {
	name    format.Feature // as an adapter requires it (package format); "" if adapters do not announce it
	verdict Verdict
	title   string // describes the feature to users
	option  string // the option that NeedsOption means, such as Options.AnyBase
	why     string // why merge refuses it, to complete "the adapter cannot be merged: "
	remedy  string // the user's next step
}

// features are all that this version knows, in the order of the table that users see. An adapter
// that requires another one is refused.
var features = []feature{
	{verdict: Applied, title: "LoRA and rsLoRA on linear layers, GPT-2's Conv1D and embeddings"},
	{verdict: Applied, title: "rank_pattern and alpha_pattern, as the release of PEFT that trained the adapter reads them; look-around and back references in their keys"},
	{verdict: Applied, title: "bias = all or lora_only, modules_to_save, trainable_token_indices"},
	{verdict: Applied, title: "modules under the names of transformers 4 or 5: " + strings.Join(naming.MovedModels(), ", ")},
	{verdict: Applied, title: "projections apart on bases that fuse them, and the reverse (q, k and v; gate and up): Phi-3, GLM, Baichuan, Qwen, InternLM2, GPT-2, GPT-NeoX, BLOOM, Falcon, ModernBERT, Qwen3-Next, Qwen3.5, adapters of Megatron"},
	{verdict: Applied, title: "LoRA and LoCon of image and video models: kohya's sd-scripts and OneTrainer, diffusers since 2023, names of the models' authors as ComfyUI has them, XLabs, cloneofsimo"},
	{verdict: Applied, title: "LoRA of language models by loralib, torchtune and mistral-finetune; bases with the names of Meta's and Mistral's own code (consolidated.safetensors)"},
	{verdict: Applied, title: "keys with adapter names, torch.compile and FSDP wrappers, with or without prefixes"},
	{verdict: Applied, title: "safetensors, pickles of torch.save (adapter_model.bin, .pt), .lora files, sub-directories of named adapters"},
	{verdict: Applied, title: "bases in safetensors, or in pickles of torch.save (pytorch_model.bin, .pt, .pth, .ckpt), which become safetensors"},
	{verdict: Applied, title: "bases in GGUF files of llama.cpp, under the names of llama.cpp or of transformers"},
	{verdict: Applied, title: "plain, sharded and mixed-dtype bases"},
	{verdict: Applied, title: "bases quantised to FP8 (DeepSeek, compressed-tensors, fbgemm, ModelOpt, MXFP8), MXFP4 (gpt-oss, DeepSeek-V4), NF4, FP4 and INT8 (bitsandbytes), NVFP4 (ModelOpt, compressed-tensors), integers of compressed-tensors, and 8 bits of torchao and Quanto: adapted weights become 16 bits, all others keep their codes"},
	{verdict: Applied, title: "bases of GPTQ (2, 4 and 8 bits, v1 and v2, with and without act order), of AWQ (gemm), of MLX and of HQQ, in the same way"},
	{verdict: Applied, title: "initialised by gaussian, orthogonal, EVA or MiCA, which leave the base alone"},
	{name: format.FeatureBDLoRA, verdict: Applied, title: "BD-LoRA (use_bdlora): block-diagonal factors, stored compact"},
	{name: format.FeatureConvolution, verdict: Applied, title: "convolutions of one, two and three dimensions"},
	{name: format.FeatureDifference, verdict: Applied, title: "differences of whole weights, biases and norms (diff, diff_b, w_norm, b_norm)"},
	{name: format.FeatureDoRA, verdict: Applied, title: "DoRA (use_dora), or magnitudes in the file"},
	{name: format.FeatureExpertFactors, verdict: Applied, title: "factors of three dimensions, a matrix for each expert or one for all (Megatron-Bridge, Tinker), on bases of either kind"},
	{name: format.FeatureExperts, verdict: Applied, title: "stacked weights of experts (target_parameters) as every release of PEFT lays them out, and experts one by one, on bases of either kind"},
	{name: format.FeatureHadamard, verdict: Applied, title: "LoHa of LyCORIS, with and without cores"},
	{name: format.FeatureInputMagnitude, verdict: Applied, title: "DoRA with a magnitude for each input (dora_scale of LyCORIS and OneTrainer)"},
	{name: format.FeatureKronecker, verdict: Applied, title: "LoKr of LyCORIS, with whole, decomposed and Tucker matrices"},
	{name: format.FeatureLoRABias, verdict: Applied, title: "lora_bias"},
	{name: format.FeatureMergedLinear, verdict: Applied, title: "MergedLinear of loralib and of PEFT before 0.3 (enable_lora)"},
	{name: format.FeatureMonteCLoRA, verdict: Applied, title: "MonteCLoRA (monteclora_config)"},
	{name: format.FeatureMultiheadAttention, verdict: Applied, title: "torch.nn.MultiheadAttention, out_proj once"},
	{name: format.FeatureQALoRA, verdict: Applied, title: "QA-LoRA (use_qalora)"},
	{name: format.FeatureRotaryByModel, verdict: Applied, title: "rows of q and k in the order that torchtune gives them, which the model_type of the base says"},
	{name: format.FeatureRotaryPairs, verdict: Applied, title: "rows of q and k in the order of llama.cpp, as adapters of GGUF and mistral-finetune have them"},
	{name: format.FeatureScaling, verdict: Applied, title: "IA³ of LyCORIS, on outputs or inputs"},
	{name: format.FeatureTucker, verdict: Applied, title: "LoCon with a core (lora_mid)"},
	{name: format.FeatureUnloaded, verdict: Applied, title: "copies of trained embeddings and heads that save_embedding_layers of PEFT writes, and PEFT does not load"},
	{name: format.FeatureVeLoRA, verdict: Applied, title: "VeLoRA (velora_config)"},
	{name: format.FeatureWeightTying, verdict: Applied, title: "ensure_weight_tying: LoRA on an embedding that is tied to the head"},
	{verdict: NeedsOption, title: "NaN or infinity in a factor, or a weight that becomes infinite", option: "Options.AllowNonFinite"},
	{verdict: NeedsOption, title: "an adapter that remembers another base", option: "Options.AnyBase"},
	{verdict: NeedsOption, title: "an adapter that the base has been merged with already", option: "Options.Again"},
	{verdict: NeedsOption, title: "a change of one of two tied ends, embedding and head", option: "Options.Tied"},
	{verdict: NeedsOption, title: "a vocabulary that has grown", option: "Options.GrowVocabulary"},
	{verdict: NeedsOption, title: "a saved head that the base lacks, or has for another number of classes", option: "Options.AddTensors"},
	{verdict: NeedsOption, title: "weights trained whole, in a file beside the adapter (non_lora_trainables.bin, trainable_params.bin)", option: "Options.With"},
	{name: format.FeatureOLoRA, verdict: NeedsOption, title: "OLoRA on the original base", option: "Options.RecomputeResidual",
		why:    "it was initialised with OLoRA (olora), which subtracted the first factors from the base",
		remedy: "with the original base, Options.RecomputeResidual subtracts that part again; or save the adapter with path_initial_model_for_weight_conversion"},
	{name: format.FeaturePiSSA, verdict: NeedsOption, title: "PiSSA on the original base", option: "Options.RecomputeResidual",
		why:    "it was initialised with PiSSA (pissa), which subtracted the principal part from the base",
		remedy: "with the original base, Options.RecomputeResidual subtracts that part again; or save the adapter with path_initial_model_for_weight_conversion"},
	{verdict: NeedsOption, title: "square stacked experts whose orientation neither other shapes nor the adapter tell", option: "Options.ExpertInput"},
	{verdict: NeedsOption, title: "square Conv1D weights (fan_in_fan_out) of a base that has neither a config.json nor other weights that tell", option: "Options.LinearInput"},
	{verdict: NeedsOption, title: "gate and up of experts apart, as Tinker has them, on gpt-oss, which stores them in turns", option: "Options.ExpertTurns"},
	{verdict: NeedsOption, title: "lora_B of stacked experts with one expert after the other, as unsloth wrote it", option: "Options.ExpertsSlowest"},
	{verdict: NeedsOption, title: "out_proj of torch.nn.MultiheadAttention twice, as PEFT up to 0.21 has it", option: "Options.OutProjTwice"},
	{name: format.FeatureALoRA, verdict: Refused,
		why:    "it is an aLoRA (alora_invocation_tokens), active only after its invocation tokens: no single weight is equal to it",
		remedy: "serve it unmerged"},
	{name: format.FeatureArrow, verdict: Refused,
		why:    "it is routed per token between adapters (arrow_config): no single weight is equal to it",
		remedy: "serve it unmerged"},
	{name: format.FeatureConfigField, verdict: Refused,
		why:    "its configuration sets a field that this version does not know and that may change the result",
		remedy: "if the field is harmless, remove it from adapter_config.json; else try a newer loratool"},
	{name: format.FeatureCorDA, verdict: Refused,
		why:    "it was initialised with CorDA (corda), which changed the base by data that are not in the adapter",
		remedy: "save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"},
	{name: format.FeatureEmptyTensor, verdict: Refused,
		why:    "a tensor is empty, as DeepSpeed ZeRO-3 leaves parameters that it has not gathered",
		remedy: remedyOfEmpty},
	{name: format.FeatureFactorShape, verdict: Refused,
		why:    "a tensor of a layer does not fit the shapes of the others",
		remedy: "the file is damaged, or not what its keys say"},
	{name: format.FeatureKaSA, verdict: Refused,
		why:    "it is KaSA (kasa_config), which truncated the base before training",
		remedy: "merge with PEFT"},
	{name: format.FeatureLayerReplication, verdict: Refused,
		why:    "it was trained on a base with repeated layers (layer_replication)",
		remedy: "build that base first, with its layers repeated and renumbered, and merge into it"},
	{name: format.FeatureLoftQ, verdict: Refused,
		why:    "it was initialised with LoftQ (loftq), so it belongs to a quantised base with changed weights",
		remedy: "merge it into the base that LoftQ wrote"},
	{name: format.FeatureLoRAGA, verdict: Refused,
		why:    "it was initialised with LoRA-GA (lora_ga), which changed the base by gradients that are not in the adapter",
		remedy: "save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"},
	{name: format.FeatureLyCORIS, verdict: Refused,
		why:    "it holds tensors of a method of LyCORIS or kohya that is not applied",
		remedy: "merge it with ComfyUI, or extract an adapter from a model that has it merged (rank.OpenExtraction)"},
	{name: format.FeatureMissingFactor, verdict: Refused,
		why:    "a factor is missing",
		remedy: "the file was not saved whole; save the adapter again"},
	{name: format.FeatureOpaque, verdict: Refused,
		why:    "its tensors were archived without their meaning",
		remedy: "convert.RestoreTo gives the file back; convert that to PEFT with the program that wrote it"},
	{name: format.FeaturePattern, verdict: Refused,
		why:    "a key of rank_pattern or alpha_pattern is a regular expression that cannot be evaluated here",
		remedy: "write it without inline flags, or as one key for each module"},
	{name: format.FeaturePEFTType, verdict: Refused, title: "it is of another method of PEFT: " + strings.Join(peft.MethodNames(), ", ")}, // explainMethod has the reasons
	{name: format.FeaturePiSSANiter, verdict: Refused,
		why:    "it was initialised with a randomised PiSSA (pissa_niter), which changed the base in a way that cannot be repeated",
		remedy: "save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA"},
	{name: format.FeatureRankMismatch, verdict: Refused,
		why:    "the rank in the file and the rank in the configuration differ, so that the scale is not known",
		remedy: "use the adapter_config.json that was saved with these weights"},
	{name: format.FeatureSeveralNames, verdict: Refused,
		why:    "its keys belong to several adapters",
		remedy: "save each one with save_pretrained"},
	{name: format.FeatureSetTensor, verdict: Refused,
		why:    "it replaces or reshapes tensors of the base, as control adapters of Black Forest Labs do",
		remedy: "merge it with ComfyUI or diffusers, which build the changed model"},
	{name: format.FeatureStrayTensor, verdict: Refused,
		why:    "a tensor of the base lies in the file, and nothing in the configuration says that the adapter saves it (modules_to_save, bias)",
		remedy: "if it was trained, name its module in modules_to_save, or set bias to \"all\" for a bias; else save the adapter again without it. To make an adapter of a whole tuned model, use rank.OpenExtraction"},
	{name: format.FeatureTextualInversion, verdict: Refused,
		why:    "it holds embeddings of new words, which have no place in the weights of the base",
		remedy: "load them beside the merged model as a textual inversion, and save the adapter without them"},
	{name: format.FeatureTokenIndices, verdict: Refused,
		why:    "the rows of trained tokens cannot be placed (trainable_token_indices)",
		remedy: "use the adapter_config.json that was saved with these weights"},
	{name: format.FeatureTwice, verdict: Refused,
		why:    "it holds two tensors for one factor, or one module under two names",
		remedy: "keep one of the two in the file"},
	{name: format.FeatureUndo, verdict: Refused,
		why:    "it is the undo record of a merge, not an adapter",
		remedy: "merge.OpenUnmerge takes it by Removal.Records"},
	{name: format.FeatureUnknownTensor, verdict: Refused,
		why:    "a tensor has no known meaning",
		remedy: "the program that wrote it may be newer than this loratool: try a newer loratool"},
	{verdict: Refused, title: "a convolution in groups: the weight has no place for the update"},
	{verdict: Refused, title: "an adapted tensor of the base is quantised in another way (AQLM, EXL2, Marlin, …), or stored in less than 16 bits without scales"},
	{verdict: Refused, title: "the base lacks a tensor that the adapter changes, or has it in another shape"},
}

// find returns a feature that an adapter requires, or nil if this version does not know it.
func find(name format.Feature) *feature {
	for i := range features {
		if features[i].name == name {
			return &features[i]
		}
	}
	return nil
}

// verdictOf returns the verdict on a required feature.
func verdictOf(name format.Feature) Verdict {
	if f := find(name); f != nil {
		return f.verdict
	}
	return Refused
}

// explain says why a feature prevents merging, and how the user can go on.
func explain(name format.Feature, where []string) (why, remedy string) {
	f := find(name)
	switch {
	case f == nil:
		why, remedy = "it requires the feature "+string(name), "try a newer loratool"
	case name == format.FeaturePEFTType:
		return explainMethod(where[0])
	default:
		why, remedy = f.why, f.remedy
	}
	if strings.Join(where, "") != "" {
		why += ": " + fault.List(where, 3)
	}
	return why, remedy
}

// explainMethod names an adapter's method that is not LoRA, and says how to use the adapter.
func explainMethod(value string) (why, remedy string) {
	t, known := peft.Methods[value]
	switch {
	case !known:
		return "it is " + value + ", not LoRA, and no method of PEFT up to 0.21", "if a newer PEFT made it, merge with that"
	case t.NoWeight:
		return "it is " + t.Name + ", not LoRA: it adds to what the model reads or computes, and nothing to its weights", "use it with PEFT, unmerged"
	case t.ToLoRA:
		return "it is " + t.Name + ", not LoRA", "merge with PEFT, or convert it to LoRA with save_as_lora of PEFT from 0.19 on"
	}
	return "it is " + t.Name + ", not LoRA", "merge with PEFT"
}

// Support is a line of the support table.
type Support struct {
	Verdict Verdict
	What    string // the feature, with the reason if it is refused
	Option  string // the option that it needs, such as Options.AnyBase
}

// Supports lists merge's verdict on every feature, from the same data as Refusals. docs/support.md
// and loratool help support show it.
func Supports() []Support {
	var all []Support
	for _, f := range features {
		what := f.title
		if what == "" {
			what = f.why
		}
		all = append(all, Support{f.verdict, what, f.option})
	}
	return all
}
