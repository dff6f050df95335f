package audit

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
)

// trial is a candidate with the number of elements that it does not explain.
type trial struct {
	candidate
	unexplained int64
	far         int64 // of these, those more than a step away from its values
	loose       int64 // elements for which it allows several values
	seen        int64 // elements
	isOut       bool
}

// block holds rows of a tensor: both checkpoints, and the updates.
type block struct {
	*elementsOf
	e       *expected
	updates []update
	u       [nVariants][][]float64 // per adapter
	bounds  [][]float64
	scales  []float64
	needs   [nVariants]bool // which of u eachRows fills
	nRows   int64
	nCols   int
	rows    int // at once
	first   int64
}

// newBlock makes a block for the tensor.
func newBlock(e *expected, updates []update) *block {
	nRows, nCols := e.change.Matrix()
	b := &block{e: e, updates: updates, nRows: nRows, nCols: int(nCols), rows: max(1, (1<<14)/int(max(1, nCols)))}
	most := b.rows * b.nCols
	b.elementsOf = newElements(e, most)
	b.needs[asStored] = true
	for k := range updates {
		b.bounds = append(b.bounds, make([]float64, most))
		scale := 0.0
		if len(updates[k].parts) > 0 {
			scale = updates[k].parts[0].scale
		}
		b.scales = append(b.scales, scale)
	}
	return b
}

// eachRows reads every step-th row, and calls f with the number of elements that the block holds.
func (b *block) eachRows(ctx context.Context, step int64, f func(n int)) error {
	rows := int64(b.rows)
	if step > 1 {
		rows = 1
	}
	for v := range nVariants {
		for b.needs[v] && len(b.u[v]) < len(b.updates) {
			b.u[v] = append(b.u[v], make([]float64, len(b.w)))
		}
	}
	for first := int64(0); first < b.nRows; first += rows * step {
		n := int(min(rows, b.nRows-first)) * b.nCols
		if err := b.read(ctx, first*int64(b.nCols), n); err != nil {
			return err
		}
		b.first = first
		for k := range b.updates {
			clear(b.bounds[k][:n])
			for v := range nVariants {
				if !b.needs[v] {
					continue
				}
				clear(b.u[v][k][:n])
				bounds := b.bounds[k]
				if v != asStored {
					bounds = nil
				}
				b.updates[k].add(b.u[v][k], bounds, v, int(first), n/b.nCols, b.nCols)
			}
		}
		f(n)
	}
	return nil
}

// rescaling is DoRA's: W + ΔW = m·V/‖V‖, with a magnitude m for each row, or for some columns.
type rescaling struct {
	magnitudes []float64
	ofColumns  bool
	width      int // columns that share a magnitude
	length     int // elements of a norm
	norms      map[normKey][]float64
}

// normKey names the V of a norm: with which factors, rounded or not, in which dtype.
type normKey struct {
	kind Rounding
	work dtype.Type
}

// values sums up the elements of a tensor in both checkpoints.
type values struct {
	n, different, nonFinite int64 // different: from the base, cast to the merged dtype
	differentF16            int64 // the same by way of float16
	// The elements of the base and of the merged tensor that do not fit these dtypes.
	wideW, wideM [2]int64
	base, change float64 // ‖W‖², ‖M − W‖²
}
