package convert

import "github.com/loratool/loratool/format"

// sizeOf returns the rows and columns of a layer's update, with the kernel of a convolution in the
// columns (spec/METHODS.md, section 2). The dimension that a scaling does not tell is 1.
func sizeOf(m *format.Manifest, l *format.Layer) (rows, columns uint64) {
	shape := func(role format.Role) []uint64 {
		if i, ok := l.Roles[role]; ok {
			return m.Tensors[i].Shape
		}
		return nil
	}
	switch l.Kind {
	case format.Hadamard:
		a, b, core := shape(format.RoleW1A), shape(format.RoleW1B), shape(format.RoleT1)
		return thinSize(a, b, core)
	case format.Kronecker:
		rows, columns = thinSize(shape(format.RoleW1A), shape(format.RoleW1B), nil)
		if w := shape(format.RoleW1); w != nil {
			rows, columns = w[0], product(w[1:])
		}
		r, c := thinSize(shape(format.RoleW2A), shape(format.RoleW2B), shape(format.RoleT2))
		if w := shape(format.RoleW2); w != nil {
			r, c = w[0], product(w[1:])
		}
		return rows * r, columns * c
	case format.OutputScaling:
		return product(shape(format.RoleVector)), 1
	case format.InputScaling:
		return 1, product(shape(format.RoleVector))
	}
	a, b, core := shape(format.RoleA), shape(format.RoleB), shape(format.RoleCore)
	columns = product(a[1:])
	if core != nil {
		columns *= product(core[2:])
	}
	return b[0], columns
}

// thinSize returns the size of a thin product, a m×r and b r×n, or around a core.
func thinSize(a, b, core []uint64) (rows, columns uint64) {
	switch {
	case a == nil || b == nil:
		return 1, 1
	case core != nil:
		return a[1], b[1] * product(core[2:])
	}
	return a[0], product(b[1:])
}

// product multiplies dimensions.
func product(shape []uint64) uint64 {
	n := uint64(1)
	for _, d := range shape {
		n *= d
	}
	return n
}
