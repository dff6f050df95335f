package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
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
	tensors, peak := plan.Tensors(), processBytes(plan.PeakBytes(o.common.workers))
	document := map[string]any{
		"dry_run": true, "tensors": tensors, "bytes_to_write": plan.OutputBytes(), "free_bytes": free,
		"peak_memory_bytes": peak, "warnings": allFlags(plan.Warnings()),
	}
	if o.survived != nil {
		document["requantised"] = o.survived
	}
	err := t.show(o.command, o.common.json, document, func() {
		showPlanned(t, o, tensors)
		showSurvived(t, o)
		verb := "change"
		if len(tensors) == 1 {
			verb = "changes"
		}
		space := ""
		if free >= 0 {
			space = ", " + fileio.FormatBytes(free) + " free"
		}
		t.line("%s %s; %s to write%s; about %s of memory", fault.Count(len(tensors), "tensor"), verb,
			fileio.FormatBytes(plan.OutputBytes()), space, fileio.FormatBytes(peak))
	})
	return cmp.Or(blocked, err)
}

// showPlanned prints the tensors that change.
func showPlanned(t *terminal, o *planRun, tensors []merge.PlannedTensor) {
	tab := &table{columns: []column{
		{head: "tensors"}, {head: "dtype", left: true, drop: 1}, {head: "shape", left: true}, {head: "rank"}, {head: "scale", drop: 2},
		{head: "name", left: true, isName: true},
	}}
	last, of := "", (*merge.PlannedTensor)(nil)
	for _, g := range o.common.group(len(tensors), func(i int) (name, key string) {
		p := &tensors[i]
		if of == nil || !looksAlike(p, of) {
			change, scale := changeText(p)
			last, of = fmt.Sprint(p.DType, p.Shape, change, scale), p
		}
		return p.Tensor, last
	}) {
		p := &tensors[g.first]
		change, scale := changeText(p)
		tab.add(strconv.Itoa(g.n), p.DType, fmt.Sprint(p.Shape), change, scale, g.name)
	}
	t.print(tab)
}

// looksAlike reports whether two tensors surely have equal texts in a list of a plan.
func looksAlike(p, q *merge.PlannedTensor) bool {
	return p.DType == q.DType && slices.Equal(p.Shape, q.Shape) && p.Rank == q.Rank && p.Scale == q.Scale && p.Method == q.Method &&
		p.Replaced == q.Replaced && p.Rows == q.Rows && p.Was == nil && q.Was == nil && p.Added == q.Added && p.Updates == nil && q.Updates == nil
}

// changeText is the rank and the scale of an update, or in their place the fate of a tensor without
// one.
func changeText(p *merge.PlannedTensor) (rank, scale string) {
	switch {
	case p.Replaced && p.Rank == 0:
		return fateText(p), ""
	case p.Rows > 0:
		return fault.Count(p.Rows, "row"), ""
	case p.Method != "":
		return p.Method, scaleText(p)
	}
	return strconv.Itoa(p.Rank), scaleText(p)
}

// showReport prints the report of a merge.
func showReport(t *terminal, o *planRun, r *merge.Report) {
	if o.common.verbose {
		showMergedLayers(t, r)
	}
	if b := r.BaseAs; b != nil {
		t.line("base as %s: %s of linear layers differ from BASE by %s, and where ΔW lands by %.3g times ΔW",
			b.Scheme, fault.Count(len(b.Tensors), "weight"), percent(b.Error), float64(b.Share))
	}
	if q := r.Recoded; q != nil {
		t.line("requantised %s: the codes keep %s of ΔW, with an error %.3g times as large as ΔW%s",
			fault.Count(len(q.Layers), "weight"), percent(q.Kept), float64(q.Error), clampedText(q.Clamped))
	}
	changed := fault.Count(len(r.Layers), "tensor") + " updated"
	added := 0
	for _, p := range r.Replaced {
		if p.Added {
			added++
		}
	}
	if n := len(r.Replaced) - added; n > 0 {
		changed += fmt.Sprintf(", %d replaced", n)
	}
	if added > 0 {
		changed += fmt.Sprintf(", %d added", added)
	}
	t.line("merged into %s: %s, %s", o.out, o.written(r), changed)
	if names := replacedText(r.Replaced); names != "" {
		t.line("from the adapter: %s", names)
	}
	if u := r.Undo; u != nil {
		t.line("undo record in %s: %s, %.3g bits per weight", o.record, fileio.FormatBytes(u.Bytes), u.BitsPerWeight)
	}
	if n := r.NonFiniteBefore; n > 0 {
		t.line("%s of BASE %s so", fault.Count(n, "weight"), fault.Choose(int(min(n, 2)), "is NaN or infinite, and stays", "are NaN or infinite, and stay"))
	}
	if r.Elements > 0 {
		showLoss(t, r, o.common.verbose)
	}
	showSurvived(t, o)
}

