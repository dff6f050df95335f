package audit

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"

	model "github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
)

// requantise judges the weights that an adapter changes and that the merged checkpoint stores in
// codes, with the scales of the base: it makes the merge with new codes, and compares these.
func (a *auditor) requantise() error {
	coded := make(map[string]*recodedTensor) // by the names of the codes
	ours, theirs := quantisedBy(a.stored), quantisedBy(a.merged)
	for _, e := range a.expected {
		if e.change == nil || !e.isCoded() || e.base.Scheme != e.merged.Scheme {
			continue
		}
		was, is := ours[e.Name], theirs[e.merged.Name]
		if same, err := a.haveSameScales(was.Parts, is.Parts); err != nil {
			return err
		} else if !same {
			continue
		}
		coded[was.Parts[0]] = &recodedTensor{of: e, codes: is.Parts[0]}
	}
	if len(coded) == 0 || a.o.BaseAs != "" {
		return nil
	}
	o := a.options()
	o.AllowNonFinite, o.Dequantise, o.Requantise, o.AcceptLoss, o.Progress = false, false, true, true, nil
	stamps := a.ownStamps()
	isTold := len(stamps) == 1 && stamps[0].Requantise != ""
	if isTold && stamps[0].Requantise == checkpoint.StochasticCodes {
		o.Stochastic, o.Seed = true, stamps[0].Seed
	}
	plan, err := merge.New(a.ctx, (*model.Checkpoint)(checkpoint.NewHandle(checkpoint.OnlyReadable(a.stored))), a.adapters, o)
	if err != nil {
		return nil // no such merge can be made: the values are judged
	}
	files := make(map[string][]*expected)
	stored := checkpoint.Stored(a.merged)
	for _, t := range plan.OutputTensors() {
		if c := coded[t.Name]; c != nil {
			ref, _ := stored.Lookup(c.codes)
			c.compared = &expected{OutputTensor: t, merged: ref.Tensor, left: t.NBytes}
			files[t.File] = append(files[t.File], c.compared)
		}
	}
	made, err := plan.RunTo(a.ctx, &comparison{
		ctx: a.ctx, files: files, begin: func(*expected) (*probe, error) { return nil, nil }, end: func(*expected) error { return nil },
	})
	if err != nil {
		return nil // NaN or infinity: the values are judged
	}
	kept := make(map[string]merge.Figure)
	for i := range made.Recoded.Layers {
		kept[made.Recoded.Layers[i].Tensor] = made.Recoded.Layers[i].Kept
	}
	for _, c := range coded {
		if share, ok := kept[c.of.Name]; ok && c.compared != nil && c.compared.isCompared() {
			c.conclude(share, o, isTold)
		}
	}
	return nil
}

// recodedTensor is a weight that both checkpoints store in codes.
type recodedTensor struct {
	of       *expected
	codes    string    // of the merged checkpoint
	compared *expected // the codes
}

// conclude judges the weight by its codes. kept is the share of ΔW that the right ones keep, those
// of a merge with these options. isTold says that a stamp tells how they were chosen, so that each
// of them is known.
func (c *recodedTensor) conclude(kept merge.Figure, o merge.Options, isTold bool) {
	t, n := &c.of.found, c.compared.different
	chosen := "the nearest to the update's sum"
	if o.Stochastic {
		chosen = fmt.Sprintf("chosen at random by the seed %d of the stamp", o.Seed)
	}
	switch {
	case n == 0:
		t.Verdict, t.Finding, t.Rounding, t.Margin = AsClaimed, Requantised, Exact, merge.Figure(math.NaN())
		t.Text = fmt.Sprintf("every code is %s, with the scales of the base; %.3g %% of the update is kept", chosen, 100*float64(kept))
	case isTold && (c.compared.far == 0 || n <= t.Elements/100):
		t.Verdict, t.Finding = NotAsClaimed, Elements
		t.Text = fmt.Sprintf("%s of %d %s not %s", fault.Count(int(n), "code"), t.Elements, fault.Choose(int(n), "is", "are"), chosen)
	case c.compared.far == 0 && c.compared.DType == dtype.F8E4M3:
		t.Verdict, t.Finding = Inconclusive, Requantised
		t.Text = fmt.Sprintf("%.2g %% of the codes are next to the nearest one: chosen at random, or from rounded sums", 100*float64(n)/float64(t.Elements))
	default:
		return
	}
	t.Different, t.Change, t.Residual = n, merge.Figure(math.NaN()), merge.Figure(math.NaN())
	c.of.isDone = true
}

func quantisedBy(c *checkpoint.Checkpoint) map[string]checkpoint.Quantised {
	all := make(map[string]checkpoint.Quantised)
	for _, q := range checkpoint.QuantisedOf(c) {
		all[q.Name] = q
	}
	return all
}

// haveSameScales compares all that belongs to the codes of a weight in the two checkpoints, but the
// codes, which come first.
func (a *auditor) haveSameScales(ours, theirs []string) (bool, error) {
	if len(ours) != len(theirs) {
		return false, nil
	}
	stored, merged := checkpoint.Stored(a.stored), checkpoint.Stored(a.merged)
	for i := range ours[1:] {
		was, _ := stored.Lookup(ours[1+i])
		is, _ := merged.Lookup(theirs[1+i])
		if was.Tensor.DType != is.Tensor.DType || was.Tensor.NBytes != is.Tensor.NBytes {
			return false, nil
		}
		if same, err := equal(a.ctx, was.Tensor, is.Tensor); !same || err != nil {
			return false, err
		}
	}
	return true, nil
}
