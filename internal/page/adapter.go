package page

import (
	"fmt"
	"math"
	"strings"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/report"
)

// Adapter returns the page of an adapter. Its report should have spectra.
func Adapter(h Head, r *report.Adapter) ([]byte, error) {
	p := &page{
		Head: h, Verdict: "merge applies it", Reasons: r.Methods, Facts: adapterFacts(r),
		LayersTitle: "All layers", NameHead: "module", DetailName: "spectrum",
	}
	if !r.Mergeable {
		p.Verdict, p.IsBad, p.Reasons = "merge refuses it", true, append(append([]string{}, r.Refusals...), r.Methods...)
	}
	p.Notes = adapterNotes(h.Notes, r)
	p.table = newTable(len(r.Layers), func(i int) string { return r.Layers[i].Module })
	addLayers(&p.table, r)
	if r.OnBase != nil {
		p.addBase(r)
	}
	var others []string
	for _, b := range r.Beside {
		others = append(others, fmt.Sprintf("%s: %s, %s %d", b.Target, b.Action, b.DType, b.Shape))
	}
	p.addList("Tensors beside the layers", others)
	var files []string
	for _, f := range r.Unusual {
		files = append(files, fmt.Sprintf("%s: %s, %s", f.Name, f.Kind, fileio.FormatBytes(f.Bytes)))
	}
	p.addList("Unusual files in its folder", files)
	return p.render()
}

// adapterFacts is the summary of an adapter.
func adapterFacts(r *report.Adapter) (all []Fact) {
	add := func(name, value string) {
		if value != "" {
			all = append(all, Fact{name, value})
		}
	}
	add("Method", r.Method)
	add("Dialect", r.Dialect)
	add("Layers", number(len(r.Layers)))
	add("Parameters", number(r.Parameters))
	add("Size", fileio.FormatBytes(r.Bytes))
	add("Dtypes", dtypesText(r.DTypes))
	add("Base", strings.TrimSpace(r.Base+" "+r.Revision))
	add("Licence", r.License)
	add("Datasets", strings.Join(r.Datasets, ", "))
	if r.Training != nil {
		add("Title", r.Training.Title)
		add("Trigger", r.Training.Trigger)
		add("Trained by", r.Training.Program)
	}
	if p := r.PEFT; p != nil {
		add("PEFT", p.Version)
		add("Task", p.TaskType)
		add("Targets", someOf(p.TargetModules))
		add("Trained whole", someOf(p.ModulesToSave))
	}
	add("Files beside the weights", strings.Join(r.Attached, ", "))
	if r.Values != nil {
		add("Untrained layers", number(r.Values.Untrained))
	}
	add("Content id", r.Content)
	return all
}

// adapterNotes lists notes, and what is odd about the spectra.
func adapterNotes(notes []string, r *report.Adapter) []string {
	all := append([]string{}, r.Notes...)
	for _, f := range r.Findings {
		all = append(all, f.Text)
	}
	for i := range r.Layers {
		if l := &r.Layers[i]; l.NoSpectrum != "" {
			all = append(all, fmt.Sprintf("%s has no spectrum: %s", l.Module, l.NoSpectrum))
		}
	}
	return append(all, notes...)
}

// sizeMeaning explains the sizes of layers.
const sizeMeaning = "rows of B, columns of A; a letter is a size that only the base tells"

// addLayers adds the columns and the maps of an adapter.
func addLayers(t *table, r *report.Adapter) {
	spectral := func(value func(s *report.Spectrum) float64) func(i int) float64 {
		return func(i int) float64 {
			if s := r.Layers[i].Spectrum; s != nil {
				return value(s)
			}
			return math.NaN()
		}
	}
	ranks := func(value func(s *report.Spectrum) int) func(i int) int {
		return func(i int) int {
			if s := r.Layers[i].Spectrum; s != nil {
				return value(s)
			}
			return -1
		}
	}
	norm := spectral(func(s *report.Spectrum) float64 { return s.Frobenius })
	effective := spectral(func(s *report.Spectrum) float64 { return s.EffectiveRank })
	t.heat("‖ΔW‖", "The Frobenius norm of s·B·A: how much a layer changes.", norm)
	t.heat("Effective rank", "The number of directions that a layer uses: e to the entropy of its energies.", effective)

	t.text("m×n", sizeMeaning, func(i int) string { return r.Layers[i].Size() })
	t.text("dtype", "", func(i int) string { return r.Layers[i].DType })
	t.count("rank", "", func(i int) int { return r.Layers[i].Rank })
	t.number("alpha", "", func(i int) float64 { return r.Layers[i].Alpha })
	t.number("scale", "the s of s·B·A", func(i int) float64 { return r.Layers[i].Scale })
	t.number("‖ΔW‖", "Frobenius norm of s·B·A", norm)
	t.number("σ1", "largest singular value", spectral(func(s *report.Spectrum) float64 {
		if len(s.SingularValues) == 0 {
			return 0
		}
		return s.SingularValues[0]
	}))
	t.number("stable", "the stable rank (‖ΔW‖/σ1)²", spectral(func(s *report.Spectrum) float64 { return s.StableRank }))
	t.number("effective", "the effective rank, e to the entropy of the energies", effective)
	t.count("numerical", "singular values above the rounding of the dtype", ranks(func(s *report.Spectrum) int { return s.NumericalRank }))
	t.count("90 %", "", ranks(func(s *report.Spectrum) int { return s.Rank90 }))
	t.count("95 %", "", ranks(func(s *report.Spectrum) int { return s.Rank95 }))
	t.count("99 %", "singular values with this share of the energy ‖ΔW‖²", ranks(func(s *report.Spectrum) int { return s.Rank99 }))
	t.spectra(func(i int) ([]float64, float64) {
		if s := r.Layers[i].Spectrum; s != nil {
			return s.SingularValues, s.Frobenius
		}
		return nil, 0
	})
}

