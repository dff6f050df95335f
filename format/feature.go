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
	FeatureALoRA              Feature = "alora"
	FeatureArrow              Feature = "arrow"
	FeatureBDLoRA             Feature = "bdlora"
	FeatureConfigField        Feature = "config-field" // a configuration field that this module does not know
	FeatureConvolution        Feature = "convolution"
	FeatureCorDA              Feature = "corda"
	FeatureDoRA               Feature = "dora"
	FeatureExpertFactors      Feature = "expert-factors" // factors of three dimensions, one for each expert
	FeatureEmptyTensor        Feature = "empty-tensor"   // a tensor without elements, written in place of one that another process held
	FeatureExperts            Feature = "experts"
	FeatureFactorShape        Feature = "factor-shape"
	FeatureKaSA               Feature = "kasa"
	FeatureLayerReplication   Feature = "layer-replication"
	FeatureLoftQ              Feature = "loftq"
	FeatureLoRABias           Feature = "lora-bias"
	FeatureLoRAGA             Feature = "lora-ga"
	FeatureMergedLinear       Feature = "merged-linear"
	FeatureMissingFactor      Feature = "missing-factor"
	FeatureMonteCLoRA         Feature = "monteclora"
	FeatureMultiheadAttention Feature = "multihead-attention"
	FeatureOLoRA              Feature = "olora"
	FeatureOpaque             Feature = "opaque"  // tensors that were archived without their meaning
	FeaturePattern            Feature = "pattern" // a rank or alpha pattern that cannot be evaluated
	FeaturePEFTType           Feature = "peft-type"
	FeaturePiSSA              Feature = "pissa"
	FeaturePiSSANiter         Feature = "pissa-niter"
	FeatureQALoRA             Feature = "qalora"
	FeatureRankMismatch       Feature = "rank-mismatch"
	FeatureSeveralNames       Feature = "several-names"
	FeatureStrayTensor        Feature = "stray-tensor" // a tensor of the base that the configuration does not list as saved
	FeatureTokenIndices       Feature = "token-indices"
	FeatureTwice              Feature = "twice" // two tensors for one factor of one module
	FeatureUndo               Feature = "undo"  // the adapter is the undo record of a merge (spec/UNDO.md)
	FeatureUnknownTensor              = "unknown-tensor"
	FeatureVeLoRA                     = "velora"
	FeatureWeightTying                = "weight-tying" // the update of an embedding also applies to the output head tied to it
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

// Projections returns which projections of the weight the adapter changes; see [MergedLinear]. It
// is empty if the requirement does not say.
func (r Requirement) Projections() (adapted []bool) {
	_, list, _ := strings.Cut(r.Where, "=")
	if r.Feature != FeatureMergedLinear || jsontext.Decode([]byte(list), &adapted) != nil {
		return nil
	}
	return adapted
}
