package main

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/page"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

// checkpoints compares two checkpoints.
func (o *diffOptions) checkpoints(c *cli.Context, t *terminal, paths []string) error {
	var closers closers
	defer closers.close()
	both, err := openCheckpoints(c.Context, &closers, paths...)
	if err != nil {
		return err
	}
	if o.spectrum {
		need, largest := rank.ChangeBytes(both[0])
		if err := o.checkMemory(need, fmt.Sprintf("the spectrum of tensors such as %q", largest)); err != nil {
			return err
		}
	}
	begin, finish := t.bars(&o.common)
	r, err := rank.CompareCheckpoints(c.Context, both[0], both[1], rank.CompareOptions{
		Workers: o.workers, Spectra: o.spectrum, Progress: begin("comparing", (*checkpoint.Handle)(both[0]).Checkpoint().Bytes()),
	})
	finish()
	if err != nil {
		return err
	}
	document := struct {
		A    string `json:"a"`
		B    string `json:"b"`
		Same bool   `json:"same"`
		*rank.CheckpointComparison
	}{paths[0], paths[1], r.Same(), r}
	if err := t.show("diff", o.json, document, func() { o.showCheckpoints(t, paths, r) }); err != nil {
		return err
	}
	if err := o.writePage(t, paths, func(h page.Head) ([]byte, error) { return page.Checkpoints(h, r) }); err != nil {
		return err
	}
	if o.exitCode && !r.Same() {
		return fault.New(fault.Check, "the checkpoints differ")
	}
	return nil
}

// showCheckpoints prints the comparison of two checkpoints.
func (o *diffOptions) showCheckpoints(t *terminal, paths []string, r *rank.CheckpointComparison) {
	if r.Same() {
		t.line("%s and %s have the same values in all of %s", paths[0], paths[1], fault.Count(len(r.Tensors), "tensor"))
	}
	if r.Renamed != "" {
		t.line("the names differ: %s", r.Renamed)
	}
	byStatus := make(map[rank.Status][]*rank.CheckpointTensor)
	var dtypes []*rank.CheckpointTensor
	for i := range r.Tensors {
		x := &r.Tensors[i]
		byStatus[x.Status] = append(byStatus[x.Status], x)
		if x.DTypeA != x.DTypeB && x.Status == rank.Identical {
			dtypes = append(dtypes, x)
		}
	}
	o.showChanged(t, byStatus[rank.Changed])
	o.list(t, byStatus[rank.Reshaped], func(x *rank.CheckpointTensor) string {
		return fmt.Sprintf("reshaped from %d to %d", x.ShapeA, x.ShapeB)
	})
	o.list(t, byStatus[rank.OnlyA], func(x *rank.CheckpointTensor) string { return fmt.Sprintf("only in A (%s %d)", x.DTypeA, x.ShapeA) })
	o.list(t, byStatus[rank.OnlyB], func(x *rank.CheckpointTensor) string { return fmt.Sprintf("only in B (%s %d)", x.DTypeB, x.ShapeB) })
	o.list(t, dtypes, func(x *rank.CheckpointTensor) string {
		return fmt.Sprintf("the same values, as %s in A and %s in B", x.DTypeA, x.DTypeB)
	})
	for _, unread := range [][]rank.UnreadWeight{r.UnreadA, r.UnreadB} {
		for _, g := range o.group(len(unread), func(i int) (name, key string) { return unread[i].Weight, unread[i].Scheme }) {
			t.line("cannot be read: %s: %s", g.name, unread[g.first].Why)
		}
	}
	if r.Same() {
		return
	}
	t.line("of %s %d are the same, %d changed, %d reshaped, %d only in A, %d only in B",
		fault.Count(len(r.Tensors), "tensor"), r.Identical, r.Changed, r.Reshaped, r.OnlyA, r.OnlyB)
	if r.Changed > 0 {
		t.line("‖B − A‖ is %.4g, %.3g of ‖A‖", r.Norm, r.Relative)
	}
}

