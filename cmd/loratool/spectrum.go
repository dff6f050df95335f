package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/report"
	"github.com/urfave/cli/v2"
)

// sparkWidth is the number of bars of a spectrum.
const sparkWidth = 16

// spectrumOptions choose what the table of spectra shows.
type spectrumOptions struct {
	all  bool
	sort string
	top  int
}

func (o *spectrumOptions) spectrumFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "all", Usage: "with --spectrum or --base: a line for every layer, in place of one for each kind of module", Destination: &o.all},
		&cli.StringFlag{Name: "sort", Usage: "with --spectrum or --base: every layer, sorted by `KEY`, the largest first: norm, rank, stable, effective or sigma of a spectrum; norm, rank, relative or amplification on a base", Destination: &o.sort,
			Action: func(_ *cli.Context, key string) error {
				if spectrumKeys[key] == nil && baseKeys[key] == nil {
					return usagef("--sort norm", "the keys are norm, rank, stable, effective, sigma, relative and amplification, got %q", key)
				}
				return nil
			}},
		&cli.IntFlag{Name: "top", Usage: "with --spectrum or --base: the first `N` layers alone", Destination: &o.top,
			Action: func(_ *cli.Context, n int) error {
				if n < 1 {
					return usagef("--top 10", "--top is a number of layers, got %d", n)
				}
				return nil
			}},
	}
}

// spectrumKeys are the keys of --sort.
var spectrumKeys = map[string]func(l *report.Layer) float64{
	"norm":      func(l *report.Layer) float64 { return l.Frobenius },
	"rank":      func(l *report.Layer) float64 { return float64(l.Rank) },
	"stable":    func(l *report.Layer) float64 { return l.StableRank },
	"effective": func(l *report.Layer) float64 { return l.EffectiveRank },
	"sigma":     func(l *report.Layer) float64 { return largest(l.Spectrum) },
}

func largest(s *report.Spectrum) float64 {
	if len(s.SingularValues) == 0 {
		return 0
	}
	return s.SingularValues[0]
}

// checkTable refuses flags for tables that the command does not print.
func (o *inspectOptions) checkTable() error {
	hasSpectrum := o.spectrum || o.html != ""
	switch {
	case o.base == "" && o.as != "":
		return usagef("loratool inspect ADAPTER --base BASE --as "+o.as, "--as is for --base")
	case o.base == "" && (o.controls || o.intruders):
		return usagef("loratool inspect ADAPTER --base BASE --controls", "--controls and --intruders are for --base")
	case !hasSpectrum && o.base == "" && o.hasTableFlags():
		return usagef("loratool inspect ADAPTER --spectrum --sort norm --top 10", "--all, --sort and --top are for --spectrum and --base")
	case o.sort != "" && hasSpectrum && spectrumKeys[o.sort] == nil:
		return usagef("--sort norm", "--sort %s is for --base, and a spectrum has norm, rank, stable, effective and sigma", o.sort)
	case o.sort != "" && o.base != "" && baseKeys[o.sort] == nil:
		return usagef("--sort norm", "--sort %s is for --spectrum, and a comparison with a base has norm, rank, relative and amplification", o.sort)
	}
	return nil
}

// hasTableFlags reports whether the user chose lines of a table.
func (o *spectrumOptions) hasTableFlags() bool { return o.all || o.sort != "" || o.top > 0 }

// everyLayer reports whether tables have a line for every layer.
func (o *inspectOptions) everyLayer() bool { return o.verbose || o.hasTableFlags() }

// showSpectra prints a line for each kind of module, or for each layer: ranks, norm, and the
// singular values as bars.
func showSpectra(t *terminal, o *inspectOptions, r *report.Adapter) {
	var layers []*report.Layer
	for i := range r.Layers {
		if r.Layers[i].Spectrum != nil {
			layers = append(layers, &r.Layers[i])
		}
	}
	switch {
	case len(layers) == 0:
		t.line("no layer has a spectrum")
	case o.everyLayer():
		showEverySpectrum(t, o, layers)
	default:
		showKindsOfSpectra(t, o, layers)
	}
	for i := range r.Layers {
		if l := &r.Layers[i]; l.NoSpectrum != "" {
			t.line("%s has no spectrum: %s", l.Module, l.NoSpectrum)
		}
	}
	for _, f := range r.Findings {
		t.line("%-9s %s", f.Kind, f.Text)
	}
	if s := r.Saving; s != nil {
		t.line("%s", savingText(s))
	}
}

