package merge

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// Report describes a finished merge.
type Report struct {
	Layers          []LayerReport   `json:"layers"`
	Replaced        []PlannedTensor `json:"replaced"`            // tensors with values or rows from an adapter
	BytesWritten    int64           `json:"bytes_written"`       // all files, but for an undo record
	Elements        int64           `json:"elements"`            // in the updated tensors
	SlowElements    int64           `json:"slow_pass_elements"`  // not decided by the fast pass
	ExactElements   int64           `json:"exact_pass_elements"` // decided in exact arithmetic
	NonFiniteBefore int64           `json:"non_finite_before"`   // NaN and infinity in the weights that the merge changes or decodes
	NonFiniteAfter  int64           `json:"non_finite_after"`    // in the result, also of replaced tensors
	Total           Retention       `json:"total"`               // over all Layers
	TakenOut        []TakenOut      `json:"taken_out,omitempty"` // tensors from which merges were removed
	Undo            *UndoReport     `json:"undo,omitempty"`      // of the record written by this run
	BaseAs          *BaseAsReport   `json:"base_as,omitempty"`   // only with Options.BaseAs
	Recoded         *RecodedReport  `json:"recoded,omitempty"`   // only with Options.Requantise
	Warnings        []string        `json:"warnings"`

	created []string // tensors in which the merge created NaN or infinity
}

// BaseAsReport says how Options.BaseAs changed the base. The norms in Layers are those of the
// changed base.
type BaseAsReport struct {
	Scheme string `json:"scheme"`
	// Tensors lists the weights that got the values Q(W) of their codes, sorted.
	Tensors []string `json:"tensors"`
	Error   Figure   `json:"error"` // ‖Q(W) − W‖ / ‖W‖ over all of them
	// Share is ‖Q(W) − W‖ / ‖ΔW‖ over the tensors that the adapters change: how much larger than
	// the update is that which a merge into the original base would add besides. Layers has that of
	// each.
	Share  Figure        `json:"share"`
	Layers []BaseAsLayer `json:"layers"`
}

// BaseAsLayer says how Options.BaseAs changed a tensor that the adapters change.
type BaseAsLayer struct {
	Tensor string `json:"tensor"`
	Error  Figure `json:"error"` // ‖Q(W) − W‖ / ‖W‖
	Share  Figure `json:"share"` // ‖Q(W) − W‖ / ‖ΔW‖
}

// TakenOut reports the removal of one or more merges from a tensor.
type TakenOut struct {
	Tensor    string `json:"tensor"`
	DType     string `json:"dtype"`
	Elements  int64  `json:"elements"`
	Merges    int    `json:"merges"`     // number of merges removed
	Corrected int64  `json:"corrected"`  // elements that subtraction alone got wrong and a record corrected
	MayDiffer int64  `json:"may_differ"` // elements that may differ from the original, for want of a record; 0 proves that none does
}

// UndoReport describes the undo record of a merge.
type UndoReport struct {
	Tensors       int     `json:"tensors"`         // number of recorded tensors
	Elements      int64   `json:"elements"`        // in these tensors
	Bytes         int64   `json:"bytes"`           // size of the record
	BitsPerWeight float64 `json:"bits_per_weight"` // 8·Bytes/Elements; 0 without elements
}

func undoReport(d *undo.Description, s *format.Summary) *UndoReport {
	r := &UndoReport{Tensors: len(d.Tensors), Elements: d.Elements(), Bytes: s.FileBytes}
	if r.Elements > 0 {
		r.BitsPerWeight = 8 * float64(r.Bytes) / float64(r.Elements)
	}
	return r
}

// LayerReport describes one updated tensor.
type LayerReport struct {
	PlannedTensor
	Retention
	Elements       int64 `json:"elements"`
	Unchanged      int64 `json:"unchanged"`          // elements with out = w (−0 equals 0, a NaN any NaN)
	SlowElements   int64 `json:"slow_pass_elements"` // not decided by the fast pass
	NonFiniteAfter int64 `json:"non_finite_after"`   // NaN and infinite elements of the result
}

