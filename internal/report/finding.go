package report

import (
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/fault"
)

// Finding is something in the spectra that a user should look at.
type Finding struct {
	Kind    string   `json:"kind"` // zero, spike or outlier
	Modules []string `json:"modules"`
	Text    string   `json:"text"`
}

// Saving is what resizing an adapter to a share of its energy saves.
type Saving struct {
	Energy float64 `json:"energy"` // the share, such as 0.95
	Rank   int     `json:"rank"`   // the largest rank of a layer
	Was    int     `json:"rank_before"`
	Share  float64 `json:"share"` // of the elements of the factors that are not needed
}

const (
	// spikeRank is the least rank of a layer with a spike.
	spikeRank = 4
	// spikeStable is the stable rank below which one direction has nearly all of the energy.
	spikeStable = 1.05
	// outlierFactor is how far the norm of a layer is from the median of all.
	outlierFactor = 10
	// savingEnergy is the share of the energy that a saving keeps.
	savingEnergy = 0.95
	// savingShare is the least saving that is worth a word.
	savingShare = 0.2
)

// addFindings judges the spectra.
func (r *Adapter) addFindings() {
	r.Findings = []Finding{}
	var zero, spikes, outliers []string
	var norms []float64
	for i := range r.Layers {
		if s := r.Layers[i].Spectrum; s != nil && s.Frobenius > 0 {
			norms = append(norms, s.Frobenius)
		}
	}
	slices.Sort(norms)
	median := 0.0
	if len(norms) > 0 {
		median = norms[len(norms)/2]
	}
	for i := range r.Layers {
		l := &r.Layers[i]
		s := l.Spectrum
		switch {
		case s == nil:
		case s.Frobenius == 0:
			zero = append(zero, l.Module)
		case l.Rank >= spikeRank && s.StableRank < spikeStable:
			spikes = append(spikes, l.Module)
		}
		if s != nil && s.Frobenius > 0 && (s.Frobenius > outlierFactor*median || s.Frobenius < median/outlierFactor) {
			outliers = append(outliers, l.Module)
		}
	}
	r.find("zero", zero, "ΔW is zero: %s")
	r.find("spike", spikes, "one direction has nearly all of the energy (stable rank below 1.05): %s")
	r.find("outlier", outliers, fmt.Sprintf("‖ΔW‖ is more than %d times the median of %.3g, or less than a %dth of it: %%s", outlierFactor, median, outlierFactor))
	r.addSaving()
}

func (r *Adapter) find(kind string, modules []string, text string) {
	if len(modules) > 0 {
		r.Findings = append(r.Findings, Finding{kind, modules, fmt.Sprintf(text, fault.List(modules, 3))})
	}
}

// addSaving computes what a resize would save, if that is worth a word.
func (r *Adapter) addSaving() {
	s := Saving{Energy: savingEnergy}
	var now, then float64
	for i := range r.Layers {
		l := &r.Layers[i]
		if l.Spectrum == nil {
			continue
		}
		side := float64(l.M + l.N)
		k := max(l.Rank95, 1)
		s.Rank, s.Was = max(s.Rank, k), max(s.Was, l.Rank)
		now, then = now+side*float64(l.Rank), then+side*float64(k)
	}
	if now == 0 {
		return
	}
	if s.Share = math.Round(1000*(1-then/now)) / 1000; s.Share >= savingShare {
		r.Saving = &s
	}
}
