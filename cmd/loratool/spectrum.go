package main

import (
	"fmt"
	"strconv"

	"github.com/loratool/loratool/internal/report"
)

// sparkWidth is the number of bars of a spectrum.
const sparkWidth = 16

// showSpectra prints a line per layer: ranks, norm, and the singular values as bars.
func showSpectra(t *terminal, layers []report.Layer) {
	tab := &table{columns: []column{
		{head: "rank"}, {head: "stable", drop: 6, meaning: "(‖ΔW‖/σ1)²"}, {head: "effective", drop: 4, meaning: "e to the entropy of the energies"},
		{head: "90 %", drop: 1}, {head: "95 %", drop: 2}, {head: "99 %", drop: 5, meaning: "singular values with this share of the energy ‖ΔW‖²"},
		{head: "‖ΔW‖", meaning: "Frobenius norm of s·B·A"}, {head: "σ1", drop: 3, meaning: "largest singular value"},
		{head: "spectrum", left: true, meaning: "singular values ÷ σ1"}, {head: "module", left: true, isName: true},
	}}
	for _, l := range layers {
		s := l.Spectrum
		if s == nil {
			continue
		}
		first := 0.0
		if len(s.SingularValues) > 0 {
			first = s.SingularValues[0]
		}
		tab.add(strconv.Itoa(l.Rank), fmt.Sprintf("%.2f", s.StableRank), fmt.Sprintf("%.2f", s.EffectiveRank),
			strconv.Itoa(s.Rank90), strconv.Itoa(s.Rank95), strconv.Itoa(s.Rank99),
			fmt.Sprintf("%.4g", s.Frobenius), fmt.Sprintf("%.4g", first), sparkline(s.SingularValues), l.Module)
	}
	t.print(tab)
	for _, l := range layers {
		if l.NoSpectrum != "" {
			t.line("%s has no spectrum: %s", l.Module, l.NoSpectrum)
		}
	}
}

// sparkline draws values as bars, relative to the first: one bar a value, or the largest of a group
// where there are many.
func sparkline(values []float64) string {
	bars := []rune("▁▂▃▄▅▆▇█")
	if len(values) == 0 || values[0] == 0 {
		return ""
	}
	n := min(len(values), sparkWidth)
	line := make([]rune, n)
	for i := range line {
		v := values[i*len(values)/n] / values[0]
		line[i] = bars[min(int(v*float64(len(bars))), len(bars)-1)]
	}
	return string(line)
}
