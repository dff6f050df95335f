package page

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/rank"
)

// Comparison returns the page of a comparison of two adapters.
func Comparison(h Head, r *rank.Comparison) ([]byte, error) {
	x := rank.TotalsOf(r.Layers)
	where := ""
	if r.IsPartial() {
		where = " in the layers of both"
	}
	p := &page{
		Head: h, LayersTitle: "Layers of both", NameHead: "module", DetailName: "table of similarities φ",
		Verdict: fmt.Sprintf("‖ΔA − ΔB‖ is %.4g%s, with ‖ΔA‖ = %.4g and ‖ΔB‖ = %.4g; the cosine is %.4f", x.NormDifference, where, x.NormA, x.NormB, x.Cosine),
		Facts: []Fact{
			{"Layers of both", number(len(r.Layers))}, {"Only in A", number(len(r.OnlyA))}, {"Only in B", number(len(r.OnlyB))},
			{"‖ΔA‖", figure(r.NormA)}, {"‖ΔB‖", figure(r.NormB)}, {"‖ΔA − ΔB‖", figure(r.NormDifference)}, {"Cosine", figure(r.Cosine)},
			{"‖ΔA + ΔB‖² ÷ (‖ΔA‖² + ‖ΔB‖²)", figure(r.Interference)},
		},
	}
	switch {
	case r.Same():
		p.Verdict = "Both adapters do the same."
	case len(r.Layers) == 0:
		p.Verdict = "The adapters have no layer in common."
	}
	p.table = newTable(len(r.Layers), func(i int) string { return r.Layers[i].Module })
	addCompared(&p.table, r.Layers)
	p.addList("Only in A", r.OnlyA)
	p.addList("Only in B", r.OnlyB)
	var others []string
	for _, x := range r.NotCompared {
		others = append(others, x.Module+": "+x.Why)
	}
	p.addList("Not compared", others)
	p.addList("Other tensors", comparedTensors(r.Tensors))
	return p.render()
}

// addCompared adds the columns and the maps of a comparison.
func addCompared(t *table, layers []rank.ComparedLayer) {
	value := func(of func(l *rank.ComparedLayer) float64) func(i int) float64 {
		return func(i int) float64 { return of(&layers[i]) }
	}
	cosine := value(func(l *rank.ComparedLayer) float64 { return l.Cosine })
	overlap := value(func(l *rank.ComparedLayer) float64 { return l.Overlap })
	difference := value(func(l *rank.ComparedLayer) float64 { return l.NormDifference })
	t.heat("‖ΔA − ΔB‖", "The Frobenius norm of the difference of both updates.", difference)
	t.heatOfShares("Cosine", "1 for the same direction, 0 for updates that do not touch each other, −1 for opposite ones.", cosine)
	t.heatOfShares("Overlap φ", "Of the spaces of the first input directions: 1 for the same space, 0 for orthogonal ones.", overlap)

	t.text("m×n", "", func(i int) string { return size(layers[i].M, layers[i].N) })
	t.count("rank A", "", func(i int) int { return layers[i].RankA })
	t.count("rank B", "", func(i int) int { return layers[i].RankB })
	t.number("scale A", "", value(func(l *rank.ComparedLayer) float64 { return l.ScaleA }))
	t.number("scale B", "", value(func(l *rank.ComparedLayer) float64 { return l.ScaleB }))
	t.number("‖ΔA‖", "", value(func(l *rank.ComparedLayer) float64 { return l.NormA }))
	t.number("‖ΔB‖", "", value(func(l *rank.ComparedLayer) float64 { return l.NormB }))
	t.number("‖ΔA−ΔB‖", "", difference)
	t.number("cosine", "⟨ΔA, ΔB⟩ ÷ ‖ΔA‖‖ΔB‖", cosine)
	t.number("sum", "‖ΔA + ΔB‖² ÷ (‖ΔA‖² + ‖ΔB‖²): below 1 they take from each other, above 1 they add up",
		value(func(l *rank.ComparedLayer) float64 { return l.Interference }))
	t.count("directions", "the most that φ compares", func(i int) int { return layers[i].Directions })
	t.number("overlap", "φ of the first input directions", overlap)
	t.number("random", "φ of random spaces, on average", value(func(l *rank.ComparedLayer) float64 { return l.Random }))
	t.number("overlap out", "φ of the first output directions", value(func(l *rank.ComparedLayer) float64 { return l.OverlapOut }))
	t.number("random out", "", value(func(l *rank.ComparedLayer) float64 { return l.RandomOut }))
	t.similarities(func(i int) [][]float64 { return layers[i].Similarity })
}

// comparedTensors describes tensors that are no factors.
func comparedTensors(tensors []rank.ComparedTensor) (all []string) {
	for _, x := range tensors {
		all = append(all, fmt.Sprintf("%s %s: %s", x.What, x.Tensor, x.Text()))
	}
	return all
}