// savingText says what resize would save.
func savingText(s *report.Saving) string {
	return fmt.Sprintf("rank %d, but %.0f %% of the energy of each layer is in rank %d or less: loratool resize --energy %v saves %.0f %% of the factors",
		s.Was, 100*s.Energy, s.Rank, s.Energy, 100*s.Share)
}

// showEverySpectrum prints a line per layer.
func showEverySpectrum(t *terminal, o *inspectOptions, layers []*report.Layer) {
	if key := spectrumKeys[o.sort]; key != nil {
		slices.SortStableFunc(layers, func(a, b *report.Layer) int { return cmp.Compare(key(b), key(a)) })
	}
	left := 0
	if o.top > 0 && len(layers) > o.top {
		left = len(layers) - o.top
		layers = layers[:o.top]
	}
	tab := &table{columns: []column{
		{head: "rank"}, {head: "stable", drop: 6, meaning: "(‖ΔW‖/σ1)²"}, {head: "effective", drop: 4, meaning: "e to the entropy of the energies"},
		{head: "90 %", drop: 1}, {head: "95 %", drop: 2}, {head: "99 %", drop: 5, meaning: "singular values with this share of the energy ‖ΔW‖²"},
		{head: "‖ΔW‖", meaning: "Frobenius norm of s·B·A"}, {head: "σ1", drop: 3, meaning: "largest singular value"},
		{head: "spectrum", left: true, meaning: "singular values ÷ σ1"}, {head: "module", left: true, isName: true},
	}}
	for _, l := range layers {
		tab.add(strconv.Itoa(l.Rank), fmt.Sprintf("%.2f", l.StableRank), fmt.Sprintf("%.2f", l.EffectiveRank),
			strconv.Itoa(l.Rank90), strconv.Itoa(l.Rank95), strconv.Itoa(l.Rank99),
			fmt.Sprintf("%.4g", l.Frobenius), fmt.Sprintf("%.4g", largest(l.Spectrum)), sparkline(l.SingularValues), l.Module)
	}
	t.print(tab)
	if left > 0 {
		t.line("and %s", fault.Count(left, "more layer"))
	}
}

// showKindsOfSpectra prints a line per kind of module: the mean of what its layers have, their
// common norm, and the mean spectrum.
func showKindsOfSpectra(t *terminal, o *inspectOptions, layers []*report.Layer) {
	tab := &table{columns: []column{
		{head: "layers"}, {head: "rank"}, {head: "stable", drop: 5, meaning: "(‖ΔW‖/σ1)², the mean"}, {head: "effective", drop: 3, meaning: "e to the entropy of the energies, the mean"},
		{head: "90 %", drop: 1}, {head: "95 %", drop: 2}, {head: "99 %", drop: 4, meaning: "singular values with this share of the energy ‖ΔW‖², the most"},
		{head: "‖ΔW‖", meaning: "Frobenius norm of s·B·A over all layers of the line"},
		{head: "spectrum", left: true, meaning: "singular values ÷ σ1, the mean; --all has every layer"}, {head: "module", left: true, isName: true},
	}}
	for _, k := range o.kinds(len(layers), func(i int) string { return layers[i].Module }) {
		var ranks span
		var stable, effective, squares float64
		var mean meanSpectrum
		most := make([]int, 3)
		for _, i := range k.items {
			l := layers[i]
			ranks.add(l.Rank)
			stable, effective, squares = stable+l.StableRank, effective+l.EffectiveRank, squares+l.Frobenius*l.Frobenius
			for j, n := range []int{l.Rank90, l.Rank95, l.Rank99} {
				most[j] = max(most[j], n)
			}
			mean.add(l.SingularValues)
		}
		n := float64(len(k.items))
		tab.add(strconv.Itoa(len(k.items)), ranks.String(), fmt.Sprintf("%.2f", stable/n), fmt.Sprintf("%.2f", effective/n),
			strconv.Itoa(most[0]), strconv.Itoa(most[1]), strconv.Itoa(most[2]), fmt.Sprintf("%.4g", math.Sqrt(squares)), sparkline(mean), k.name)
	}
	t.print(tab)
}

// meanSpectrum is the sum of spectra, each divided by its first value.
type meanSpectrum []float64

func (m *meanSpectrum) add(sigma []float64) {
	for j, v := range sigma {
		if j == len(*m) {
			*m = append(*m, 0)
		}
		if sigma[0] > 0 {
			(*m)[j] += v / sigma[0]
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
