package format

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/loratool/loratool/internal/jsontext"
)

// Feature is something beyond s·B·A on a weight that an adapter requires. Dialects outside this
// module may define more features than the ones below.
type Feature string

// The features that the dialects of this module know. A program that applies an adapter must know
// every feature the adapter requires, or refuse it (spec/FORMAT.md, R70).
const (
	FeatureALoRA              Feature = "alora"               // activated LoRA: it acts only after a certain sequence of tokens
	FeatureArrow              Feature = "arrow"               // every token chooses among several adapters
	FeatureBDLoRA             Feature = "bdlora"              // one factor is block-diagonal and stored as its blocks
	FeatureConfigField        Feature = "config-field"        // a configuration field that this module does not know
	FeatureConvolution        Feature = "convolution"         // factors with the dimensions of a convolution
	FeatureCorDA              Feature = "corda"               // trained on a base that was changed by means of data
	FeatureDifference         Feature = "difference"          // tensors that are added to those of the base
	FeatureDoRA               Feature = "dora"                // magnitudes per output (Liu et al., arXiv:2402.09353)
	FeatureExpertFactors      Feature = "expert-factors"      // factors of three dimensions, one for each expert
	FeatureEmptyTensor        Feature = "empty-tensor"        // a tensor without elements, written in place of one that another process held
	FeatureExperts            Feature = "experts"             // a parameter of stacked experts (target_parameters, since PEFT 0.17)
	FeatureFactorShape        Feature = "factor-shape"        // factors whose shapes fit no known kind of layer
	FeatureHadamard           Feature = "hadamard"            // LoHa (Hyeon-Woo et al., arXiv:2108.06098)
	FeatureInputMagnitude     Feature = "input-magnitude"     // DoRA with magnitudes per input, as in LyCORIS and OneTrainer
	FeatureKaSA               Feature = "kasa"                // the base loses its smallest singular values before training
	FeatureKronecker          Feature = "kronecker"           // LoKr (Yeh et al., arXiv:2309.14859)
	FeatureLayerReplication   Feature = "layer-replication"   // the model repeats layers of the base
	FeatureLoftQ              Feature = "loftq"               // trained on the rest of a quantised base
	FeatureLoRABias           Feature = "lora-bias"           // B has a bias (lora_bias, since PEFT 0.14)
	FeatureLoRAGA             Feature = "lora-ga"             // trained on a base that was changed by its gradients
	FeatureLyCORIS            Feature = "lycoris"             // a method of LyCORIS that no kind of layer describes, which the requirement names
	FeatureMergedLinear       Feature = "merged-linear"       // several projections in one weight (loralib)
	FeatureMissingFactor      Feature = "missing-factor"      // lora_A without lora_B, or the reverse
	FeatureMonteCLoRA         Feature = "monteclora"          // a sampler is stored beside the factors; PEFT merges without it
	FeatureMultiheadAttention Feature = "multihead-attention" // PEFT applies the update of an attention's out_proj twice
	FeatureOLoRA              Feature = "olora"               // trained on the base without its leading part, by QR
	FeatureOpaque             Feature = "opaque"              // tensors that were archived without their meaning
	FeaturePattern            Feature = "pattern"             // a rank or alpha pattern that cannot be evaluated
	FeaturePEFTType           Feature = "peft-type"           // a method of PEFT other than LoRA
	FeaturePiSSA              Feature = "pissa"               // trained on the base without its leading part, by SVD
	FeaturePiSSANiter         Feature = "pissa-niter"         // PiSSA with a randomised SVD, which no one can repeat
	FeatureQALoRA             Feature = "qalora"              // A reads averages over groups of inputs
	FeatureRankMismatch       Feature = "rank-mismatch"       // the factors have another rank than the configuration says
	FeatureSeveralNames       Feature = "several-names"       // keys of several adapters in one file
	FeatureRotaryPairs        Feature = "rotary-pairs"        // B has the rows of each attention head in the order of llama.cpp
	FeatureRotaryByModel      Feature = "rotary-by-model"     // B has its rows in one order or the other, as the type of the model says (torchtune)
	FeatureScaling            Feature = "scaling"             // IA³ (Liu et al., arXiv:2205.05638) on a weight
	FeatureSetTensor          Feature = "set-tensor"          // a tensor that replaces or reshapes one of the base
	FeatureStrayTensor        Feature = "stray-tensor"        // a tensor of the base that the configuration does not list as saved
	FeatureTextualInversion   Feature = "textual-inversion"   // embeddings of new words for a text encoder
	FeatureTokenIndices       Feature = "token-indices"       // trained token rows without known indices
	FeatureTucker             Feature = "tucker"              // a convolution with a core between its factors (LoCon of LyCORIS)
	FeatureTwice              Feature = "twice"               // two tensors for one factor of one module
	FeatureUndo               Feature = "undo"                // the adapter is the undo record of a merge (spec/UNDO.md)
	FeatureUnloaded           Feature = "unloaded"            // a copy that PEFT saves beside a trained tensor and does not load
	FeatureUnknownTensor      Feature = "unknown-tensor"      // a key that has no known meaning
	FeatureVeLoRA             Feature = "velora"              // a projection of activations is stored beside the factors; PEFT merges without it
	FeatureWeightTying                = "weight-tying"        // the update of an embedding also applies to the output head tied to it
)

// MergedLinear returns the requirement of an adapter made by MergedLinear (loralib, and PEFT before
// 0.3), where one weight stacks several projections. projections is a JSON list of booleans: which
// of them the adapter changes.
func MergedLinear(projections []byte) Requirement {
	var list bytes.Buffer
	if json.Compact(&list, projections) != nil {
		list.Reset()
	}
	return Requirement{Feature: FeatureMergedLinear, Where: "enable_lora = " + list.String()}
}

// IsOfRows reports whether the requirement is about the order of the rows of an attention's B:
// FeatureRotaryPairs or FeatureRotaryByModel.
func (r Requirement) IsOfRows() bool {
	return r.Feature == FeatureRotaryPairs || r.Feature == FeatureRotaryByModel
}

// Projections returns which projections of the weight the adapter changes; see [MergedLinear]. It
// is empty if the requirement does not say.
func (r Requirement) Projections() (adapted []bool) {
	list, says := strings.CutPrefix(r.Where, "enable_lora = ")
	if r.Feature != FeatureMergedLinear || !says || jsontext.Decode([]byte(list), &adapted) != nil {
		return nil
	}
	return adapted
}
