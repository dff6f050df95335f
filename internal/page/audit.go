package page

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/audit"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

// Audit returns the page of an audit of a merge.
func Audit(h Head, r *audit.Report) ([]byte, error) {
	n := r.Counts()
	p := &page{
		Head: h, LayersTitle: "All tensors, the wrong ones first", NameHead: "tensor",
		Verdict: r.Text("the base", "the checkpoint"), IsBad: r.Verdict != audit.AsClaimed,
		Facts: facts(
			Fact{"Tensors", number(len(r.Tensors))}, Fact{"As claimed", number(n[audit.AsClaimed])}, Fact{"Not as claimed", number(n[audit.NotAsClaimed])},
			Fact{"Inconclusive", number(n[audit.Inconclusive])}, Fact{"Rounding", string(r.Rounding)}, Fact{"Fits as well", r.Others()},
			Fact{"Margin", marginText(r)}, Fact{"Other dtypes", r.Casts}, Fact{"Other names", r.Renamed},
		),
	}
	for _, g := range r.Groups() {
		p.Reasons = append(p.Reasons, fmt.Sprintf("%s: %s", fault.Count(len(g.Tensors), "tensor"), g.Text))
	}
	p.Notes = append(append([]string{}, h.Notes...), r.Warnings...)
	if r.Rounding != "" {
		p.Notes = append(p.Notes, fmt.Sprintf("The rounding %s: %s.", r.Rounding, r.Rounding.Text()))
	}
	p.addTensors(r)
	p.addList("Adapters", texts(r.Adapters, func(a audit.FittedAdapter) string {
		if w := float64(a.Value); w == w {
			return fmt.Sprintf("%s: claimed weight %g, found %.4g ± %.1g", a.Adapter, a.Claimed, w, float64(a.Error))
		}
		return fmt.Sprintf("%s: claimed weight %g", a.Adapter, a.Claimed)
	}))
	p.addList("Merges that the checkpoint records", r.Stamps)
	p.addList("Findings", countsText(r))
	return p.render()
}

// marginText is the margin of the rounding, "" if there is none.
func marginText(r *audit.Report) string {
	if x := float64(r.Margin); x > 0 {
		return figure(100*x) + " % of the elements"
	}
	return ""
}

// countsText counts the tensors of each finding.
func countsText(r *audit.Report) (all []string) {
	n := make(map[audit.Finding]int)
	for i := range r.Tensors {
		n[r.Tensors[i].Finding]++
	}
	for _, f := range audit.Findings() {
		if n[f] > 0 {
			all = append(all, fmt.Sprintf("%s: %s; %s", f.Name(), fault.Count(n[f], "tensor"), f.Text()))
		}
	}
	return all
}

// verdictClasses are the classes of cells of right, unclear and wrong tensors.
var verdictClasses = map[audit.Verdict]string{audit.AsClaimed: "h2", audit.Inconclusive: "m3", audit.NotAsClaimed: "m9"}

