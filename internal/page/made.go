package page

import (
	"fmt"
	"math"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

// Extraction returns the page of an extracted adapter.
func Extraction(h Head, r *rank.ExtractReport) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All layers", NameHead: "module", DetailName: "spectrum",
		Verdict: "The factors, as stored, miss " + figure(r.Rounded) + " of ‖Δ‖.",
		Facts: []Fact{
			{"Layers", number(len(r.Layers))}, {"Carried whole", number(len(r.Beside))}, {"Size", fileio.FormatBytes(r.Bytes)},
			{"Energy kept", figure(100*r.Energy) + " %"}, {"Error", figure(r.Error)}, {"Error as stored", figure(r.Rounded)},
			{"Part of tensors left out", figure(r.LeftOut)},
		},
	}
	p.Notes = append(append([]string{}, h.Notes...), r.Warnings...)
	p.table = newTable(len(r.Layers), func(i int) string { return r.Layers[i].Module })
	value := func(of func(l *rank.ExtractedLayer) float64) func(i int) float64 {
		return func(i int) float64 { return of(&r.Layers[i]) }
	}
	norm := value(func(l *rank.ExtractedLayer) float64 { return l.Frobenius })
	relative := value(func(l *rank.ExtractedLayer) float64 { return l.RelativeNorm })
	stored := value(func(l *rank.ExtractedLayer) float64 { return l.Rounded })
	p.heat("‖Δ‖ ÷ ‖W‖", "How much training changed a weight, relative to it.", relative)
	p.heat("Error", "‖Δ − s·B·A‖ ÷ ‖Δ‖, with the factors as stored: the part of a change that the adapter misses.", stored)
	p.text("m×n", "", func(i int) string { return size(r.Layers[i].M, r.Layers[i].N) })
	p.count("rank", "", func(i int) int { return r.Layers[i].Rank })
	p.number("‖Δ‖", "Frobenius norm of the change", norm)
	p.number("‖Δ‖÷‖W‖", "", relative)
	p.number("energy", "the share of ‖Δ‖² that the rank keeps", value(func(l *rank.ExtractedLayer) float64 { return l.Energy }))
	p.number("error", "‖Δ − s·B·A‖ ÷ ‖Δ‖ before rounding", value(func(l *rank.ExtractedLayer) float64 { return l.Error }))
	p.number("stored", "the same, with the factors as stored", stored)
	p.number("noise edge", "singular values below it are rounding noise", value(func(l *rank.ExtractedLayer) float64 { return l.NoiseEdge }))
	p.spectra(func(i int) ([]float64, float64) { return r.Layers[i].SingularValues, r.Layers[i].Frobenius })
	var whole []string
	for _, b := range r.Beside {
		whole = append(whole, fmt.Sprintf("%s: %s, %s", b.Tensor, b.Why, fileio.FormatBytes(b.Bytes)))
	}
	p.addList("Carried whole", whole)
	p.addList("Not in the adapter", skipped(r.Skipped))
	return p.render()
}

// Combination returns the page of an adapter that was resized, or combined of others.
func Combination(h Head, r *rank.CombineReport) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All layers", NameHead: "module", DetailName: "spectrum",
		Verdict: "The factors, as stored, miss " + figure(r.Rounded) + " of ‖ΔW‖.",
		Facts: []Fact{
			{"Layers", number(len(r.Layers))}, {"Size", fileio.FormatBytes(r.Bytes)}, {"Size before", fileio.FormatBytes(r.Was)},
			{"Energy kept", figure(100*r.Energy) + " %"}, {"Error", figure(r.Error)}, {"Error as stored", figure(r.Rounded)},
		},
	}
	p.Notes = append(append([]string{}, h.Notes...), r.Warnings...)
	p.table = newTable(len(r.Layers), func(i int) string { return r.Layers[i].Module })
	value := func(of func(l *rank.CombinedLayer) float64) func(i int) float64 {
		return func(i int) float64 { return of(&r.Layers[i]) }
	}
	norm := value(func(l *rank.CombinedLayer) float64 { return l.Frobenius })
	stored := value(func(l *rank.CombinedLayer) float64 { return l.Rounded })
	p.heat("‖ΔW‖", "The Frobenius norm of the combined update.", norm)
	p.heat("Rank", "The rank of the new factors.", value(func(l *rank.CombinedLayer) float64 { return float64(l.Rank) }))
	p.heat("Error", "‖ΔW − s·B·A‖ ÷ ‖ΔW‖, with the factors as stored.", stored)
	p.text("m×n", "", func(i int) string { return size(r.Layers[i].M, r.Layers[i].N) })
	p.text("ranks before", "", func(i int) string { return strings.Trim(fmt.Sprint(r.Layers[i].Was), "[]") })
	p.count("rank", "", func(i int) int { return r.Layers[i].Rank })
	p.number("‖ΔW‖", "Frobenius norm of Σ weight·s·B·A", norm)
	p.number("energy", "the share of ‖ΔW‖² that the rank keeps", value(func(l *rank.CombinedLayer) float64 { return l.Energy }))
	p.number("error", "‖ΔW − s·B·A‖ ÷ ‖ΔW‖ before rounding", value(func(l *rank.CombinedLayer) float64 { return l.Error }))
	p.number("stored", "the same, with the factors as stored", stored)
	p.spectra(func(i int) ([]float64, float64) { return r.Layers[i].SingularValues, r.Layers[i].Frobenius })
	p.addList("Not in the adapter", skipped(r.Skipped))
	return p.render()
}

