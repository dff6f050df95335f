package rank

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// ComparedTensor compares two tensors that are not factors: biases and magnitudes of layers, and
// tensors beside the layers.
type ComparedTensor struct {
	Tensor string `json:"tensor"` // the base's tensor, or the module and the role
	What   string `json:"what"`   // the action or the role: replace, rows, difference, bias, magnitude, …
	Status Status `json:"status"`
	// Relative is ‖A − B‖_F ÷ max(‖A‖_F, ‖B‖_F), if both adapters have the tensor with one shape.
	Relative float64 `json:"relative_norm"`
}

// Status says how something in two adapters or checkpoints compares.
type Status string

// The values of a Status.
const (
	Identical Status = "identical" // the same values
	Changed   Status = "changed"
	Reshaped  Status = "reshaped"
	OnlyA     Status = "only_a"
	OnlyB     Status = "only_b"
)

// String says what the status means, in words.
func (s Status) String() string {
	switch s {
	case Identical:
		return "the same in both"
	case Reshaped:
		return "of another shape"
	case OnlyA:
		return "only in A"
	case OnlyB:
		return "only in B"
	}
	return "changed"
}

// Text says how the tensors compare, in words.
func (t *ComparedTensor) Text() string {
	if t.Status == Changed {
		return fmt.Sprintf("differs by %.3g of its norm", t.Relative)
	}
	return t.Status.String()
}

// other is a tensor that is no factor, by its name and what it is.
type other struct {
	name, what string
	rows       []int64
	tensor     int
}

// othersOf lists the tensors of an adapter that are no factors.
func othersOf(a *format.Adapter) (all []other) {
	for i := range a.Layers {
		l := &a.Layers[i]
		for role, t := range l.Roles {
			if role != format.RoleA && role != format.RoleB && role != format.RoleAlpha {
				all = append(all, other{name: l.Module, what: string(role), tensor: t})
			}
		}
	}
	for i := range a.Beside {
		b := &a.Beside[i]
		all = append(all, other{b.Target, string(b.Action), b.Rows, b.Tensor})
	}
	slices.SortFunc(all, func(x, y other) int { return x.compare(y) })
	return all
}

func (x other) compare(y other) int {
	return cmp.Or(cmp.Compare(x.name, y.name), cmp.Compare(x.what, y.what))
}

// compareOthers compares the tensors that are no factors.
func (c *comparing) compareOthers(ctx context.Context, a, b *format.Adapter) error {
	x, y := othersOf(a), othersOf(b)
	for len(x) > 0 || len(y) > 0 {
		var t ComparedTensor
		switch {
		case len(y) == 0 || len(x) > 0 && x[0].compare(y[0]) < 0:
			t = ComparedTensor{Tensor: x[0].name, What: x[0].what, Status: OnlyA}
			x = x[1:]
		case len(x) == 0 || x[0].compare(y[0]) > 0:
			t = ComparedTensor{Tensor: y[0].name, What: y[0].what, Status: OnlyB}
			y = y[1:]
		default:
			t = ComparedTensor{Tensor: x[0].name, What: x[0].what}
			if err := c.compareOther(ctx, &t, x[0], y[0]); err != nil {
				return err
			}
			x, y = x[1:], y[1:]
		}
		c.result.Tensors = append(c.result.Tensors, t)
	}
	return nil
}

// compareOther compares two tensors piece by piece.
func (c *comparing) compareOther(ctx context.Context, t *ComparedTensor, x, y other) error {
	a, b := &c.sources[0].Manifest().Tensors[x.tensor], &c.sources[1].Manifest().Tensors[y.tensor]
	if !slices.Equal(a.Shape, b.Shape) || !slices.Equal(x.rows, y.rows) {
		t.Status = Reshaped
		return nil
	}
	if !a.DType.IsFloat() || !b.DType.IsFloat() {
		return c.compareBytes(ctx, t, x.tensor, y.tensor)
	}
	const piece = 1 << 16
	n := a.Elements()
	bufA, bufB := make([]byte, a.DType.Size()*int(min(piece, n))), make([]byte, b.DType.Size()*int(min(piece, n)))
	va, vb := make([]float64, min(piece, n)), make([]float64, min(piece, n))
	var d pieceDifference
	var squaresA, squaresB float64
	for first := int64(0); first < n; first += piece {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := int(min(piece, n-first))
		pa, pb := bufA[:k*a.DType.Size()], bufB[:k*b.DType.Size()]
		if err := c.sources[0].ReadBlobAt(pa, x.tensor, first*int64(a.DType.Size())); err != nil {
			return err
		}
		if err := c.sources[1].ReadBlobAt(pb, y.tensor, first*int64(b.DType.Size())); err != nil {
			return err
		}
		dtype.Widen64(va[:k], a.DType, pa)
		dtype.Widen64(vb[:k], b.DType, pb)
		for i, v := range va[:k] {
			d.element(v, vb[i])
		}
		squaresA, squaresB = squaresA+sumSquares(va[:k]), squaresB+sumSquares(vb[:k])
	}
	if t.Status = Identical; d.elements > 0 {
		t.Status = Changed
		if t.Relative = math.Sqrt(d.squares / max(squaresA, squaresB)); d.nonFinite > 0 || t.Relative-t.Relative != 0 {
			t.Relative = math.MaxFloat64 // NaN and infinity have no distance, and no number in JSON
		}
	}
	return nil
}

// compareBytes compares tensors of other dtypes than floats.
func (c *comparing) compareBytes(ctx context.Context, t *ComparedTensor, x, y int) error {
	a, err := format.ReadTensor(ctx, c.sources[0], x)
	if err != nil {
		return err
	}
	b, err := format.ReadTensor(ctx, c.sources[1], y)
	if t.Status = Changed; bytes.Equal(a, b) {
		t.Status = Identical
	}
	return err
}