// addTensors adds the heat maps and the table of all tensors.
func (p *page) addTensors(r *audit.Report) {
	all := make([]*audit.Tensor, len(r.Tensors))
	for i := range r.Tensors {
		all[i] = &r.Tensors[i]
	}
	slices.SortStableFunc(all, audit.Worse)
	p.table = newTable(len(all), func(i int) string { return all[i].Tensor })
	p.heatOfStates("Verdict", "The finding of each tensor, coloured by the verdict: as claimed, inconclusive, not as claimed.",
		[]string{"h2", "m3", "m9"}, "as claimed", "not as claimed",
		func(i int) (class, text string) { return verdictClasses[all[i].Verdict], all[i].Finding.Name() })
	value := func(of func(t *audit.Tensor) merge.Figure) func(i int) float64 {
		return func(i int) float64 { return float64(of(all[i])) }
	}
	text := func(of func(t *audit.Tensor) string) func(i int) string {
		return func(i int) string { return of(all[i]) }
	}
	change := value(func(t *audit.Tensor) merge.Figure { return t.Change })
	residual := value(func(t *audit.Tensor) merge.Figure { return t.Residual })
	differ := func(i int) float64 { return ratio(float64(all[i].Different), float64(all[i].Elements)) }
	p.heat("‖M − W‖ ÷ ‖W‖", "The change of a tensor, relative to it, where the audit has read all values.", change)
	p.heat("Residual", "‖M − X‖ ÷ ‖M − W‖: the part of the change that the best weights of the adapters leave.", residual)
	p.heat("Differ", "The share of the elements that differ from the exact merge, or from the base where no adapter changes a tensor.", differ)
	p.text("verdict", "", text(func(t *audit.Tensor) string { return string(t.Verdict) }))
	p.text("finding", "", text(func(t *audit.Tensor) string { return string(t.Finding) }))
	p.text("explanation", "", text(func(t *audit.Tensor) string { return t.Text }))
	p.text("module", "of the adapter", text(func(t *audit.Tensor) string { return t.Module }))
	p.text("dtype", "", text(func(t *audit.Tensor) string { return t.DType }))
	p.text("merged dtype", "if it is another one", text(func(t *audit.Tensor) string {
		if t.MergedDType == t.DType {
			return ""
		}
		return cmp.Or(t.MergedDType, "missing")
	}))
	p.text("file", "of the merged checkpoint", text(func(t *audit.Tensor) string { return t.File }))
	p.text("rounding", "the way to round that explains every element", text(func(t *audit.Tensor) string { return string(t.Rounding) }))
	p.text("fits as well", "other ways to round that do", text(func(t *audit.Tensor) string { return roundingsText(t.OtherRoundings) }))
	p.number("margin", "the share of the elements that the best of all other ways does not explain", value(func(t *audit.Tensor) merge.Figure { return t.Margin }))
	p.number("elements", "", func(i int) float64 { return float64(all[i].Elements) })
	p.number("differ", "elements that differ from the exact merge, or from the base", func(i int) float64 { return float64(all[i].Different) })
	p.number("unexplained", "elements that differ from the best way to round", func(i int) float64 { return float64(all[i].Unexplained) })
	p.text("weights", "of the adapters, as they fit best", text(weightsText))
	p.number("change", "‖M − W‖ ÷ ‖W‖", change)
	p.number("residual", "‖M − X‖ ÷ ‖M − W‖", residual)
	p.count("rank", "of an unexplained change", func(i int) int { return cmp.Or(all[i].Rank, -1) })
}

func roundingsText(all []audit.Rounding) (text string) {
	for i, x := range all {
		if i > 0 {
			text += ", "
		}
		text += string(x)
	}
	return text
}

// weightsText lists the fitted weights of a tensor.
func weightsText(t *audit.Tensor) (text string) {
	for i, w := range t.Weights {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%.4g ± %.1g", float64(w.Value), float64(w.Error))
	}
	return text
}

// Unclaimed returns the page of a change without an adapter.
func Unclaimed(h Head, r *audit.Unclaimed) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All changed matrices", NameHead: "module", DetailName: "spectrum", Verdict: "The change: " + r.Text,
		Facts: []Fact{{"Kind", string(r.Kind)}, {"Changed matrices", number(len(r.Layers))}, {"Other changed tensors", number(len(r.Whole))}, {"New, gone or reshaped", number(len(r.Elsewhere))}},
	}
	if r.Rank > 0 {
		p.Facts = append(p.Facts, Fact{"Rank", number(r.Rank)})
	}
	p.table = newTable(len(r.Layers), func(i int) string { return r.Layers[i].Module })
	value := func(of func(l *rank.ExtractedLayer) float64) func(i int) float64 {
		return func(i int) float64 { return of(&r.Layers[i]) }
	}
	norm := value(func(l *rank.ExtractedLayer) float64 { return l.Frobenius })
	relative := value(func(l *rank.ExtractedLayer) float64 { return l.RelativeNorm })
	p.heat("Rank", "The number of singular values of the change above the noise of rounding.", value(func(l *rank.ExtractedLayer) float64 { return float64(l.Rank) }))
	p.heat("‖Δ‖ ÷ ‖W‖", "How much a weight has changed, relative to it.", relative)
	p.text("m×n", "", func(i int) string { return size(r.Layers[i].M, r.Layers[i].N) })
	p.count("rank", "", func(i int) int { return r.Layers[i].Rank })
	p.number("‖Δ‖", "Frobenius norm of the change", norm)
	p.number("‖Δ‖÷‖W‖", "", relative)
	p.number("energy", "the share of ‖Δ‖² that the rank keeps", value(func(l *rank.ExtractedLayer) float64 { return l.Energy }))
	p.number("noise edge", "singular values below it are rounding noise", value(func(l *rank.ExtractedLayer) float64 {
		return cmp.Or(l.NoiseEdge, math.NaN())
	}))
	p.spectra(func(i int) ([]float64, float64) { return r.Layers[i].SingularValues, r.Layers[i].Frobenius })
	p.addList("Changed tensors that are not decomposed", r.Whole)
	p.addList("New, gone or reshaped tensors", r.Elsewhere)
	return p.render()
}