// Checkpoints returns the page of a comparison of two checkpoints.
func Checkpoints(h Head, r *rank.CheckpointComparison) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All tensors", NameHead: "tensor",
		Verdict: fmt.Sprintf("Of %s %d are the same and %d changed.", fault.Count(len(r.Tensors), "tensor"), r.Identical, r.Changed),
		Facts: []Fact{
			{"Same", number(r.Identical)}, {"Changed", number(r.Changed)}, {"Reshaped", number(r.Reshaped)},
			{"Only in A", number(r.OnlyA)}, {"Only in B", number(r.OnlyB)},
			{"‖B − A‖", figure(r.Norm)}, {"‖B − A‖ ÷ ‖A‖", figure(r.Relative)},
		},
	}
	p.Notes = slices.Clone(h.Notes)
	if r.Renamed != "" {
		p.Notes = append(p.Notes, "The names differ: "+r.Renamed)
	}
	for _, u := range slices.Concat(r.UnreadA, r.UnreadB) {
		p.Notes = append(p.Notes, "Cannot be read: "+u.Why)
	}
	for _, x := range r.Tensors {
		if x.NoSpectrum != "" {
			p.Notes = append(p.Notes, fmt.Sprintf("%s has no spectrum: %s", x.Tensor, x.NoSpectrum))
		}
	}
	p.table = newTable(len(r.Tensors), func(i int) string { return r.Tensors[i].Tensor })
	both := func(of func(x *rank.CheckpointTensor) float64) func(i int) float64 {
		return func(i int) float64 {
			if x := &r.Tensors[i]; x.Status == rank.Identical || x.Status == rank.Changed {
				return of(x)
			}
			return math.NaN()
		}
	}
	relative := both(func(x *rank.CheckpointTensor) float64 { return x.Relative })
	p.heat("‖B − A‖ ÷ ‖A‖", "The change of a tensor, relative to its Frobenius norm in A.", relative)
	p.text("status", "", func(i int) string { return r.Tensors[i].Status.String() })
	p.text("A", "", func(i int) string { return typed(r.Tensors[i].DTypeA, r.Tensors[i].ShapeA) })
	p.text("B", "", func(i int) string { return typed(r.Tensors[i].DTypeB, r.Tensors[i].ShapeB) })
	p.number("‖B−A‖÷‖A‖", "", relative)
	p.number("‖B−A‖", "", both(func(x *rank.CheckpointTensor) float64 { return x.Norm }))
	p.number("largest", "the largest |B − A|", both(func(x *rank.CheckpointTensor) float64 { return x.Max }))
	p.number("elements", "that differ", both(func(x *rank.CheckpointTensor) float64 { return float64(x.Elements) }))
	p.addChanges(r.Tensors)
	return p.render()
}

// addChanges adds the spectra of the changes, if they are known.
func (p *page) addChanges(tensors []rank.CheckpointTensor) {
	if !slices.ContainsFunc(tensors, func(x rank.CheckpointTensor) bool { return x.ChangeSpectrum != nil }) {
		return
	}
	p.DetailName = "spectrum of the change"
	number := func(of func(s *rank.ChangeSpectrum) float64) func(i int) float64 {
		return func(i int) float64 {
			if s := tensors[i].ChangeSpectrum; s != nil {
				return of(s)
			}
			return math.NaN()
		}
	}
	effective := number(func(s *rank.ChangeSpectrum) float64 { return s.EffectiveRank })
	p.heat("Effective rank", "The number of directions in which a tensor changed: e to the entropy of the energies, estimated.", effective)
	p.number("stable", "the stable rank (‖B − A‖/σ1)²", number(func(s *rank.ChangeSpectrum) float64 { return s.StableRank }))
	p.number("effective", "the effective rank, e to the entropy of the energies, estimated", effective)
	p.number("at least", "bounds of the effective rank", number(func(s *rank.ChangeSpectrum) float64 { return s.EffectiveLeast }))
	p.number("at most", "", number(func(s *rank.ChangeSpectrum) float64 { return s.EffectiveMost }))
	p.text("90 %", "singular values with this share of the energy ‖B − A‖²", func(i int) string { return rank90Text(tensors[i].ChangeSpectrum) })
	p.spectra(func(i int) ([]float64, float64) {
		if s := tensors[i].ChangeSpectrum; s != nil {
			return s.SingularValues, tensors[i].Norm
		}
		return nil, 0
	})
}

// rank90Text is the number of singular values with 90 % of the energy, "" without a spectrum.
func rank90Text(s *rank.ChangeSpectrum) string {
	switch {
	case s == nil:
		return ""
	case s.Rank90 == 0:
		return fmt.Sprintf("> %d", rank.ChangeRank)
	}
	return strconv.Itoa(s.Rank90)
}

