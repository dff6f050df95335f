package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// baseOptions are the flags that compare an adapter with a base.
type baseOptions struct {
	base      string
	controls  bool
	intruders bool
	as        string
}

func (o *baseOptions) baseFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "base", Usage: "of an adapter: whether it fits the checkpoint `BASE`, how large ΔW is beside W, and how much of ΔW a merge into the dtype of BASE keeps; reads the weights that change twice, computes some ten times as much as a merge, and writes nothing", Destination: &o.base},
		&cli.BoolFlag{Name: "controls", Usage: "with --base: show beside the amplification how large it is in the first directions of W itself; decomposes W in memory, in seconds for a large layer", Destination: &o.controls},
		&cli.BoolFlag{Name: "intruders", Usage: "with --base: count the intruder dimensions (arXiv:2410.21228), those of the first 10 left singular vectors of W + ΔW whose cosines with all of W are below 0.5; holds W in memory, and takes up to a minute of a processor for a matrix of 4096×4096", Destination: &o.intruders},
		asFlag(&o.as, "with --base: ", "loratool inspect ADAPTER --base BASE --as fp8"),
	}
}

// compareBase compares an adapter with the base of --base. It returns nil without that flag.
func (o *inspectOptions) compareBase(c *cli.Context, t *terminal, src format.Source, path string) (*report.OnBase, error) {
	if o.base == "" {
		return nil, nil
	}
	options := report.BaseOptions{
		Name: path, Merge: merge.Options{Workers: o.workers}, Own: o.controls, Intruders: o.intruders,
		Allow: func(need int64) error { return o.checkMemory(need, "the comparison with "+o.base) },
	}
	options.As, _ = quant.ParseEncoding(o.as)
	warnings, err := o.readLoading([]string{path})
	if err != nil {
		return nil, err
	}
	o.planOptions.set(&options.Merge)
	var finish func()
	options.Begin, finish = t.bars(&o.common)
	r, err := report.CompareBase(c.Context, src, o.base, options)
	finish()
	if err != nil {
		return nil, err
	}
	r.Refusal, r.Hint, r.Options, r.Warnings = flagsFor(r.Refusal), flagsFor(r.Hint), allFlags(r.Options), append(warnings, allFlags(r.Warnings)...)
	return r, nil
}

// showFit prints whether an adapter fits a base, and how much of it a merge keeps.
func showFit(t *terminal, b *report.OnBase) {
	if b == nil {
		return
	}
	if !b.Fits {
		t.line("verdict   it does not fit %s%s: %s", b.Path, withFlags(b.Options), b.Refusal)
		if b.Hint != "" {
			t.line("hint      %s", b.Hint)
		}
		return
	}
	t.line("verdict   it fits %s%s: %s", b.Path, withFlags(b.Options), fault.Count(b.Tensors, "tensor")+" "+fault.Choose(b.Tensors, "changes", "change"))
	if b.Kept != nil {
		t.line("merged    %s", keptText(b.Kept))
	}
	if q := b.Requantised; q != nil {
		t.line("%-9s %s", q.As, leftText(q))
	}
}

// keptText says how large an update is, and how much of it rounding takes away.
func keptText(k *merge.Retention) string {
	if k.IsZero {
		return "ΔW is zero, and nothing changes"
	}
	text := fmt.Sprintf("ΔW is %s as large as the weights, and ", percent(k.RelativeNorm))
	switch lost := k.RetentionError; {
	case lost > 0.1:
		return text + fmt.Sprintf("rounding to their dtype costs %s of it; %s of the weights do not move; float32 keeps all of it",
			percent(lost), percent(k.UnchangedShare))
	case lost > 1e-4:
		return text + fmt.Sprintf("rounding to their dtype costs %s of it", percent(lost))
	}
	return text + "their dtype keeps all of it"
}

// baseKeys are the keys of --sort for layers on a base.
var baseKeys = map[string]func(l *report.LayerOnBase) float64{
	"norm":          func(l *report.LayerOnBase) float64 { return l.Norm },
	"rank":          func(l *report.LayerOnBase) float64 { return float64(l.Rank) },
	"relative":      func(l *report.LayerOnBase) float64 { return l.Relative },
	"amplification": func(l *report.LayerOnBase) float64 { return float64(l.Amplification) },
}