// Retention compares the intended update Δ with the stored one, out − w, which a 16-bit base
// rounds. Norms are Frobenius norms over the finite elements, with a relative error of at most
// 2⁻¹⁷. Over a 16-bit base Δ is known to float32 only. This adds about 10⁻⁶·‖Δ‖ to the error of
// RetentionError, which is visible only where hardly anything is lost.
type Retention struct {
	RelativeNorm   Figure `json:"relative_norm"`   // ‖Δ‖ / ‖W‖; 0 if W is 0
	RetentionError Figure `json:"retention_error"` // ‖(out − w) − Δ‖ / ‖Δ‖; 0 if Δ is 0
	Cosine         Figure `json:"cosine"`          // between Δ and out − w, in −1 … 1; 1 if both are 0, 0 if one is
	UnchangedShare Figure `json:"unchanged_share"` // share of unchanged elements, in 0 … 1
	IsZero         bool   `json:"is_zero"`         // Δ is 0
}

// Figure is a number of a report. JSON cannot express infinity or NaN, so these become null.
type Figure float64

// MarshalJSON implements json.Marshaler.
func (f Figure) MarshalJSON() ([]byte, error) {
	if x := float64(f); x-x != 0 {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

// retention computes the figures of a tensor from its sums of squares. ‖stored‖, ‖error‖ and ‖Δ‖
// form a triangle, so the cosine follows from its sides, without another pass over the weights.
func retention(s *kernel.Stats) Retention {
	r := Retention{Cosine: 1, IsZero: s.NormDelta.IsZero()}
	if !s.NormW.IsZero() {
		r.RelativeNorm = Figure(s.NormDelta.Ratio(&s.NormW))
	}
	switch {
	case s.NormDelta.IsZero() != s.NormStored.IsZero():
		r.Cosine = 0
	case !s.NormDelta.IsZero():
		r.Cosine = cosine(s.NormStored.Ratio(&s.NormDelta), s.NormError.Ratio(&s.NormDelta))
	}
	if !s.NormDelta.IsZero() {
		r.RetentionError = Figure(s.NormError.Ratio(&s.NormDelta))
	}
	if s.Elements > 0 {
		r.UnchangedShare = Figure(float64(s.Unchanged) / float64(s.Elements))
	}
	return r
}

// cosine returns the cosine of the angle between a unit vector and one of the given length and
// distance. Rounding must not push it above 1.
func cosine(length, distance float64) Figure {
	return Figure(max(-1, min(1, (1+length*length-distance*distance)/(2*length))))
}

// A run with Options.Requantise fails if it keeps a smaller or larger share of ΔW. Blocks that are
// encoded anew can move by more than ΔW.
const leastKept, mostKept = 0.9, 1.1

// RecodedReport says what Options.Requantise keeps of the updates.
type RecodedReport struct {
	Kept    Figure         `json:"kept"`    // ⟨ΔŴ, ΔW⟩/‖ΔW‖² over all weights that got new codes, with ΔŴ = Q(W + ΔW) − W
	Error   Figure         `json:"error"`   // ‖ΔŴ − ΔW‖/‖ΔW‖
	Clamped int64          `json:"clamped"` // elements that are beyond all codes by more than half a step
	Layers  []RecodedLayer `json:"layers"`
}

// RecodedLayer is the part of a RecodedReport for one weight.
type RecodedLayer struct {
	Tensor  string `json:"tensor"`
	Scheme  string `json:"scheme"`
	Kept    Figure `json:"kept"`
	Error   Figure `json:"error"`
	Clamped int64  `json:"clamped"`
}

// newRecodedReport measures what is kept, and fails if that is less than leastKept.
func newRecodedReport(p *Plan, tallies map[*target]*tally) (*RecodedReport, error) {
	r := &RecodedReport{Layers: []RecodedLayer{}}
	var total kernel.Stats
	for _, t := range p.targets {
		s := tallies[t]
		if t.coded == nil || s == nil {
			continue
		}
		l := RecodedLayer{Tensor: t.coded.weight.Name, Scheme: t.coded.codes.Scheme, Clamped: s.clamped}
		l.Kept, l.Error = keptOf(&s.Stats)
		total.Add(&s.Stats)
		r.Clamped += l.Clamped
		r.Layers = append(r.Layers, l)
	}
	if r.Kept, r.Error = keptOf(&total); r.Kept >= leastKept && r.Kept <= mostKept || p.options.AcceptLoss {
		return r, nil
	}
	worst := slices.MaxFunc(r.Layers, func(a, b RecodedLayer) int {
		return cmp.Compare(math.Abs(float64(a.Kept-1)), math.Abs(float64(b.Kept-1)))
	})
	out := "BF16"
	if p.base.Config.Architecture != "" {
		out = "F16 or BF16, of which llama-quantize makes Q8_0"
	}
	return nil, fault.New(fault.Check, "the codes keep %s of ΔW, want %.0f to %.0f %%; worst in %q (%s)",
		percentOf(r.Kept), 100*leastKept, 100*mostKept, worst.Tensor, percentOf(worst.Kept)).
		WithHint("merge without Options.Requantise, which decodes the weights to %s, or set Options.AcceptLoss", out)
}

func percentOf(f Figure) string { return fmt.Sprintf("%.3g %%", 100*float64(f)) }

// keptOf returns the share of ΔW that is kept, and the error: ΔW, ΔŴ and their difference form a
// triangle. Without ΔW all of it is kept.
func keptOf(s *kernel.Stats) (kept, err Figure) {
	if s.NormDelta.IsZero() {
		return 1, 0
	}
	stored, missing := s.NormStored.Ratio(&s.NormDelta), s.NormError.Ratio(&s.NormDelta)
	return Figure((1 + stored*stored - missing*missing) / 2), Figure(missing)
}

// tally counts the changes of a tensor.
type tally struct {
	kernel.Stats
	taken
}

// newReport combines the tallies of the plan's tensors.
func newReport(p *Plan, tallies map[*target]*tally) *Report {
	report := &Report{Layers: []LayerReport{}, Replaced: []PlannedTensor{}, BytesWritten: p.OutputBytes(), Warnings: append([]string{}, p.Warnings()...)}
	report.Layers = slices.Grow(report.Layers, len(p.targets))
	var total kernel.Stats
	for _, t := range p.targets {
		d := p.describe(t)
		if len(t.undo) > 0 && tallies[t] != nil {
			report.TakenOut = append(report.TakenOut, TakenOut{
				Tensor: t.Name, DType: t.DType.String(), Elements: t.Elements(), Merges: len(t.undo),
				Corrected: tallies[t].corrected, MayDiffer: tallies[t].mayDiffer,
			})
		}
		if t.Replace != nil || t.Rows != nil {
			report.Replaced = append(report.Replaced, d)
		}
		s := new(kernel.Stats)
		if tallies[t] != nil {
			s = &tallies[t].Stats
		}
		if len(t.Terms)+len(t.Deltas) == 0 {
			total.NaNAfter += s.NaNAfter // of replaced values
			continue
		}
		total.Add(s)
		if s.NaNAfter > s.NaNBefore {
			report.created = append(report.created, d.Tensor)
		}
		report.Layers = append(report.Layers, LayerReport{
			PlannedTensor: d, Retention: retention(s), Elements: s.Elements, Unchanged: s.Unchanged,
			SlowElements: s.Slow, NonFiniteAfter: s.NaNAfter,
		})
	}
	report.Elements, report.SlowElements, report.ExactElements = total.Elements, total.Slow, total.Exact
	report.NonFiniteBefore, report.NonFiniteAfter = total.NaNBefore, total.NaNAfter
	report.Total = retention(&total)
	return report
}

// addDecoded adds what happened to the values of quantised weights that the merge decodes and no
// adapter changes.
func (r *Report) addDecoded(p *Plan) {
	isChanged := make(map[string]bool)
	for _, l := range r.Layers {
		isChanged[l.Tensor] = true
	}
	for _, l := range checkpoint.LostOf(p.base) {
		if isChanged[l.Name] {
			continue
		}
		r.NonFiniteBefore += l.NonFinite
		r.NonFiniteAfter += l.NonFinite + l.Overflown
		if l.Overflown > 0 {
			r.created = append(r.created, l.Name)
		}
	}
}

// PlannedTensor is a tensor that the plan changes.
type PlannedTensor struct {
	Tensor   string      `json:"tensor"`
	Module   string      `json:"module"`
	DType    string      `json:"dtype"`
	Scheme   string      `json:"scheme,omitempty"`  // how the base quantises it
	Recoded  bool        `json:"recoded,omitempty"` // the output has new codes; a quantised weight that is not recoded has plain values
	Shape    []uint64    `json:"shape"`
	Rank     int         `json:"rank,omitempty"`     // total rank of the updates
	Scale    float64     `json:"scale,omitempty"`    // ω·s if there is one update
	Method   string      `json:"method,omitempty"`   // of an update that is no thin product: its kind, or "difference"
	Replaced bool        `json:"replaced,omitempty"` // an adapter's tensor replaces it
	Added    bool        `json:"added,omitempty"`    // the base lacks it
	Was      []uint64    `json:"was,omitempty"`      // the base's shape, if it differs
	DoRA     bool        `json:"dora,omitempty"`     // DoRA: W + ΔW is m·V/‖V‖
	Rows     int         `json:"rows,omitempty"`     // number of replaced rows
	Updates  []TermShort `json:"updates,omitempty"`  // if there are several
}

// TermShort is one of several updates to a tensor.
type TermShort struct {
	Adapter string  `json:"adapter"`
	Rank    int     `json:"rank"`
	Scale   float64 `json:"scale"`
	Method  string  `json:"method,omitempty"` // of an update that is no thin product
}

// Tensors lists the tensors that change, in the order of the output.
func (p *Plan) Tensors() []PlannedTensor {
	all := make([]PlannedTensor, len(p.targets))
	for i, t := range p.targets {
		all[i] = p.describe(t)
	}
	return all
}

func (p *Plan) describe(t *target) PlannedTensor {
	d := PlannedTensor{Tensor: t.ref.Tensor.Name, Module: t.Module, DType: t.ref.Tensor.DType.String(), Scheme: t.ref.Tensor.Scheme, Shape: t.ref.Tensor.Shape, Replaced: t.Replace != nil, DoRA: t.DoRA != nil}
	if c := t.coded; c != nil {
		d.Shape = c.weight.ref.Tensor.Shape
		d.Tensor, d.Scheme, d.Recoded = c.weight.ref.Tensor.Name, c.codes.Scheme, true
	}
	if was, ok := p.shaped.Added[d.Tensor]; ok {
		d.Added, d.Was = was == nil, was
	}
	if t.Rows != nil {
		d.Rows = len(t.Rows.Order)
	}
	nUpdates := 0
	for i, a := range p.adapters {
		if u := t.update(i); u.Rank > 0 || u.Method != "" {
			u.Adapter = a.Name
			d.Rank += u.Rank
			d.Scale, d.Method = u.Scale, u.Method
			if nUpdates++; len(p.adapters) > 1 {
				d.Updates = append(d.Updates, u)
			}
		}
	}
	if nUpdates == 0 && len(t.undo) > 0 { // the plan only removes
		for _, s := range t.undo {
			u := summarize(s.terms, func(resolve.Term) bool { return true })
			d.Rank += u.Rank
			d.Scale = -u.Scale // the terms of a removal are negated
		}
		if len(t.undo) > 1 {
			d.Scale = 0
		}
	}
	if len(d.Updates) > 1 {
		d.Scale = 0
	} else {
		d.Updates = nil
	}
	return d
}

// update summarizes one adapter's update: the largest rank of any band, and the scale, or 0 if
// scales differ.
func (t *target) update(adapter int) TermShort {
	u := summarize(t.Terms, func(term resolve.Term) bool { return term.Adapter == adapter })
	for _, d := range t.Deltas {
		if d.Adapter != adapter {
			continue
		}
		if u.Rank == 0 && u.Method == "" {
			u.Scale = d.Scale
		} else if u.Scale != d.Scale {
			u.Scale = 0
		}
		u.Method = d.Method()
	}
	return u
}

func summarize(terms []resolve.Term, of func(resolve.Term) bool) (u TermShort) {
	ranks := make(map[int]int)
	for i := range terms {
		term := &terms[i]
		if !of(*term) || term.Residual != resolve.NoResidual {
			continue
		}
		if len(ranks) == 0 {
			u.Scale = term.Scale
		} else if u.Scale != term.Scale {
			u.Scale = 0
		}
		ranks[term.Band] += term.Rank
		u.Rank = max(u.Rank, ranks[term.Band])
	}
	return u
}

// OutputTensor is a tensor of the output and its place in a file.
type OutputTensor struct {
	File   string // as output.Info names it
	Name   string
	DType  dtype.Type
	Shape  []uint64
	Off    int64 // in bytes, from the start of the file
	NBytes int64
}

// OutputTensors lists all tensors of the output, changed or not, in the order of the files and of
// their data.
func (p *Plan) OutputTensors() []OutputTensor {
	var all []OutputTensor
	for _, f := range p.files {
		for i := range f.in.Tensors {
			t := &f.in.Tensors[i]
			all = append(all, OutputTensor{
				File: p.nameOf(f), Name: t.Name, DType: t.DType, Shape: t.Shape, Off: t.Off + f.shift, NBytes: t.NBytes,
			})
		}
	}
	return all
}
