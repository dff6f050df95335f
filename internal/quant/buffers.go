package quant

import "sync"

// buffers keeps memory between calls.
type buffers struct {
	codes, scales, unpacked, order []byte
	values, zeros, wholes          []float64
	lines                          []float64
	index                          []int32
}

var kept = sync.Pool{New: func() any { return new(buffers) }}

func takeBuffers() *buffers { return kept.Get().(*buffers) }

func (b *buffers) giveBack() { kept.Put(b) }

func (b *buffers) codesOf(n int64) []byte     { return sized(&b.codes, n) }
func (b *buffers) scalesOf(n int64) []byte    { return sized(&b.scales, n) }
func (b *buffers) valuesOf(n int64) []float64 { return sized(&b.values, n) }
func (b *buffers) linesOf(n int64) []float64  { return sized(&b.lines, n) }

// sized returns n elements of a buffer.
func sized[T any](b *[]T, n int64) []T {
	if int64(cap(*b)) < n {
		*b = make([]T, n)
	}
	return (*b)[:n]
}