// clampedText says how many elements are beyond all codes.
func clampedText(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %s %s the largest code, beyond which W + ΔW is", fault.Count(n, "element"), fault.Choose(int(min(n, 2)), "has", "have"))
}

// showMergedLayers prints a line for every tensor that changed.
func showMergedLayers(t *terminal, r *merge.Report) {
	tab := &table{columns: []column{
		{head: "rank"}, {head: "scale", drop: 1}, {head: "‖ΔW‖/‖W‖"}, {head: "unchanged", drop: 2}, {head: "lost"},
		{head: "Q(W)−W", meaning: "the difference of --base-as from BASE, relative to ΔW"}, {head: "kept", meaning: "the share of ΔW that new codes keep"},
		{head: "tensor", left: true, isName: true},
	}}
	for _, l := range r.Layers {
		tab.add(strconv.Itoa(l.Rank), scaleText(&l.PlannedTensor), fmt.Sprintf("%.3g", l.RelativeNorm), percent(l.UnchangedShare), percent(l.RetentionError),
			baseAsText(r.BaseAs, l.Tensor), keptByCodes(r.Recoded, l.Tensor), l.Tensor)
	}
	for _, p := range r.Replaced {
		tab.add("", "", "", "", "", "", "", p.Tensor+" ("+fateText(&p)+")")
	}
	if r.Recoded == nil {
		tab.without(6)
	}
	if r.BaseAs == nil {
		tab.without(5)
	}
	t.print(tab)
}

// baseAsText is the difference that --base-as makes to a tensor, "" if none.
func baseAsText(b *merge.BaseAsReport, tensor string) string {
	if b == nil {
		return ""
	}
	for _, l := range b.Layers {
		if l.Tensor == tensor {
			return fmt.Sprintf("%.3g", float64(l.Share))
		}
	}
	return ""
}

// keptByCodes is the share of the update of a tensor that new codes keep, "" without new codes.
func keptByCodes(q *merge.RecodedReport, tensor string) string {
	if q == nil {
		return ""
	}
	for i := range q.Layers {
		if q.Layers[i].Tensor == tensor {
			return percent(q.Layers[i].Kept)
		}
	}
	return ""
}

// showLoss prints how large the update is, and how much of it rounding takes away.
func showLoss(t *terminal, r *merge.Report, verbose bool) {
	if verbose && r.Recoded == nil {
		t.line("‖ΔW‖/‖W‖ = %.3g; every one of %s is the nearest to W + ΔW in its dtype",
			r.Total.RelativeNorm, fault.Count(r.Elements, "element"))
	}
	if !r.Total.IsZero {
		t.line("the update is %s as large as the weights (Frobenius norms)", percent(r.Total.RelativeNorm))
	}
	switch lost := r.Total.RetentionError; {
	case r.Total.IsZero:
		t.line("ΔW is zero, and nothing changes: %s", whyZero(r))
	case r.Recoded != nil:
		// said already
	case lost > 0.1:
		t.line("rounding costs %s of ΔW, and %s of the weights do not move: "+
			"the dtype's steps are too coarse for ΔW, and float32 keeps all of it", percent(lost), percent(r.Total.UnchangedShare))
	case lost > 1e-4 || r.BaseAs != nil:
		t.line("rounding costs %s of ΔW", percent(lost))
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
	if r.NonFiniteBefore >= r.Elements {
		return "no weight that the adapter changes is a finite number"
	}
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

// replacedText names all tensors that an adapter puts in place.
func replacedText(replaced []merge.PlannedTensor) string {
	var names []string
	for _, g := range groupNames(len(replaced), func(i int) (name, key string) { return replaced[i].Tensor, "" }) {
		if g.n > 1 {
			g.name += fmt.Sprintf(" (%d)", g.n)
		}
		names = append(names, g.name)
	}
	return strings.Join(names, ", ")
}
