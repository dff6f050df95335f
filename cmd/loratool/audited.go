package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/audit"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// showAudit prints the report on a merge: the verdict, then the worst tensors.
func (o *auditOptions) showAudit(t *terminal, paths []string, r *audit.Report) {
	t.line("verdict   %s", r.Text(paths[0], paths[1]))
	if r.Rounding != "" {
		t.line("rounding  %s: %s", string(r.Rounding), r.Rounding.Text())
		switch {
		case len(r.OtherRoundings) > 0:
			t.line("          %s %s as well", r.Others(), fault.Choose(len(r.OtherRoundings), "fits", "fit"))
		case r.Margin > 0:
			t.line("          every other way known leaves %.2g %% of the elements or more unexplained", 100*float64(r.Margin))
		}
	}
	if r.Casts != "" {
		t.line("dtypes    %s", r.Casts)
	}
	if r.Renamed != "" {
		t.line("names     %s", r.Renamed)
	}
	for _, s := range r.Stamps {
		t.line("stamp     %s", s)
	}
	if len(r.Adapters) > 1 || r.Verdict != audit.AsClaimed {
		for _, x := range r.Adapters {
			if w := float64(x.Value); w == w {
				t.line("weight    %s of %s; claimed is %v", weightText(x.Weight), x.Adapter, x.Claimed)
			}
		}
	}
	o.showTensors(t, r)
	o.showCounts(t, r)
}

// showCounts prints the numbers of tensors.
func (o *auditOptions) showCounts(t *terminal, r *audit.Report) {
	counts, merged := r.Counts(), 0
	for i := range r.Tensors {
		if x := &r.Tensors[i]; x.Module != "" && x.Verdict == audit.AsClaimed {
			merged++
		}
	}
	text := fmt.Sprintf("%d merged, %d untouched", merged, counts[audit.AsClaimed]-merged)
	if n := counts[audit.NotAsClaimed]; n > 0 {
		text += fmt.Sprintf(", %d wrong", n)
	}
	if n := counts[audit.Inconclusive]; n > 0 {
		text += fmt.Sprintf(", %d unclear", n)
	}
	t.line("tensors   %s", text)
}

// weightText shows a weight to the digits that its error leaves.
func weightText(w audit.Weight) string {
	value, err := float64(w.Value), float64(w.Error)
	if !(err > 0) || err > math.Abs(value) {
		return fmt.Sprintf("%.2g ± %.1g", value, err)
	}
	return fmt.Sprintf("%.*f ± %.1g", min(9, max(0, -int(math.Floor(math.Log10(err))))), value, err)
}

// namesShown is how many names of wrong tensors a group lists.
const namesShown = 8

// showTensors prints what is wrong, or with --all every tensor.
func (o *auditOptions) showTensors(t *terminal, r *audit.Report) {
	if o.all {
		o.showTable(t, r)
		return
	}
	groups := r.Groups()
	if len(groups) == 1 && r.IsEverywhere(&groups[0]) && !o.verbose {
		if text := groups[0].Text; !strings.Contains(r.Text("", ""), text) {
			t.line("%-9s %s: %s", mark(groups[0].Tensors[0].Verdict), fault.Count(len(groups[0].Tensors), "tensor"), text)
		}
		return
	}
	for _, g := range groups {
		verdict := mark(g.Tensors[0].Verdict)
		names := o.group(len(g.Tensors), func(i int) (name, key string) { return g.Tensors[i].Tensor, "" })
		if len(names) == 1 {
			t.line("%-9s %s: %s", verdict, names[0].name, g.Text)
			continue
		}
		t.line("%-9s %s: %s", verdict, fault.Count(len(g.Tensors), "tensor"), g.Text)
		o.showNames(t, names)
	}
}

// showNames lists the names of groups, or the first of them.
func (o *auditOptions) showNames(t *terminal, names []group) {
	shown := len(names)
	if shown > namesShown && !o.verbose && !o.all {
		shown = namesShown
	}
	for _, x := range names[:shown] {
		t.line("            %s", x.name)
	}
	left := 0
	for _, x := range names[shown:] {
		left += x.n
	}
	if left > 0 {
		t.line("            and %s (--all lists them)", fault.Count(left, "other"))
	}
}

// showTable prints all tensors, the wrong ones first.
func (o *auditOptions) showTable(t *terminal, r *audit.Report) {
	tab := &table{columns: []column{
		{head: "verdict", left: true}, {head: "finding", left: true}, {head: "rounding", left: true, drop: 2},
		{head: "differ", drop: 4, meaning: "elements that differ from the exact merge, or from the base"},
		{head: "margin", drop: 3, meaning: "the share of the elements that the second best way to round does not explain"},
		{head: "weight", drop: 5, meaning: "of the adapters, as the change fits them best"},
		{head: "residual", drop: 1, meaning: "the share of ‖M − W‖ that the best fit leaves"},
		{head: "tensor", left: true, isName: true},
	}}
	all := make([]*audit.Tensor, len(r.Tensors))
	for i := range r.Tensors {
		all[i] = &r.Tensors[i]
	}
	slices.SortStableFunc(all, audit.Worse)
	for _, x := range all {
		weights := ""
		for k, w := range x.Weights {
			if k > 0 {
				weights += " "
			}
			weights += figureText(w.Value)
		}
		margin := figureText(x.Margin)
		if x.Rounding == "" {
			margin = ""
		}
		residual := figureText(x.Residual)
		if len(x.Weights) == 0 {
			residual = ""
		}
		tab.add(mark(x.Verdict), x.Finding.Name(), string(x.Rounding), fmt.Sprint(x.Different), margin, weights, residual, x.Tensor)
	}
	t.print(tab)
}

// figureText shows a number briefly, and NaN as nothing.
func figureText(x merge.Figure) string {
	if v := float64(x); v == v {
		return fmt.Sprintf("%.3g", v)
	}
	return ""
}

// mark is the first word of the line of a tensor.
func mark(v audit.Verdict) string {
	switch v {
	case audit.NotAsClaimed:
		return "wrong"
	case audit.Inconclusive:
		return "unclear"
	}
	return "right"
}
