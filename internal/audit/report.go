package audit

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// Verdict is the answer for a checkpoint, or for one of its tensors.
type Verdict string

const (
	AsClaimed    Verdict = "as_claimed"
	NotAsClaimed Verdict = "not_as_claimed"
	Inconclusive Verdict = "inconclusive" // the data do not tell, or tell of an unknown way to round
)

// Finding names the state of a tensor.
type Finding string

const (
	Untouched    Finding = "untouched"       // no adapter changes it, and it equals the base's
	Merged       Finding = "merged"          // the base's with the update of the adapters
	Requantised  Finding = "requantised"     // the update, in new codes
	Replaced     Finding = "replaced"        // the adapter's own tensor or rows
	NotApplied   Finding = "not_applied"     // equals the base's, although an adapter changes it
	NotReplaced  Finding = "not_replaced"    // equals the base's, although an adapter has it whole
	BiasDropped  Finding = "bias_dropped"    // the same of a bias
	Scale        Finding = "scale"           // the update has another scale
	Twice        Finding = "applied_twice"   // the update is there twice
	Sign         Finding = "sign"            // the update was subtracted
	Weights      Finding = "weight"          // several adapters, with other weights
	AdapterLost  Finding = "adapter_missing" // the update of one of several adapters is not there
	Transposed   Finding = "transposed"      // the update is there, transposed
	Exchanged    Finding = "exchanged"       // the update is that of another module
	OtherReading Finding = "other_reading"   // the update is that of another reading of the adapter
	DoRAAsPlain  Finding = "dora_as_plain"   // W + ΔW, without DoRA's magnitudes
	Other        Finding = "another_adapter" // a change of low rank that is not the adapter's
	Foreign      Finding = "foreign"         // a change that no adapter makes
	Besides      Finding = "foreign_besides" // the update, and a change that no adapter makes
	Elements     Finding = "elements"        // a few elements differ from every way to round
	NonFinite    Finding = "non_finite"      // NaN or infinity that the merge does not make
	Rounded      Finding = "rounded"         // the update, rounded in an unknown way
	Tied         Finding = "tied"            // both ends of a tie have changed, and an adapter changes one
	Cast         Finding = "cast"            // another dtype, with the values that it has for the base's
	Reshaped     Finding = "reshaped"        // another shape
	Missing      Finding = "missing"
	Extra        Finding = "extra"
	Copied       Finding = "copied" // an extra tensor with the values of the other end of a tie
)

// Report is the result of an audit.
type Report struct {
	Verdict Verdict `json:"verdict"`
	// Rounding is the way to round that explains all tensors with an update, or explains most of
	// them; "" if there is none.
	Rounding Rounding `json:"rounding"`
	// OtherRoundings are the ways that explain all these tensors as well.
	OtherRoundings []Rounding `json:"other_roundings"`
	// Margin is the least share of the elements of a merged tensor that the best other way to round
	// does not explain; 0 if there is no rounding, or another way explains a tensor as well.
	Margin merge.Figure `json:"margin"`
	// BaseAs is the scheme whose values the merge gave the base first, as the caller or a stamp
	// says; "" for none.
	BaseAs string `json:"base_as,omitempty"`
	// Casts says which dtypes differ from the base's, "" if none does.
	Casts string `json:"casts"`
	// Adapters are the fitted weights over all tensors whose update is a sum of the adapters'.
	Adapters []FittedAdapter `json:"adapters"`
	Tensors  []Tensor        `json:"tensors"` // in the order of the base, then extra ones
	Warnings []string        `json:"warnings"`
	// Renamed says how the tensor names of the two checkpoints differ, "" if they do not.
	Renamed string `json:"renamed"`
	// Stamps lists the merges that the merged checkpoint itself records.
	Stamps []string `json:"stamps"`
}

// FittedAdapter is the weight of an adapter that fits the change best, by least squares.
type FittedAdapter struct {
	Adapter string  `json:"adapter"`
	Claimed float64 `json:"claimed_weight"`
	Weight
}

// Weight is a fitted weight, 1 for an adapter as trained, and its standard error.
type Weight struct {
	Value merge.Figure `json:"weight"` // null if the data do not tell
	Error merge.Figure `json:"standard_error"`
}

