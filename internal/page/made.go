package page

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/internal/fileio"
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

// Merge returns the page of a merge, an unmerge or a swap.
func Merge(h Head, r *merge.Report) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All updated tensors", NameHead: "tensor",
		Facts: []Fact{
			{"Updated tensors", number(len(r.Layers))}, {"Replaced tensors", number(len(r.Replaced))}, {"Written", fileio.FormatBytes(r.BytesWritten)},
			{"Updated elements", number(r.Elements)}, {"Decided in exact arithmetic", number(r.ExactElements)},
			{"‖Δ‖ ÷ ‖W‖", figure(float64(r.Total.RelativeNorm))}, {"Lost to rounding", figure(float64(r.Total.RetentionError))},
			{"Unchanged elements", figure(100*float64(r.Total.UnchangedShare)) + " %"}, {"NaN or infinite", number(r.NonFiniteAfter)},
		},
	}
	p.Notes = append(append([]string{}, h.Notes...), r.Warnings...)
	p.table = newTable(len(r.Layers), func(i int) string { return r.Layers[i].Tensor })
	value := func(of func(l *merge.LayerReport) merge.Figure) func(i int) float64 {
		return func(i int) float64 { return float64(of(&r.Layers[i])) }
	}
	relative := value(func(l *merge.LayerReport) merge.Figure { return l.RelativeNorm })
	lost := value(func(l *merge.LayerReport) merge.Figure { return l.RetentionError })
	p.heat("‖Δ‖ ÷ ‖W‖", "How much the merge changes a weight, relative to it.", relative)
	p.heat("Lost to rounding", "‖(out − W) − Δ‖ ÷ ‖Δ‖: the part of the update that the dtype of the checkpoint rounds away.", lost)
	p.text("dtype", "", func(i int) string { return r.Layers[i].DType })
	p.text("shape", "", func(i int) string { return fmt.Sprint(r.Layers[i].Shape) })
	p.text("method", "", func(i int) string { return methodText(&r.Layers[i]) })
	p.count("rank", "the sum of the ranks of its updates", func(i int) int { return r.Layers[i].Rank })
	p.number("‖Δ‖÷‖W‖", "", relative)
	p.number("lost", "‖(out − W) − Δ‖ ÷ ‖Δ‖", lost)
	p.number("cosine", "between Δ and out − W", value(func(l *merge.LayerReport) merge.Figure { return l.Cosine }))
	p.number("unchanged", "the share of the elements that stayed", value(func(l *merge.LayerReport) merge.Figure { return l.UnchangedShare }))
	var replaced []string
	for i := range r.Replaced {
		replaced = append(replaced, r.Replaced[i].Tensor+": "+typed(r.Replaced[i].DType, r.Replaced[i].Shape))
	}
	p.addList("Replaced tensors", replaced)
	return p.render()
}

func methodText(l *merge.LayerReport) string {
	if l.DoRA {
		return "DoRA"
	}
	return l.Method
}
