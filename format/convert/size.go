package convert

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/delta"
)

// sizeOf returns the rows and columns of a layer's update, with the kernel of a convolution in the
// columns (spec/METHODS.md, section 2). The dimension that a scaling does not tell is 1.
func sizeOf(m *format.Manifest, l *format.Layer) (rows, columns uint64) {
	if delta.IsMethod(l) {
		rows, columns = delta.Size(l, m.Tensors)
		return max(1, rows), max(1, columns)
	}
	return m.Tensors[l.Roles[format.RoleB]].Shape[0], product(m.Tensors[l.Roles[format.RoleA]].Shape[1:])
}

// product multiplies dimensions.
func product(shape []uint64) uint64 {
	n := uint64(1)
	for _, d := range shape {
		n *= d
	}
	return n
}
