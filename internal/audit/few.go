package audit

import (
	"slices"

	"github.com/loratool/loratool/merge"
)

// explainFew explains a tensor in which few elements differ from the correctly rounded merge: each
// must be a value that a float32 sum can have been rounded to. All others are such values anyway.
// It leaves a tensor alone that this does not explain.
func (x *examination) explainFew() error {
	if x.e.change == nil || x.e.base == nil || !x.e.DType.IsFloat() || isSpecial(x.e.change) != "" || x.e.change.DoRA != nil {
		return nil
	}
	slices.Sort(x.e.at)
	updates, err := readUpdates(x.ctx, x.e.change, len(x.adapters), x.e.DType)
	if err != nil {
		return err
	}
	_, nCols := x.e.change.Matrix()
	c := candidate{name: Float32, work: x.e.DType, out: x.e.DType}
	u, bounds := make([]float64, len(updates)), make([]float64, len(updates))
	const most = 1 << 13 // elements that are read together
	buf := newElements(most)
	for i := 0; i < len(x.e.at); {
		first, n := x.e.at[i], 1
		for i+n < len(x.e.at) && x.e.at[i+n] < first+most {
			n++
		}
		count := int(x.e.at[i+n-1] - first + 1)
		if err := buf.read(x.ctx, x.e, first, count); err != nil {
			return err
		}
		for _, at := range x.e.at[i : i+n] {
			for k := range updates {
				u[k], bounds[k] = updates[k].at(int(at/nCols), int(at%nCols))
			}
			lo, hi := c.interval(buf.w[at-first], u, bounds, nil)
			if m := buf.m[at-first]; !(lo <= m && m <= hi) {
				return nil
			}
		}
		i += n
	}
	x.e.isDone, x.e.at = true, nil
	x.e.found.Finding, x.e.found.Rounding = Merged, Float32
	// Rounding correctly is the best other way. Those that round more often differ in many
	// elements.
	x.e.found.Margin = merge.Figure(float64(x.e.different) / float64(x.e.found.Elements))
	return nil
}
