package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/merge"
)

// showPlan shows the effect of a plan. The error is the one that its run would meet.
func showPlan(t *terminal, o *planRun, plan *merge.Plan) error {
	var blocked error
	free := int64(-1)
	if o.out != "" {
		blocked = plan.CheckOutput(o.out)
		free = freeBytes(o.out)
	}
	if o.common.json && blocked != nil {
		return blocked // the one document of the run says so
	}
	tensors, peak := plan.Tensors(), plan.PeakBytes(parallel.Workers(o.common.workers))
	document := map[string]any{
		"dry_run": true, "tensors": tensors, "bytes_to_write": plan.OutputBytes(), "free_bytes": free,
		"peak_memory_bytes": peak, "warnings": allFlags(plan.Warnings()),
	}
	err := t.show(o.command, o.common.json, document, func() {
		showPlanned(t, tensors)
		verb := "change"
		if len(tensors) == 1 {
			verb = "changes"
		}
		t.printf("%s %s; %s to write, about %s of memory", fault.Count(len(tensors), "tensor"), verb, fileio.FormatBytes(plan.OutputBytes()), fileio.FormatBytes(peak))
		if free >= 0 {
			t.printf(", %s free", fileio.FormatBytes(free))
		}
		t.printf("\n")
	})
	return cmp.Or(blocked, err)
}

// showPlanned prints a line for every tensor that changes.
func showPlanned(t *terminal, tensors []merge.PlannedTensor) {
	tab := &table{columns: []column{
		{head: "tensor", left: true, isName: true}, {head: "dtype", left: true, drop: 1}, {head: "shape", left: true}, {head: "rank", left: true}, {head: "scale", left: true, drop: 2},
	}}
	for _, p := range tensors {
		rank, scale := strconv.Itoa(p.Rank), scaleText(&p)
		switch {
		case p.Replaced && p.Rank == 0:
			rank, scale = fateText(&p), ""
		case p.Rows > 0:
			rank, scale = fault.Count(p.Rows, "row"), ""
		}
		tab.add(p.Tensor, p.DType, fmt.Sprint(p.Shape), rank, scale)
	}
	t.print(tab)
}

// showReport prints the report of a merge.
func showReport(t *terminal, o *planRun, r *merge.Report) {
	if o.common.verbose {
		showMergedLayers(t, r)
	}
	t.printf("merged into %s: %s, %s updated", o.out, o.written(r), fault.Count(len(r.Layers), "tensor"))
	added := 0
	for _, p := range r.Replaced {
		if p.Added {
			added++
		}
	}
	if n := len(r.Replaced) - added; n > 0 {
		t.printf(", %d replaced", n)
	}
	if added > 0 {
		t.printf(", %d added", added)
	}
	t.printf("\n")
	if names := replacedText(r.Replaced); names != "" {
		t.printf("from the adapter: %s\n", names)
	}
	if u := r.Undo; u != nil {
		t.printf("undo record in %s: %s, %.3g bits per weight\n", o.record, fileio.FormatBytes(u.Bytes), u.BitsPerWeight)
	}
	if r.Elements > 0 {
		showLoss(t, r, o.common.verbose)
	}
}

// showMergedLayers prints a line for every tensor that changed.
func showMergedLayers(t *terminal, r *merge.Report) {
	tab := &table{columns: []column{
		{head: "rank"}, {head: "scale", drop: 1}, {head: "|ΔW|/|W|"}, {head: "unchanged", drop: 2}, {head: "lost"}, {head: "tensor", left: true, isName: true},
	}}
	for _, l := range r.Layers {
		tab.add(strconv.Itoa(l.Rank), scaleText(&l.PlannedTensor), fmt.Sprintf("%.3g", l.RelativeNorm), percent(l.UnchangedShare), percent(l.RetentionError), l.Tensor)
	}
	for _, p := range r.Replaced {
		tab.add("", "", "", "", "", p.Tensor+" ("+fateText(&p)+")")
	}
	t.print(tab)
}

// showLoss prints how large the update is, and how much of it rounding takes away.
func showLoss(t *terminal, r *merge.Report, verbose bool) {
	if verbose {
		t.printf("|ΔW|/|W| = %.3g; every one of %s is the nearest to W + ΔW in its dtype\n",
			r.Total.RelativeNorm, fault.Count(r.Elements, "element"))
	}
	if !r.Total.IsZero {
		t.printf("the update is %s of the weights' size\n", percent(r.Total.RelativeNorm))
	}
	switch lost := r.Total.RetentionError; {
	case r.Total.IsZero:
		t.printf("ΔW is zero, and nothing changes: %s\n", whyZero(r))
	case lost > 0.1:
		t.printf("rounding to the base's dtype costs %s of ΔW, and %s of the weights do not move:\n"+
			"the dtype's steps are too coarse for ΔW. A float32 base keeps all of it\n", percent(lost), percent(r.Total.UnchangedShare))
	case lost > 1e-4:
		t.printf("rounding to the base's dtype costs %s of ΔW\n", percent(lost))
	}
}

// fateText is the fate of a tensor that an adapter saves whole.
func fateText(p *merge.PlannedTensor) string {
	switch {
	case p.Added:
		return "added"
	case p.Was != nil:
		return fmt.Sprintf("replaces %d", p.Was)
	}
	return "replaced"
}

// whyZero is the cause of updates that are all zero.
func whyZero(r *merge.Report) string {
	for _, l := range r.Layers {
		if l.Scale != 0 || slices.ContainsFunc(l.Updates, func(u merge.TermShort) bool { return u.Scale != 0 }) {
			return "the adapter's factors are untrained"
		}
	}
	return "the scale of every layer is 0"
}

// scaleText is the scale of the update of a tensor, or of each one.
func scaleText(p *merge.PlannedTensor) string {
	if len(p.Updates) == 0 {
		return fmt.Sprintf("%.6g", p.Scale)
	}
	var all []string
	for _, u := range p.Updates {
		all = append(all, fmt.Sprintf("%.6g", u.Scale))
	}
	return strings.Join(all, ", ")
}

// replacedText names all tensors that an adapter puts in place, those of equal layers under one
// name.
func replacedText(replaced []merge.PlannedTensor) string {
	counts := make(map[string]int)
	var names []string
	for i := range replaced {
		name := withoutNumbers(replaced[i].Tensor)
		if counts[name]++; counts[name] == 1 {
			names = append(names, name)
		}
	}
	for i, name := range names {
		if n := counts[name]; n > 1 {
			names[i] = fmt.Sprintf("%s (%d)", name, n)
		}
	}
	return strings.Join(names, ", ")
}
