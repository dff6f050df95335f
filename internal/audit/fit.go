package audit

import (
	"fmt"
	"math"
	"strconv"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// fit finds the weights with which the adapters explain the change of a tensor, and names what is
// wrong with them. If they do not explain it, other updates may.
func (x *examination) fit(updates []update) error {
	g := newBracketing(elements(x.e.Shape))
	f, err := x.leastSquares(updates, func(b *block, n int) {
		if len(updates) == 1 {
			g.add(b, n)
		}
	})
	if err != nil {
		return err
	}
	f.bracket(g, x.e.merged.DType)
	x.e.fitting = f
	x.e.found.setFit(f)
	if f.isNoise() {
		x.nameWeights(updates)
		return nil
	}
	return x.tryOthers(f, updates)
}

// leastSquares fits updates to the change of a tensor. It calls also, unless that is nil, for the
// same blocks of rows.
func (x *examination) leastSquares(updates []update, also func(b *block, n int)) (*fitting, error) {
	f, b := newFitting(len(updates)), newBlock(x.e, updates)
	err := b.eachRows(x.ctx, x.manyRows(), func(n int) {
		f.add(b, n)
		if also != nil {
			also(b, n)
		}
	})
	f.solve()
	return f, err
}

// manyRows is the distance of rows in which about manyValues elements lie.
func (x *examination) manyRows() int64 {
	return max(1, elements(x.e.Shape)/manyValues)
}

// nameWeights names a change that is a sum of the updates with some weights.
func (x *examination) nameWeights(updates []update) {
	t, f := &x.e.found, x.e.fitting
	t.Verdict = NotAsClaimed
	var lost, off []string
	for k := range updates {
		w, err := f.weights[k], f.errors[k]
		switch {
		case math.IsNaN(w) || isNear(w, err, 1):
		case isNear(w, err, 0):
			lost = append(lost, x.adapters[k].Name)
		default:
			off = append(off, x.adapters[k].Name)
		}
	}
	switch {
	case len(lost)+len(off) == 0 && hasWideError(f):
		t.Verdict, t.Finding = Inconclusive, Rounded
		t.Text = fmt.Sprintf("rounding hides the scale of the update: it is %.3g ± %.2g of what the adapter says", f.weights[0], f.errors[0])
	case len(lost)+len(off) == 0:
		t.Verdict, t.Finding = Inconclusive, Rounded
		t.Text = "the update is there with the right scale, rounded in an unknown way"
	case len(updates) == 1:
		t.Finding, t.Text = nameScale(x.e, f.weights[0], f.errors[0], &updates[0])
	case len(off) == 0:
		t.Finding, t.Text = AdapterLost, fault.List(lost, 3)+" was not applied"
	default:
		t.Finding, t.Text = Weights, "the weights are "+weightsText(f, x.adapters)
	}
}

func weightsText(f *fitting, adapters []merge.Adapter) string {
	text := ""
	for k := range f.weights {
		if k > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%.3g for %s", f.weights[k]*adapters[k].Weight, adapters[k].Name)
	}
	return text
}

// nameScale names the fault behind a factor between the update and that of the adapter.
func nameScale(e *expected, w, err float64, u *update) (Finding, string) {
	r := float64(u.rank())
	s := e.change.Terms[0].Scale
	switch {
	case isNear(w, err, -1):
		return Sign, ""
	case isNear(w, err, 2):
		return Twice, ""
	case isNear(w, err, 0):
		return NotApplied, "the update is not there, and the tensor has other changes"
	}
	known := []struct {
		factor float64
		why    string
	}{
		{1 / math.Sqrt(r), "1/√r: rsLoRA was read as plain LoRA"},
		{math.Sqrt(r), "√r: plain LoRA was read as rsLoRA"},
		{1 / s, "1/s: lora_alpha was lost, and the scale is 1"},
		{1 / (s * r), "1/lora_alpha: the scale is 1/r, and lora_alpha was read as 1"},
		{r, "r: the scale is lora_alpha, without the division by r"},
		{1 / r, "1/r: the scale was divided by r once more"},
		{s, "s: the scale was applied twice"},
		{-2, "−2: the update was subtracted twice"},
	}
	text := fmt.Sprintf("the update has %s times the scale that the adapter says", factorText(w))
	for _, k := range known {
		if k.factor != 1 && isNear(w, err, k.factor) {
			return Scale, text + ", which is " + k.why
		}
	}
	return Scale, text
}

// factorText writes a factor with three digits, or as many as tell it from 1.
func factorText(w float64) string {
	for digits := 3; digits < 10; digits++ {
		if text := strconv.FormatFloat(w, 'g', digits, 64); text != "1" {
			return text
		}
	}
	return fmt.Sprint(w)
}
