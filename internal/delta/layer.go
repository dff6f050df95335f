package delta

import (
	"context"
	"fmt"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/dense"
)

// IsMethod reports whether this package computes the ΔW of a layer: it has a kind of version 1.2 of
// the format, or a core (spec/METHODS.md).
func IsMethod(l *format.Layer) bool {
	switch l.Kind {
	case format.Hadamard, format.Kronecker, format.OutputScaling, format.InputScaling:
		return true
	}
	_, hasCore := l.Roles[format.RoleCore]
	return l.Kind == format.Conv && hasCore
}

// HasRole reports whether a role belongs to the layers that IsMethod accepts, beside A and B.
func HasRole(role format.Role) bool {
	switch role {
	case format.RoleW1, format.RoleW1A, format.RoleW1B, format.RoleT1, format.RoleW2, format.RoleW2A,
		format.RoleW2B, format.RoleT2, format.RoleVector, format.RoleAxis, format.RoleCore:
		return true
	}
	return false
}

// Size returns the rows and columns of the ΔW of a valid layer that IsMethod accepts. A number that
// only the weight tells is 0: a scaling has one for each output or each input alone.
func Size(l *format.Layer, tensors []format.Tensor) (rows, cols uint64) {
	s := shapes{l, tensors}
	switch l.Kind {
	case format.OutputScaling:
		return s.elements(format.RoleVector), 0
	case format.InputScaling:
		return 0, s.elements(format.RoleVector)
	case format.Conv:
		return s.dim(format.RoleB, 0), s.dim(format.RoleA, 1) * s.kernel(format.RoleCore)
	case format.Hadamard:
		if s.has(format.RoleT1) {
			return s.dim(format.RoleW1A, 1), s.dim(format.RoleW1B, 1) * s.kernel(format.RoleT1)
		}
		return s.dim(format.RoleW1A, 0), s.elements(format.RoleW1B) / uint64(l.Rank)
	}
	o, i := s.left()
	p, j := s.right()
	return o * p, i * j
}

// shapes answers questions about the tensors of a layer.
type shapes struct {
	layer   *format.Layer
	tensors []format.Tensor
}

func (s shapes) has(role format.Role) bool { _, ok := s.layer.Roles[role]; return ok }

func (s shapes) shape(role format.Role) []uint64 { return s.tensors[s.layer.Roles[role]].Shape }

func (s shapes) dim(role format.Role, at int) uint64 { return s.shape(role)[at] }

func (s shapes) elements(role format.Role) uint64 {
	return uint64(s.tensors[s.layer.Roles[role]].Elements())
}

// kernel is the number of places in the kernel that a core r×r×kernel has.
func (s shapes) kernel(role format.Role) uint64 {
	k := uint64(1)
	for _, d := range s.shape(role)[2:] {
		k *= d
	}
	return k
}

// left returns the size of U, the left matrix of a Kronecker product.
func (s shapes) left() (rows, cols uint64) {
	if s.has(format.RoleW1) {
		return s.dim(format.RoleW1, 0), s.dim(format.RoleW1, 1)
	}
	return s.dim(format.RoleW1A, 0), s.dim(format.RoleW1B, 1)
}

// right returns the size of V, the right matrix of a Kronecker product.
func (s shapes) right() (rows, cols uint64) {
	switch {
	case s.has(format.RoleW2):
		rows = s.dim(format.RoleW2, 0)
		return rows, s.elements(format.RoleW2) / rows
	case s.has(format.RoleT2):
		return s.dim(format.RoleW2A, 1), s.dim(format.RoleW2B, 1) * s.kernel(format.RoleT2)
	}
	return s.dim(format.RoleW2A, 0), s.elements(format.RoleW2B) / uint64(s.layer.Rank)
}

