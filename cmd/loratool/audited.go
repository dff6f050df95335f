package main

import (
	"cmp"
	"slices"

	"github.com/loratool/loratool/internal/audit"
)

// showAudit prints the report on a merge: the verdict, then the worst tensors.
func (o *auditOptions) showAudit(t *terminal, paths []string, r *audit.Report) {
	t.line("verdict   %s", r.Text(paths[0], paths[1]))
	if r.Rounding != "" {
		t.line("rounding  %s", r.Rounding.Text())
		if len(r.OtherRoundings) > 0 {
			t.line("          the data do not tell it from %s", r.Others())
		} else if r.Margin > 0 {
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
				t.line("weight    %.4g ± %.1g of %s (claimed: %v)", w, float64(x.Error), x.Adapter, x.Claimed)
			}
		}
	}
	o.showTensors(t, r)
	counts := make(map[audit.Finding]int)
	for i := range r.Tensors {
		counts[r.Tensors[i].Finding]++
	}
	untouched := counts[audit.Untouched] + counts[audit.Cast] + counts[audit.Copied]
	t.line("tensors   %d merged, %d untouched, %d other", counts[audit.Merged], untouched, len(r.Tensors)-counts[audit.Merged]-untouched)
}

// worst orders tensors: the wrong ones first.
func worst(a, b *audit.Tensor) int {
	order := map[audit.Verdict]int{audit.NotAsClaimed: 0, audit.Inconclusive: 1, audit.AsClaimed: 2}
	return cmp.Compare(order[a.Verdict], order[b.Verdict])
}

// showTensors prints what is wrong, or with --all every tensor.
func (o *auditOptions) showTensors(t *terminal, r *audit.Report) {
	var all []*audit.Tensor
	for i := range r.Tensors {
		x := &r.Tensors[i]
		if o.all || x.Verdict != audit.AsClaimed {
			all = append(all, x)
		}
	}
	slices.SortStableFunc(all, worst)
	text := func(x *audit.Tensor) string {
		if o.all && x.Rounding != "" && x.Rounding != r.Rounding {
			return x.Explain() + " (" + x.Rounding.Text() + ")"
		}
		return x.Explain()
	}
	for _, g := range o.group(len(all), func(i int) (name, key string) { return all[i].Tensor, text(all[i]) }) {
		t.line("%-9s %s: %s", mark(all[g.first].Verdict), g.name, text(all[g.first]))
	}
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
