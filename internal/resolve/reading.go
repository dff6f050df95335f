package resolve

import (
	"maps"
	"slices"
	"strconv"

	"github.com/loratool/loratool/internal/fault"
)

// Tied decides the fate of an output head that the base has tied to its input embedding, when an
// adapter changes one of the two.
type Tied string

// The fates of a tied head; the zero value refuses.
const (
	Untie Tied = "untie" // the head becomes a tensor of its own, and config.json says so
	Fold  Tied = "fold"  // the change is made to the one tensor, and so to both
)

// Reading says how adapters are applied where their files do not. The zero value lets the files
// decide, and refuses everything that they leave open. An undo record remembers it, so that what
// was put in is taken out as it was put in.
type Reading struct {
	ExpertInput       int  // the dimension of square experts that lora_A reads, 1 or 2; 0 lets the adapter decide
	LinearInput       int  // the dimension of square Conv1D weights that lora_A reads, 1 or 2, where the base does not tell; 0 refuses them there
	ExpertsSlowest    bool // lora_B of stacked experts has one expert after the other, which PEFT does not write
	OutProjTwice      bool // add the update of out_proj of nn.MultiheadAttention twice, as PEFT up to 0.21 does
	RecomputeResidual bool // take out of the original base what PiSSA and OLoRA have taken out, computed again
	Tied              Tied // what to do with tied ends of which one changes; "" refuses
}

// Texts is a reading as an undo record has it: the fields that differ from zero.
func (r Reading) Texts() map[string]string {
	m := make(map[string]string)
	if r.ExpertInput != 0 {
		m["expert-input"] = strconv.Itoa(r.ExpertInput)
	}
	if r.LinearInput != 0 {
		m["linear-input"] = strconv.Itoa(r.LinearInput)
	}
	for name, is := range map[string]bool{"expert-slowest": r.ExpertsSlowest, "out-proj-twice": r.OutProjTwice, "recompute-residual": r.RecomputeResidual} {
		if is {
			m[name] = "true"
		}
	}
	if r.Tied != "" {
		m["tied"] = string(r.Tied)
	}
	return m
}

// ReadingOf is the inverse of Texts.
func ReadingOf(m map[string]string) (Reading, error) {
	n, _ := strconv.Atoi(m["expert-input"])
	linear, _ := strconv.Atoi(m["linear-input"])
	r := Reading{
		ExpertInput: n, LinearInput: linear, ExpertsSlowest: m["expert-slowest"] == "true", OutProjTwice: m["out-proj-twice"] == "true",
		RecomputeResidual: m["recompute-residual"] == "true", Tied: Tied(m["tied"]),
	}
	if known := r.Texts(); !maps.Equal(known, m) {
		return r, fault.New(fault.Unsupported, "the merge was made with the options %v, of which this version knows %v", slices.Sorted(maps.Keys(m)), slices.Sorted(maps.Keys(known))).
			WithHint("use the version that wrote the record; inspect names it")
	}
	return r, nil
}