// Read reads the factors of a layer that IsMethod accepts and returns its ΔW, of the given size and
// scaled by scale. Size tells the size where the layer does; kernel is the number of columns that
// read one input, which only an input scaling asks for.
func Read(
	ctx context.Context, src format.Source, l *format.Layer, scale float64, rows, cols, kernel int,
) (*Delta, error) {
	r := &reader{shapes: shapes{l, src.Manifest().Tensors}, ctx: ctx, src: src}
	d := r.delta(scale, rows, cols, kernel)
	d.nonFinite = r.nonFinite
	switch {
	case r.err != nil:
		return nil, r.err
	case d.Rows() != rows || d.Cols() != cols:
		return nil, fmt.Errorf("internal error: ΔW of %q is %d×%d, the plan wants %d×%d",
			l.Module, d.Rows(), d.Cols(), rows, cols)
	}
	return d, nil
}

// ReadWhole reads a tensor that is a ΔW itself, as a matrix with cols columns.
func ReadWhole(
	ctx context.Context, src format.Source, tensor int, scale float64, cols int,
) (*Delta, error) {
	t := &src.Manifest().Tensors[tensor]
	raw, err := format.ReadTensor(ctx, src, tensor)
	if err != nil {
		return nil, err
	}
	d := Sum(Full(int(t.Elements())/cols, cols, t.DType, raw), scale)
	d.nonFinite = dtype.CountNonFinite(t.DType, raw)
	return d, nil
}

// reader reads the factors of a layer. It remembers the first error, after which all values are
// zeros.
type reader struct {
	shapes
	ctx context.Context
	src format.Source
	err error

	nonFinite int // values
}

func (r *reader) delta(scale float64, rows, cols, kernel int) *Delta {
	switch r.layer.Kind {
	case format.OutputScaling:
		return ScaledRows(r.values(format.RoleVector), cols, scale)
	case format.InputScaling:
		return ScaledInputs(r.values(format.RoleVector), rows, kernel, scale)
	case format.Conv:
		n := int(r.dim(format.RoleA, 1))
		return Sum(Tucker(rows, r.layer.Rank, n, int(r.kernel(format.RoleCore)),
			r.values(format.RoleB), r.values(format.RoleCore), r.values(format.RoleA)), scale)
	case format.Hadamard:
		p := r.matrix(format.RoleW1A, format.RoleW1B, format.RoleT1, rows, cols)
		q := r.matrix(format.RoleW2A, format.RoleW2B, format.RoleT2, rows, cols)
		return Hadamard(p, q, scale)
	}
	o, i := r.left()
	u := r.whole(format.RoleW1, int(o), int(i))
	if u == nil {
		u = r.matrix(format.RoleW1A, format.RoleW1B, "", int(o), int(i))
	}
	p, j := r.right()
	v := r.whole(format.RoleW2, int(p), int(j))
	if v == nil {
		v = r.matrix(format.RoleW2A, format.RoleW2B, format.RoleT2, int(p), int(j))
	}
	return Kronecker(u, v, scale)
}

// whole reads a matrix that is stored as it is, or returns nil if it is not.
func (r *reader) whole(role format.Role, rows, cols int) Matrix {
	if !r.has(role) {
		return nil
	}
	i := r.layer.Roles[role]
	raw, err := format.ReadTensor(r.ctx, r.src, i)
	if err != nil && r.err == nil {
		r.err = err
	}
	if r.err != nil {
		raw = make([]byte, r.tensors[i].NBytes())
	}
	r.nonFinite += dtype.CountNonFinite(r.tensors[i].DType, raw)
	return Full(rows, cols, r.tensors[i].DType, raw)
}

// matrix reads a product of two factors, with a core between them if the layer has one.
func (r *reader) matrix(a, b, core format.Role, rows, cols int) Matrix {
	x, y := r.values(a), r.values(b)
	if core == "" || !r.has(core) {
		return Product(rows, r.layer.Rank, cols, x, y)
	}
	kernel := int(r.kernel(core))
	x = dense.Flip(x, r.layer.Rank, rows)
	return Tucker(rows, r.layer.Rank, cols/kernel, kernel, x, r.values(core), y)
}

func (r *reader) values(role format.Role) []float64 {
	x, err := format.ReadFloats(r.ctx, r.src, r.layer.Roles[role])
	if err != nil && r.err == nil {
		r.err = err
	}
	if r.err != nil {
		return make([]float64, r.elements(role))
	}
	for _, v := range x {
		if v-v != 0 {
			r.nonFinite++
		}
	}
	return x
}
