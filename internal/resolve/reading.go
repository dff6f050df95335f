package resolve

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
)

// Tied is merge.Tied, with the choices that stand there.
type Tied string

// The choices for tied tensors.
const (
	Untie Tied = "untie"
	Fold  Tied = "fold"
)

// Reading has the fields of merge.Reading, which explains them. merge converts one to the other, so
// the compiler keeps them equal.
type Reading struct {
	ExpertInput       int
	LinearInput       int
	ExpertTurns       bool
	ExpertsSlowest    bool
	OutProjTwice      bool
	RecomputeResidual bool
	Tied              Tied
	Only              []string
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
	for name, is := range map[string]bool{"expert-turns": r.ExpertTurns, "expert-slowest": r.ExpertsSlowest, "out-proj-twice": r.OutProjTwice, "recompute-residual": r.RecomputeResidual} {
		if is {
			m[name] = "true"
		}
	}
	if r.Tied != "" {
		m["tied"] = string(r.Tied)
	}
	if len(r.Only) > 0 {
		m["only"] = strings.Join(r.Only, ",")
	}
	return m
}

// ReadingOf is the inverse of Texts.
func ReadingOf(m map[string]string) (Reading, error) {
	n, _ := strconv.Atoi(m["expert-input"])
	linear, _ := strconv.Atoi(m["linear-input"])
	r := Reading{
		ExpertInput: n, LinearInput: linear, ExpertsSlowest: m["expert-slowest"] == "true", OutProjTwice: m["out-proj-twice"] == "true",
		ExpertTurns: m["expert-turns"] == "true", RecomputeResidual: m["recompute-residual"] == "true", Tied: Tied(m["tied"]),
	}
	if m["only"] != "" {
		r.Only = strings.Split(m["only"], ",")
	}
	if known := r.Texts(); !maps.Equal(known, m) {
		return r, fault.New(fault.Unsupported, "the merge was made with the options %v; this version knows only %v", slices.Sorted(maps.Keys(m)), slices.Sorted(maps.Keys(known))).
			WithHint("use the version that wrote the record; inspect names it")
	}
	return r, nil
}