// skipped describes tensors that are left out, except those that did not change.
func skipped(tensors []rank.Skipped) (all []string) {
	for _, x := range tensors {
		switch {
		case x.Why == rank.Unchanged:
		case x.Share > 0:
			all = append(all, fmt.Sprintf("%s: %s (%.4f of ‖Δ‖)", x.Tensor, x.Why, x.Share))
		default:
			all = append(all, x.Tensor+": "+x.Why)
		}
	}
	return all
}

// Merge returns the page of a merge, an unmerge or a swap. left says what a quantisation would
// leave of the merge; nil adds nothing.
func Merge(h Head, r *merge.Report, left *report.SurvivalMap) ([]byte, error) {
	p := &page{Head: h, LayersTitle: "All updated tensors", NameHead: "tensor"}
	p.Notes = append(append([]string{}, h.Notes...), r.Warnings...)
	updated, takenOut := make(map[string]*merge.LayerReport), make(map[string]*merge.TakenOut)
	var names []string
	for i := range r.Layers {
		updated[r.Layers[i].Tensor] = &r.Layers[i]
		names = append(names, r.Layers[i].Tensor)
	}
	for i := range r.TakenOut {
		x := &r.TakenOut[i]
		if takenOut[x.Tensor] = x; updated[x.Tensor] == nil {
			names = append(names, x.Tensor)
		}
	}
	p.table = newTable(len(names), func(i int) string { return names[i] })
	if len(r.TakenOut) > 0 {
		p.addTakenOut(r, func(i int) *merge.TakenOut { return takenOut[names[i]] })
	}
	if len(r.Layers) > 0 || len(r.TakenOut) == 0 {
		p.addUpdated(r, func(i int) *merge.LayerReport { return updated[names[i]] })
	}
	if left != nil {
		p.addSurvivals(left, names)
	}
	p.Facts = append(p.Facts, Fact{"Written", fileio.FormatBytes(r.BytesWritten)})
	if u := r.Undo; u != nil {
		p.Facts = append(p.Facts, Fact{"Undo record", fileio.FormatBytes(u.Bytes)}, Fact{"Its bits per weight", figure(u.BitsPerWeight)})
	}
	p.addList("Replaced tensors", texts(r.Replaced, func(t merge.PlannedTensor) string { return t.Tensor + ": " + typed(t.DType, t.Shape) }))
	return p.render()
}