// showOnBase prints a line for each kind of module, or for each layer.
func showOnBase(t *terminal, o *inspectOptions, b *report.OnBase) {
	layers := make([]*report.LayerOnBase, len(b.Layers))
	for i := range layers {
		layers[i] = &b.Layers[i]
	}
	each := o.everyLayer()
	if key := baseKeys[o.sort]; key != nil {
		slices.SortStableFunc(layers, func(a, b *report.LayerOnBase) int { return cmp.Compare(key(b), key(a)) })
	}
	left := 0
	if o.top > 0 && len(layers) > o.top {
		left, layers = len(layers)-o.top, layers[:o.top]
	}
	tab := &table{columns: []column{
		{head: "layers"}, {head: "rank", drop: 2}, {head: "‖ΔW‖", drop: 3}, {head: "‖ΔW‖/‖W‖"},
		{head: "amplified", meaning: "‖ΔW‖/‖UᵀWV‖, with the singular vectors U and V of ΔW: the least and the largest"},
		{head: "random", drop: 1, meaning: "the same for random U and V"},
	}}
	if o.controls {
		tab.columns = append(tab.columns, column{head: "own", meaning: "the same for the first singular vectors of W"})
	}
	if o.intruders {
		tab.columns = append(tab.columns, column{head: "intruders", meaning: "singular vectors of W + ΔW that W does not have, of the first 10 of each layer"})
	}
	if o.as != "" {
		tab.columns = append(tab.columns, survivalColumns(o.as)...)
	}
	tab.columns = append(tab.columns, column{head: "module", left: true, isName: true})
	kinds := o.kinds(len(layers), func(i int) string { return layers[i].Name() })
	if each {
		kinds = kinds[:0]
		for i, l := range layers {
			kinds = append(kinds, kind{l.Name(), []int{i}})
		}
	}
	for _, k := range kinds {
		var ranks span
		var amplified, random, own figures
		var delta, base float64
		intruders := 0
		for _, i := range k.items {
			l := layers[i]
			ranks.add(l.Rank)
			amplified.add(float64(l.Amplification))
			random.add(float64(l.RandomAmplification))
			if l.Own != nil {
				own.add(l.Norm / *l.Own)
			}
			if l.Intruders != nil {
				intruders += *l.Intruders
			}
			delta, base = delta+l.Norm*l.Norm, base+l.BaseNorm*l.BaseNorm
		}
		cells := []string{strconv.Itoa(len(k.items)), ranks.String(), fmt.Sprintf("%.4g", math.Sqrt(delta)), ratioText(math.Sqrt(delta), math.Sqrt(base)),
			amplified.String(), random.String()}
		if o.controls {
			cells = append(cells, own.String())
		}
		if o.intruders {
			cells = append(cells, strconv.Itoa(intruders))
		}
		if o.as != "" {
			cells = append(cells, survivalTexts(k.items, func(i int) *report.Survival { return layers[i].Requantised })...)
		}
		tab.add(append(cells, k.name)...)
	}
	t.print(tab)
	if left > 0 {
		t.line("and %s", fault.Count(left, "more layer"))
	}
	showEstimated(t, b)
	showNotMeasured(t, &o.common, "not compared with W", b.NotMeasured)
}

// showEstimated says how many singular vectors were counted as intruders, or not, by estimates.
func showEstimated(t *terminal, b *report.OnBase) {
	n := 0
	for i := range b.Layers {
		n += b.Layers[i].IntrudersEstimated
	}
	if n > 0 {
		t.line("intruders: estimates decide about %s, as bounds did not", fault.Count(n, "singular vector"))
	}
}

// figures are the finite numbers of a column.
type figures struct {
	least, most float64
	n           int
}

func (f *figures) add(x float64) {
	if x-x != 0 {
		return
	}
	if f.n == 0 {
		f.least, f.most = x, x
	}
	f.least, f.most = min(f.least, x), max(f.most, x)
	f.n++
}

// String is the range of the numbers, with three digits.
func (f *figures) String() string {
	least, most := fmt.Sprintf("%.3g", f.least), fmt.Sprintf("%.3g", f.most)
	switch {
	case f.n == 0:
		return "–"
	case least == most:
		return least
	}
	return least + "–" + most
}

// ratioText is a ratio with three digits, if there is one.
func ratioText(a, b float64) string {
	if b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3g", a/b)
}
