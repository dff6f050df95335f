package merge

import "slices"

// PeakBytes estimates the memory that Run takes: blocks and factors in flight, at most workers+1 bands
// at a time, and the tensors of adapters that bands share.
func (p *Plan) PeakBytes(workers int) int64 {
	var largest, shared, nBlocks int64
	size, buffers := p.blockBytes(), int64(2)
	k := &tools{plan: p}
	for _, t := range p.targets {
		if nRows, nCols := t.Matrix(); nRows > 0 && nCols > 0 {
			nBlocks += (nRows-1)/p.blockRows(t) + 1
			size = max(size, p.blockRows(t)*nCols*int64(t.DType.Size()))
		}
		ops := newPipeline(t, k).ops
		bands := make([]int64, t.NBands)
		for i := range bands {
			bands[i] = bytesOf(ops, i)
		}
		largest, shared = max(largest, slices.Max(bands)), max(shared, t.sharedBytes())
	}
	if p.options.wantsRecord() || p.removed.is() {
		buffers = 5 // values before and after, predictions, and residuals
	}
	return min(int64(workers), nBlocks)*(buffers*size+largest) + largest + 2*shared
}

// sharedBytes is what the bands of a tensor share: tensors of adapters that each needs a part of.
func (t *target) sharedBytes() (n int64) {
	if t.NBands == 1 {
		return 0
	}
	terms := t.Terms
	for i := range t.undo {
		terms = append(terms[:len(terms):len(terms)], t.undo[i].terms...)
	}
	size := wordBytes(isWide(t, terms))
	for _, x := range terms {
		n += size * int64(x.Rank) * int64(x.Left.Length+x.Right.Length)
	}
	return n
}