// addBase adds the verdict about the adapter and a base, and compares each layer with the part of
// the base that it changes. A layer that changes several tensors has no figures.
func (p *page) addBase(r *report.Adapter) {
	b := r.OnBase
	if !b.Fits {
		p.Verdict, p.IsBad, p.Reasons = "merge refuses it on "+b.Path, true, append([]string{b.Refusal}, p.Reasons...)
		return
	}
	p.Facts = append(p.Facts, Fact{"Fits", strings.Join(append([]string{b.Path}, b.Options...), " ")}, Fact{"Changed tensors", number(b.Tensors)})
	if k := b.Kept; k != nil {
		p.Facts = append(p.Facts, Fact{"‖ΔW‖ ÷ ‖W‖", figure(float64(k.RelativeNorm))}, Fact{"Lost to rounding", figure(float64(k.RetentionError))})
	}
	if b.Requantised != nil {
		p.addRequantised(b.Requantised)
	}
	p.Notes = append(p.Notes, b.Warnings...)
	of := make(map[string]*report.LayerOnBase)
	for i := range b.Layers {
		l := &b.Layers[i]
		if _, several := of[l.Module]; several {
			l = nil
		}
		of[b.Layers[i].Module] = l
	}
	value := func(f func(l *report.LayerOnBase) float64) func(i int) float64 {
		return func(i int) float64 {
			if l := of[r.Layers[i].Module]; l != nil {
				return f(l)
			}
			return math.NaN()
		}
	}
	relative := value(func(l *report.LayerOnBase) float64 { return l.Relative })
	amplification := value(func(l *report.LayerOnBase) float64 { return float64(l.Amplification) })
	p.heat("‖ΔW‖ ÷ ‖W‖", "How much a layer changes its weight, relative to it.", relative)
	p.heat("Amplification", "‖ΔW‖ ÷ ‖UᵀWV‖: how much stronger ΔW is than W in its own directions.", amplification)
	if b.Requantised != nil {
		p.addSurvival(strings.ToUpper(b.Requantised.As), func(i int) (kept, err float64) {
			if l := of[r.Layers[i].Module]; l != nil {
				return report.Together([]*report.Survival{l.Requantised})
			}
			return math.NaN(), math.NaN()
		})
	}
	p.number("‖ΔW‖÷‖W‖", "", relative)
	p.number("amplification", "‖ΔW‖ ÷ ‖UᵀWV‖, with U and V the directions of ΔW", amplification)
	p.number("random", "the amplification of random directions", value(func(l *report.LayerOnBase) float64 { return float64(l.RandomAmplification) }))
	p.number("own", "the amplification of W's own first directions", value(func(l *report.LayerOnBase) float64 {
		if l.Own == nil {
			return math.NaN()
		}
		return l.Norm / *l.Own
	}))
	p.number("intruders", "intruder dimensions among the first 10", value(func(l *report.LayerOnBase) float64 {
		if l.Intruders == nil {
			return math.NaN()
		}
		return float64(*l.Intruders)
	}))
}

// addRequantised adds what a quantisation leaves of all layers.
func (p *page) addRequantised(q *report.Requantised) {
	as := strings.ToUpper(q.As)
	p.Facts = append(p.Facts, Fact{"Kept as " + as, figure(float64(q.Kept))}, Fact{"Error as " + as, figure(float64(q.Error))})
	if len(q.In16Bits) > 0 {
		p.addList(fmt.Sprintf("Tensors to leave in 16 bits, so that %s of ΔW is kept", figure(float64(q.KeptWith))), q.In16Bits)
	}
}

// addSurvival adds what a quantisation leaves of each layer.
func (p *page) addSurvival(as string, of func(i int) (kept, err float64)) {
	share := func(i int) float64 { kept, _ := of(i); return kept }
	p.heat("Kept as "+as, "The share of ΔW that a quantisation of the merged weights keeps.", share)
	p.number("kept", "the share of ΔW that a quantisation to "+as+" keeps", share)
	p.number("error", "the error of the update after it, relative to ΔW", func(i int) float64 { _, err := of(i); return err })
}