// addUpdated adds what a merge did to tensors; of gives nil for one that it did not update.
func (p *page) addUpdated(r *merge.Report, of func(i int) *merge.LayerReport) {
	p.Facts = append(p.Facts, Fact{"Updated tensors", number(len(r.Layers))}, Fact{"Replaced tensors", number(len(r.Replaced))},
		Fact{"Updated elements", number(r.Elements)}, Fact{"Decided in exact arithmetic", number(r.ExactElements)},
		Fact{"‖Δ‖ ÷ ‖W‖", figure(float64(r.Total.RelativeNorm))}, Fact{"Lost to rounding", figure(float64(r.Total.RetentionError))},
		Fact{"Unchanged elements", figure(100*float64(r.Total.UnchangedShare)) + " %"}, Fact{"NaN or infinite", number(r.NonFiniteAfter)})
	value := func(f func(l *merge.LayerReport) merge.Figure) func(i int) float64 {
		return func(i int) float64 {
			if l := of(i); l != nil {
				return float64(f(l))
			}
			return math.NaN()
		}
	}
	text := func(f func(l *merge.LayerReport) string) func(i int) string {
		return func(i int) string {
			if l := of(i); l != nil {
				return f(l)
			}
			return ""
		}
	}
	relative := value(func(l *merge.LayerReport) merge.Figure { return l.RelativeNorm })
	lost := value(func(l *merge.LayerReport) merge.Figure { return l.RetentionError })
	p.heat("‖Δ‖ ÷ ‖W‖", "How much the merge changes a weight, relative to it.", relative)
	p.heat("Lost to rounding", "‖(out − W) − Δ‖ ÷ ‖Δ‖: the part of the update that the dtype of the checkpoint rounds away.", lost)
	p.text("dtype", "", text(func(l *merge.LayerReport) string { return l.DType }))
	p.text("shape", "", text(func(l *merge.LayerReport) string { return fmt.Sprint(l.Shape) }))
	p.text("method", "", text(methodText))
	p.number("rank", "the sum of the ranks of its updates", value(func(l *merge.LayerReport) merge.Figure { return merge.Figure(l.Rank) }))
	p.number("‖Δ‖÷‖W‖", "", relative)
	p.number("lost", "‖(out − W) − Δ‖ ÷ ‖Δ‖", lost)
	p.number("cosine", "between Δ and out − W", value(func(l *merge.LayerReport) merge.Figure { return l.Cosine }))
	p.number("unchanged", "the share of the elements that stayed", value(func(l *merge.LayerReport) merge.Figure { return l.UnchangedShare }))
}

// addTakenOut adds what a removal did to tensors; of gives nil for one that it did not restore.
func (p *page) addTakenOut(r *merge.Report, of func(i int) *merge.TakenOut) {
	var elements, predictions, corrected, mayDiffer int64
	for _, x := range r.TakenOut {
		elements, predictions = elements+x.Elements, predictions+x.Elements*int64(x.Merges)
		corrected, mayDiffer = corrected+x.Corrected, mayDiffer+x.MayDiffer
	}
	p.LayersTitle = "All restored tensors"
	if len(r.Layers) > 0 {
		p.LayersTitle = "All tensors that were restored or updated"
	}
	p.Verdict = "Without the removed adapters, every element is as before their merge."
	if mayDiffer > 0 {
		p.Verdict, p.IsBad = fmt.Sprintf("At most %s of %s differ from before the merge.", number(mayDiffer), fault.Count(elements, "element")), true
	}
	p.Facts = append(p.Facts, Fact{"Restored tensors", number(len(r.TakenOut))}, Fact{"Restored elements", number(elements)},
		Fact{"Corrected by the record", figure(100*ratio(float64(corrected), float64(predictions))) + " %"}, Fact{"May differ", number(mayDiffer)})
	share := func(n func(x *merge.TakenOut) int64) func(i int) float64 {
		return func(i int) float64 {
			if x := of(i); x != nil {
				return ratio(float64(n(x)), float64(x.Elements))
			}
			return math.NaN()
		}
	}
	fixed := share(func(x *merge.TakenOut) int64 { return x.Corrected })
	p.heat("Corrected", "The elements of a tensor that subtraction alone got wrong and the record corrected, for each element; above 1 if several merges were removed.", fixed)
	if mayDiffer > 0 {
		p.heat("May differ", "The share of the elements of a tensor that may differ from before the merge.", share(func(x *merge.TakenOut) int64 { return x.MayDiffer }))
	}
	p.number("elements", "restored ones", func(i int) float64 {
		if x := of(i); x != nil {
			return float64(x.Elements)
		}
		return math.NaN()
	})
	p.number("corrected", "by the record, for each element", fixed)
	p.number("may differ", "the share of the elements", share(func(x *merge.TakenOut) int64 { return x.MayDiffer }))
}

// addSurvivals adds what a quantisation would leave of tensors, whose layers it joins.
func (p *page) addSurvivals(m *report.SurvivalMap, names []string) {
	layers := make(map[string][]*report.Survival)
	for i := range m.Layers {
		l := &m.Layers[i]
		layers[l.Tensor] = append(layers[l.Tensor], &l.Survival)
	}
	p.addRequantised(&m.Requantised)
	p.addSurvival(strings.ToUpper(m.As), func(i int) (kept, err float64) { return report.Together(layers[names[i]]) })
	p.addList("Not quantised", texts(m.NotMeasured, func(n report.NotMeasured) string { return n.Tensor + ": " + n.Why }))
}

func methodText(l *merge.LayerReport) string {
	if l.DoRA {
		return "DoRA"
	}
	return l.Method
}
