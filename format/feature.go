package format

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/loratool/loratool/internal/jsontext"
)

// The features that an adapter can require beyond s·B·A on a weight, as the dialects of this module name them. A program that
// applies adapters must know each one that it finds, or refuse (spec/FORMAT.md, R70).
const (
	FeatureALoRA              = "alora"
	FeatureArrow              = "arrow"
	FeatureBDLoRA             = "bdlora"
	FeatureConfigField        = "config-field" // a field of the configuration that nobody here knows
	FeatureConvolution        = "convolution"
	FeatureCorDA              = "corda"
	FeatureDoRA               = "dora"
	FeatureExpertFactors      = "expert-factors" // three dimensions: factors for each of several experts
	FeatureEmptyTensor        = "empty-tensor"   // a tensor without elements, which stands for one that was elsewhere
	FeatureExperts            = "experts"
	FeatureFactorShape        = "factor-shape"
	FeatureKaSA               = "kasa"
	FeatureLayerReplication   = "layer-replication"
	FeatureLoftQ              = "loftq"
	FeatureLoRABias           = "lora-bias"
	FeatureLoRAGA             = "lora-ga"
	FeatureMergedLinear       = "merged-linear"
	FeatureMissingFactor      = "missing-factor"
	FeatureMonteCLoRA         = "monteclora"
	FeatureMultiheadAttention = "multihead-attention"
	FeatureOLoRA              = "olora"
	FeaturePattern            = "pattern" // a rank or alpha pattern that cannot be evaluated
	FeaturePEFTType           = "peft-type"
	FeaturePiSSA              = "pissa"
	FeaturePiSSANiter         = "pissa-niter"
	FeatureQALoRA             = "qalora"
	FeatureRankMismatch       = "rank-mismatch"
	FeatureSeveralNames       = "several-names"
	FeatureStrayTensor        = "stray-tensor" // a tensor of the base that the configuration does not say is saved
	FeatureTokenIndices       = "token-indices"
	FeatureTwice              = "twice" // two tensors for one factor of one module
	FeatureUndo               = "undo"  // it is the undo record of a merge (spec/UNDO.md)
	FeatureUnknownTensor      = "unknown-tensor"
	FeatureVeLoRA             = "velora"
	FeatureWeightTying        = "weight-tying" // Δ of an embedding is meant for the output head that is tied to it, too
)

// MergedLinear is the requirement of an adapter of MergedLinear (loralib, and PEFT before 0.3), where one weight holds several
// projections, one below the other. projections says, as a JSON list of booleans, which of them are adapted.
func MergedLinear(projections []byte) Requirement {
	var list bytes.Buffer
	if json.Compact(&list, projections) != nil {
		list.Reset()
	}
	return Requirement{Feature: FeatureMergedLinear, Where: "enable_lora = " + list.String()}
}

// Projections is the inverse of [MergedLinear]: which projections of the weight are adapted. It is empty where the requirement does
// not say it.
func (r Requirement) Projections() (adapted []bool) {
	_, list, _ := strings.Cut(r.Where, "=")
	if r.Feature != FeatureMergedLinear || jsontext.Decode([]byte(list), &adapted) != nil {
		return nil
	}
	return adapted
}