// Tensor is the result for one tensor.
type Tensor struct {
	Tensor  string  `json:"tensor"` // as the base names it
	Module  string  `json:"module"` // of the adapter; "" if none changes it
	Verdict Verdict `json:"verdict"`
	Finding Finding `json:"finding"`
	Text    string  `json:"text"` // a clause that explains the finding; "" if its name says all
	DType   string  `json:"dtype"`
	// File is the file of the merged checkpoint, relative to its directory; "" if the tensor is
	// missing, or if the checkpoint is one file.
	File string `json:"file"`
	// MergedDType is the dtype in the merged checkpoint, "" if the tensor is missing there.
	MergedDType string `json:"merged_dtype"`
	// Rounding is the way to round that explains every element; "" if there is none.
	Rounding Rounding `json:"rounding"`
	// OtherRoundings explain every element as well.
	OtherRoundings []Rounding `json:"other_roundings,omitempty"`
	// Margin is the share of the elements that the best of all other ways does not explain; 0 if
	// another way explains all.
	Margin merge.Figure `json:"margin"`

	Elements int64 `json:"elements"`
	// Different counts the elements that differ from the correctly rounded merge, or from the base
	// for a tensor that no adapter changes.
	Different int64 `json:"different"`
	// Unexplained counts the elements that differ from the best way to round.
	Unexplained int64 `json:"unexplained"`

	Weights []Weight `json:"weights,omitempty"` // fitted, of each adapter
	// Change is ‖M − W‖ ÷ ‖W‖, and Residual is ‖M − X‖ ÷ ‖M − W‖ for the best fit X; null if the
	// tensor was not analysed by its values.
	Change   merge.Figure `json:"change"`
	Residual merge.Figure `json:"residual"`
	// Rank is the number of singular values of an unexplained change that stand out from rounding
	// noise; 0 if it was not computed.
	Rank int `json:"rank,omitempty"`
}

// hasUpdateOf begins the text of an exchange.
const hasUpdateOf = "it has the update of "

// newTensor returns a result with no figures yet.
func newTensor(name string, d dtype.Type, elements int64) Tensor {
	none := merge.Figure(math.NaN())
	return Tensor{Tensor: name, DType: d.String(), Elements: elements, Change: none, Residual: none}
}

// Counts returns the numbers of tensors by verdict.
func (r *Report) Counts() map[Verdict]int {
	n := make(map[Verdict]int)
	for i := range r.Tensors {
		n[r.Tensors[i].Verdict]++
	}
	return n
}

// judge sets the verdict of the whole from those of the tensors.
func (r *Report) judge() {
	r.Verdict = AsClaimed
	n := r.Counts()
	switch {
	case n[NotAsClaimed] > 0:
		r.Verdict = NotAsClaimed
	case n[Inconclusive] > 0:
		r.Verdict = Inconclusive
	}
	r.judgeRounding()
	r.judgeCasts()
}

// judgeCasts notes tensors in another dtype than the base's.
func (r *Report) judgeCasts() {
	n := make(map[string]int)
	for i := range r.Tensors {
		if t := &r.Tensors[i]; t.MergedDType != "" && t.MergedDType != t.DType {
			n[t.DType+" → "+t.MergedDType]++
		}
	}
	var all []string
	for _, cast := range slices.Sorted(maps.Keys(n)) {
		all = append(all, fmt.Sprintf("%s in %d of %s", cast, n[cast], fault.Count(len(r.Tensors), "tensor")))
	}
	r.Casts = strings.Join(all, ", ")
}

// judgeRounding finds the ways to round that explain all merged tensors. The first in order that
// most tensors name is the answer.
func (r *Report) judgeRounding() {
	count, merged := make(map[Rounding]int), 0
	for i := range r.Tensors {
		t := &r.Tensors[i]
		if t.Finding != Merged && t.Finding != Requantised || t.Rounding == "" {
			continue
		}
		merged++
		names := append([]Rounding{t.Rounding}, t.OtherRoundings...)
		for _, name := range names {
			count[name]++
		}
		// The bounds of a float32 sum enclose the exact one.
		if t.Rounding == Exact && !slices.Contains(names, Float32) {
			count[Float32]++
		}
	}
	r.Rounding, r.OtherRoundings = "", []Rounding{}
	if merged == 0 {
		return
	}
	for _, name := range roundings() {
		switch n := count[name]; {
		case n == merged && r.Rounding != "" && count[r.Rounding] == merged:
			r.OtherRoundings = append(r.OtherRoundings, name)
		case n > count[r.Rounding] || r.Rounding == "":
			r.Rounding = name
		}
	}
	r.Margin = 0
	for i := range r.Tensors {
		if t := &r.Tensors[i]; t.Rounding == r.Rounding && t.Finding == Merged && (r.Margin == 0 || t.Margin < r.Margin) {
			r.Margin = t.Margin
		}
	}
	r.OtherRoundings = slices.DeleteFunc(r.OtherRoundings, func(n Rounding) bool { return n == r.Rounding })
}
