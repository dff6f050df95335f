package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// asFlag is --as, the scheme to which merged weights would be quantised.
func asFlag(as *string, when, example string) cli.Flag {
	return &cli.StringFlag{Name: "as", Destination: as,
		Usage: when + "how much of ΔW would be left if the merged weights were quantised to `SCHEME` (" + strings.Join(quant.Encodings, ", ") + "), and which tensors to leave in 16 bits so that 95 % is; nothing is quantised",
		Action: func(_ *cli.Context, as string) error {
			if _, ok := quant.ParseEncoding(as); !ok {
				return usagef(example, "--as is %s, got %q", strings.Join(quant.Encodings, ", "), as)
			}
			return nil
		}}
}

// survivals measures what a quantisation to the scheme of --as would leave of a merge.
func (o *mergeOptions) survivals(c *cli.Context, t *terminal, base string, adapters []merge.Adapter) (*report.SurvivalMap, error) {
	options := report.BaseOptions{Merge: o.library(), Allow: func(need int64) error { return o.checkMemory(need, "the quantisation of --as") }}
	options.As, _ = quant.ParseEncoding(o.as)
	var finish func()
	options.Begin, finish = t.bars(&o.common)
	defer finish()
	return report.Survivals(c.Context, base, adapters, options)
}

// showSurvived prints what a quantisation would leave of a merge: of each kind of layer, and of
// all.
func showSurvived(t *terminal, run *planRun) {
	m := run.survived
	if m == nil {
		return
	}
	tab := &table{columns: append(append([]column{{head: "layers"}}, survivalColumns(m.As)...),
		column{head: "scales", left: true, drop: 1}, column{head: "layer", left: true, isName: true})}
	for _, k := range run.common.kinds(len(m.Layers), func(i int) string { return m.Layers[i].Name() }) {
		cells := append([]string{strconv.Itoa(len(k.items))}, survivalTexts(k.items, func(i int) *report.Survival { return &m.Layers[i].Survival })...)
		tab.add(append(cells, m.Layers[k.items[0]].Scales, k.name)...)
	}
	t.print(tab)
	showNotMeasured(t, run.common, "not quantised", m.NotMeasured)
	t.line("as %s: %s", m.As, leftText(&m.Requantised))
}

// survivalColumns are the columns of survivalTexts.
func survivalColumns(as string) []column {
	return []column{
		{head: as, meaning: "the share of ΔW that a quantisation of the merged weights keeps"},
		{head: "error", meaning: "the error of the rest, relative to ΔW"},
	}
}

// survivalTexts are the share that is kept and the error of some layers together.
func survivalTexts(items []int, of func(i int) *report.Survival) []string {
	var layers []*report.Survival
	for _, i := range items {
		layers = append(layers, of(i))
	}
	kept, err := report.Together(layers)
	if kept != kept {
		return []string{"–", "–"}
	}
	return []string{fmt.Sprintf("%.3f", kept), fmt.Sprintf("%.3g", err)}
}

// leftText says what a quantisation leaves of an update.
func leftText(q *report.Requantised) string {
	switch {
	case q.Kept-q.Kept != 0:
		return "nothing to measure: ΔW is zero, or not finite"
	case len(q.In16Bits) == 0:
		return fmt.Sprintf("a quantisation of the merged weights keeps %s of ΔW, and adds an error %.3g times as large as ΔW", percent(q.Kept), float64(q.Error))
	}
	return fmt.Sprintf("a quantisation of the merged weights keeps %s of ΔW, with an error %.3g times as large as ΔW; it keeps %s if %s %s in 16 bits: %s",
		percent(q.Kept), float64(q.Error), percent(q.KeptWith), fault.Count(len(q.In16Bits), "tensor"), fault.Choose(len(q.In16Bits), "stays", "stay"), listText(q.In16Bits))
}

// showNotMeasured lists tensors without figures.
func showNotMeasured(t *terminal, o *common, what string, tensors []report.NotMeasured) {
	for _, g := range o.group(len(tensors), func(i int) (name, key string) { return tensors[i].Tensor, tensors[i].Why }) {
		t.line("%s: %s: %s", what, g.name, tensors[g.first].Why)
	}
}
