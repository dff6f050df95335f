package format

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/loratool/loratool/internal/jsontext"
)

// Feature is something beyond s·B·A on a weight that an adapter requires. Dialects outside this
// module may require others than those named here.
type Feature string

// The features that an adapter can require beyond s·B·A on a weight, as the dialects of this module
// name them. A program that applies adapters must know each one that it finds, or refuse
// (spec/FORMAT.md, R70).
const (
	FeatureALoRA              Feature = "alora"
	FeatureArrow              Feature = "arrow"
	FeatureBDLoRA             Feature = "bdlora"
	FeatureConfigField        Feature = "config-field" // a field of the configuration that nobody here knows
	FeatureConvolution        Feature = "convolution"
	FeatureCorDA              Feature = "corda"
	FeatureDoRA               Feature = "dora"
	FeatureExpertFactors      Feature = "expert-factors" // three dimensions: factors for each of several experts
	FeatureEmptyTensor        Feature = "empty-tensor"   // a tensor without elements, which stands for one that was elsewhere
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
	FeaturePattern            Feature = "pattern" // a rank or alpha pattern that cannot be evaluated
	FeaturePEFTType           Feature = "peft-type"
	FeaturePiSSA              Feature = "pissa"
	FeaturePiSSANiter         Feature = "pissa-niter"
	FeatureQALoRA             Feature = "qalora"
	FeatureRankMismatch       Feature = "rank-mismatch"
	FeatureSeveralNames       Feature = "several-names"
	FeatureStrayTensor        Feature = "stray-tensor" // a tensor of the base that the configuration does not say is saved
	FeatureTokenIndices       Feature = "token-indices"
	FeatureTwice              Feature = "twice" // two tensors for one factor of one module
	FeatureUndo               Feature = "undo"  // it is the undo record of a merge (spec/UNDO.md)
	FeatureUnknownTensor              = "unknown-tensor"
	FeatureVeLoRA                     = "velora"
	FeatureWeightTying                = "weight-tying" // Δ of an embedding is meant for the output head that is tied to it, too
)

// MergedLinear is the requirement of an adapter of MergedLinear (loralib, and PEFT before 0.3),
// where one weight holds several projections, one below the other. projections says, as a JSON list
// of booleans, which of them are adapted.
func MergedLinear(projections []byte) Requirement {
	var list bytes.Buffer
	if json.Compact(&list, projections) != nil {
		list.Reset()
	}
	return Requirement{Feature: FeatureMergedLinear, Where: "enable_lora = " + list.String()}
}

// Projections is the inverse of [MergedLinear]: which projections of the weight are adapted. It is
// empty where the requirement does not say it.
func (r Requirement) Projections() (adapted []bool) {
	_, list, _ := strings.Cut(r.Where, "=")
	if r.Feature != FeatureMergedLinear || jsontext.Decode([]byte(list), &adapted) != nil {
		return nil
	}
	return adapted
}
