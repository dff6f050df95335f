package main

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/page"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// change compares an adapter with the difference of two checkpoints.
func (o *diffOptions) change(c *cli.Context, t *terminal, paths []string) error {
	if err := o.check(""); err != nil {
		return err
	}
	var closers closers
	defer closers.close()
	both, err := openCheckpoints(c.Context, &closers, paths[:2]...)
	if err != nil {
		return err
	}
	openings, err := o.opening(paths[2])
	if err != nil {
		return err
	}
	src, err := convert.Open(c.Context, paths[2], openings[0])
	if err != nil {
		return err
	}
	closers.add(src)
	options := report.ChangeOptions{Name: paths[2], Merge: merge.Options{Workers: o.workers}}
	o.planOptions.set(&options.Merge)
	var finish func()
	options.Begin, finish = t.bars(&o.common)
	r, err := report.CompareChange(c.Context, src, both[0], both[1], options)
	finish()
	if err != nil {
		return err
	}
	r.Options = allFlags(r.Options)
	document := struct {
		Base    string `json:"base"`
		Tuned   string `json:"tuned"`
		Adapter string `json:"adapter"`
		*report.OnChange
	}{paths[0], paths[1], paths[2], r}
	if err := t.show("diff", o.json, document, func() { o.showChange(t, r) }); err != nil {
		return err
	}
	if err := o.writePage(t, paths, func(h page.Head) ([]byte, error) { return page.Change(h, r) }); err != nil {
		return err
	}
	if o.exitCode && (r.Residual > 0 || len(r.Elsewhere)+len(r.NotMeasured) > 0) {
		return fault.New(fault.Check, "the difference is not exactly the adapter's ΔW")
	}
	return nil
}

// showChange prints how much of the difference is ΔW.
func (o *diffOptions) showChange(t *terminal, r *report.OnChange) {
	tab := &table{columns: []column{
		{head: "layers"}, {head: "‖Δ‖", drop: 1, meaning: "Δ is TUNED − BASE where the adapter changes it"}, {head: "‖ΔW‖", drop: 2},
		{head: "left", meaning: "‖Δ − ΔW‖ ÷ ‖Δ‖"}, {head: "cosine"}, {head: "weight", meaning: "the weight of ΔW that fits Δ best"}, {head: "module", left: true, isName: true},
	}}
	for _, k := range o.kinds(len(r.Layers), func(i int) string { return r.Layers[i].Module }) {
		var change, norm, residual, product float64
		for _, i := range k.items {
			l := &r.Layers[i]
			change, norm, residual = change+l.Change*l.Change, norm+l.Norm*l.Norm, residual+l.Residual*l.Residual
			product += l.Cosine * l.Change * l.Norm
		}
		tab.add(fmt.Sprint(len(k.items)), fmt.Sprintf("%.4g", math.Sqrt(change)), fmt.Sprintf("%.4g", math.Sqrt(norm)), shareText(residual, change),
			fmt.Sprintf("%.4f", product/max(math.Sqrt(change*norm), math.SmallestNonzeroFloat64)), fmt.Sprintf("%.4g", product/max(norm, math.SmallestNonzeroFloat64)), k.name)
	}
	t.print(tab)
	for _, n := range r.NotMeasured {
		t.line("not measured: %s: %s", n.Tensor, n.Why)
	}
	o.listNames(t, "also differs, and the adapter does not change it: ", r.Elsewhere)
	if len(r.Layers) == 0 {
		t.line("no layer of the adapter could be compared with the difference")
		return
	}
	merged := withFlags(r.Options)
	if merged != "" {
		merged = ", merged" + merged
	}
	t.line("‖Δ − ΔW‖ is %s of ‖Δ‖ in the layers of the adapter%s; the best weight is %.4g, the cosine %.4f",
		shareText(r.Residual*r.Residual, r.Change*r.Change), merged, r.Weight, r.Cosine)
}

// shareText is the root of a share.
func shareText(part, whole float64) string {
	if whole == 0 {
		return "0"
	}
	return errorText(math.Sqrt(part / whole))
}

// listNames prints names, those alike together.
func (o *diffOptions) listNames(t *terminal, before string, names []string) {
	for _, g := range o.group(len(names), func(i int) (name, key string) { return names[i], "" }) {
		t.line("%s%s", before, g.name)
	}
}