// Change returns the page of a comparison of an adapter with the difference of two checkpoints.
func Change(h Head, r *report.OnChange) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All layers", NameHead: "module",
		Verdict: fmt.Sprintf("‖Δ − ΔW‖ is %s of ‖Δ‖ in the layers of the adapter; Δ is the difference of the checkpoints.", figure(ratio(r.Residual, r.Change))),
		Facts: []Fact{
			{"Layers", number(len(r.Layers))}, {"‖Δ‖", figure(r.Change)}, {"‖ΔW‖", figure(r.Norm)}, {"‖Δ − ΔW‖", figure(r.Residual)},
			{"Cosine", figure(r.Cosine)}, {"Best weight", figure(r.Weight)}, {"Also differ", number(len(r.Elsewhere))},
		},
	}
	if len(r.Options) > 0 {
		p.Facts = append(p.Facts, Fact{"Merged with", strings.Join(r.Options, " ")})
	}
	switch {
	case len(r.Layers) == 0:
		p.Verdict = "No layer of the adapter could be compared with the difference."
	case r.Change == 0:
		p.Verdict = "The checkpoints do not differ in the layers of the adapter."
	}
	p.table = newTable(len(r.Layers), func(i int) string { return r.Layers[i].Name() })
	value := func(of func(l *report.LayerOnChange) float64) func(i int) float64 {
		return func(i int) float64 { return of(&r.Layers[i]) }
	}
	change := value(func(l *report.LayerOnChange) float64 { return l.Change })
	left := value(func(l *report.LayerOnChange) float64 { return ratio(l.Residual, l.Change) })
	cosine := value(func(l *report.LayerOnChange) float64 { return l.Cosine })
	p.heat("‖Δ‖", "The Frobenius norm of TUNED − BASE where a layer changes it.", change)
	p.heat("‖Δ − ΔW‖ ÷ ‖Δ‖", "The part of the change that is not the adapter's: 0 if the adapter is all of it.", left)
	p.heatOfShares("Cosine", "Between Δ and ΔW: 1 for the same direction, 0 for none in common, −1 for opposite ones.", cosine)
	p.text("tensor", "", func(i int) string { return r.Layers[i].Tensor })
	p.number("‖Δ‖", "Frobenius norm of TUNED − BASE", change)
	p.number("‖ΔW‖", "Frobenius norm of s·B·A", value(func(l *report.LayerOnChange) float64 { return l.Norm }))
	p.number("‖Δ−ΔW‖", "", value(func(l *report.LayerOnChange) float64 { return l.Residual }))
	p.number("left", "‖Δ − ΔW‖ ÷ ‖Δ‖", left)
	p.number("cosine", "", cosine)
	p.number("weight", "the weight of ΔW that fits Δ best", value(func(l *report.LayerOnChange) float64 { return l.Weight }))
	p.addList("Also differ, and the adapter does not change them", r.Elsewhere)
	p.addList("Not measured", texts(r.NotMeasured, func(n report.NotMeasured) string { return n.Tensor + ": " + n.Why }))
	return p.render()
}

// Several returns the page of several adapters that are compared in pairs: the norm of each, and
// the cosine and the interference of each pair.
func Several(h Head, names []string, norms []float64, cosines, interference [][]float64) ([]byte, error) {
	p := &page{Head: h, LayersTitle: "All adapters", NameHead: "adapter"}
	p.table = newTable(len(names), func(i int) string { return names[i] })
	p.count("number", "of its column in the maps", func(i int) int { return i + 1 })
	p.number("‖ΔW‖", "Frobenius norm over all layers", func(i int) float64 { return norms[i] })
	p.Maps = []heatMap{
		*square("Cosine", "Of the ΔW of two adapters over all layers: 1 for the same direction, 0 for updates that do not touch each other.",
			names, cosines, &shades{most: 1}),
		*square("Sum", "‖ΔA + ΔB‖² ÷ (‖ΔA‖² + ‖ΔB‖²): below 1 they take from each other when both are merged, above 1 they add up.",
			names, interference, &shades{most: 2}),
	}
	return p.render()
}

// square makes a heat map of a value for each pair.
func square(name, meaning string, names []string, values [][]float64, s *shades) *heatMap {
	var all []float64
	for _, row := range values {
		all = append(all, row...)
	}
	if least := slices.Min(all); least < 0 {
		s.least = -1
	}
	text := formatOf(all, 3)
	m := &heatMap{Name: name, Meaning: meaning, Corner: "adapter", Least: text(s.least), Most: text(s.most), Legend: s.legend()}
	for i, row := range values {
		m.Columns = append(m.Columns, strconv.Itoa(i+1))
		r := heatRow{Name: fmt.Sprintf("%d %s", i+1, names[i])}
		for _, v := range row {
			r.Cells = append(r.Cells, heatCell{Class: s.class(v), Text: text(v), Layer: i})
		}
		m.Rows = append(m.Rows, r)
	}
	return m
}