// list prints a line for every group of tensors that are alike.
func (o *diffOptions) list(t *terminal, all []*rank.CheckpointTensor, text func(x *rank.CheckpointTensor) string) {
	for _, g := range o.group(len(all), func(i int) (name, key string) { return all[i].Tensor, text(all[i]) }) {
		t.line("%s: %s", g.name, text(all[g.first]))
	}
}

// showChanged prints the tensors that changed, by kind.
func (o *diffOptions) showChanged(t *terminal, changed []*rank.CheckpointTensor) {
	if len(changed) == 0 {
		return
	}
	tab := &table{columns: []column{
		{head: "tensors"}, {head: "dtypes", left: true, drop: 3}, {head: "‖B−A‖/‖A‖"}, {head: "largest", drop: 1, meaning: "the largest |B − A|"},
		{head: "changed", drop: 2, meaning: "the share of the elements that differ"},
	}}
	if o.spectrum {
		tab.columns = append(tab.columns, []column{
			{head: "effective", meaning: "e to the entropy of the energies of B − A, estimated; the mean"},
			{head: "90 %", drop: 1, meaning: "singular values with this share of the energy ‖B − A‖², the most"},
			{head: "spectrum", left: true, drop: 4, meaning: "the first singular values ÷ σ1, the mean"},
		}...)
	}
	tab.columns = append(tab.columns, column{head: "name", left: true, isName: true})
	var nonFinite int64
	for _, k := range o.kinds(len(changed), func(i int) string { return changed[i].Tensor }) {
		var difference, base, most float64
		var elements, all int64
		first := changed[k.items[0]]
		dtypes := first.DTypeA
		if first.DTypeB != first.DTypeA {
			dtypes += ", " + first.DTypeB
		}
		for _, i := range k.items {
			x := changed[i]
			difference, most = difference+x.Norm*x.Norm, max(most, x.Max)
			if x.Relative > 0 {
				base += math.Pow(x.Norm/x.Relative, 2)
			}
			n := int64(1)
			for _, d := range x.ShapeA {
				n *= int64(d)
			}
			elements, all = elements+x.Elements, all+n
			nonFinite += x.NonFinite
		}
		relative := "new"
		if base > 0 {
			relative = fmt.Sprintf("%.3g", math.Sqrt(difference/base))
		}
		row := []string{fmt.Sprint(len(k.items)), dtypes, relative, fmt.Sprintf("%.3g", most), fmt.Sprintf("%.1f %%", 100*float64(elements)/float64(max(all, 1)))}
		if o.spectrum {
			row = append(row, changeTexts(changed, k.items)...)
		}
		tab.add(append(row, k.name)...)
	}
	t.print(tab)
	for _, x := range changed {
		if x.NoSpectrum != "" {
			t.line("%s has no spectrum: %s", x.Tensor, x.NoSpectrum)
		}
	}
	if nonFinite > 0 {
		t.line("%s that %s NaN or infinite in one of them %s in no norm", fault.Count(nonFinite, "element"),
			fault.Choose(nonFinite, "is", "are"), fault.Choose(nonFinite, "counts", "count"))
	}
}

// changeTexts are the effective rank, the number of singular values with 90 % of the energy, and
// the spectrum of changed tensors of a kind.
func changeTexts(changed []*rank.CheckpointTensor, items []int) []string {
	var n, effective float64
	var mean meanSpectrum
	most := 0
	isMore := false
	for _, i := range items {
		x := changed[i]
		if x.ChangeSpectrum == nil {
			continue
		}
		n, effective = n+1, effective+x.EffectiveRank
		most, isMore = max(most, x.Rank90), isMore || x.Rank90 == 0
		mean.add(x.SingularValues)
	}
	if n == 0 {
		return []string{"", "", ""}
	}
	rank90 := fmt.Sprint(most)
	if isMore {
		rank90 = fmt.Sprintf("> %d", rank.ChangeRank)
	}
	return []string{fmt.Sprintf("%.3g", effective/n), rank90, sparkline(mean)}
}
