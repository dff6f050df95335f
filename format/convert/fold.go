package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// fold gives a layer the scale 1: two of its factors carry the scale instead. It multiplies A by
// one part of the scale and B, and a bias, by the other, and looks for parts that make every
// product exact. If A cannot hold the products, it becomes F32. If F32 cannot hold them either,
// they are rounded once, and the remark says so.
func (n *newLayer) fold(ctx context.Context, src format.Source) (remark string, err error) {
	if !n.hasScale() {
		return "", nil
	}
	s := n.scale()
	n.alpha, n.scaling = float64(n.rank), format.AlphaOverR
	if s == 1 {
		return "", nil
	}
	roleA, roleB := n.carriers()
	a, b := n.factors[roleA], n.factors[roleB]
	wide := *a
	if wide.dtype != dtype.F64 {
		wide.dtype = dtype.F32
	}
	for _, a := range []*factor{a, &wide} {
		down, up, ok, err := split(ctx, src, a, b, s)
		if err != nil {
			return "", err
		}
		if ok {
			n.factors[roleA], n.factors[roleB] = a.times(down), b.times(up)
			return "", n.foldBias(ctx, src, s)
		}
	}
	down, up := balance(s)
	n.factors[roleA], n.factors[roleB] = wide.times(down).rounded(), b.times(up).rounded()
	remark = fmt.Sprintf("no factor of %q holds its scale %v exactly; A is rounded to %v, which changes "+
		"each element by less than 1 part in %d", n.name, s, wide.dtype, 1<<24)
	return remark, n.foldBias(ctx, src, s)
}

// foldsExactly returns the factors of a layer that has the scale want in a file that gives it the
// scale has: they carry a power of two. It returns nil if another factor is needed, or if a product
// is not exact.
func foldsExactly(ctx context.Context, src format.Source, n *newLayer, has, want float64) map[format.Role]*factor {
	ratio := want / has
	if digits, _ := math.Frexp(ratio); math.Abs(digits) != 0.5 || has*ratio != want {
		return nil
	}
	x := *n
	x.factors = maps.Clone(n.factors)
	if remark, err := foldRatio(ctx, src, &x, ratio); err != nil || remark != "" {
		return nil
	}
	return x.factors
}

// foldRatio multiplies the update of a layer: its factors carry the ratio.
func foldRatio(ctx context.Context, src format.Source, n *newLayer, ratio float64) (remark string, err error) {
	x := newLayer{name: n.name, kind: n.kind, rank: 1, alpha: ratio, scaling: format.AlphaOverR, factors: n.factors}
	return x.fold(ctx, src)
}

// carriers returns the roles of two factors by each of which ΔW grows in proportion.
func (n *newLayer) carriers() (a, b format.Role) {
	has := func(role format.Role) bool { return n.factors[role] != nil }
	switch {
	case n.kind == format.Hadamard:
		return format.RoleW1A, format.RoleW2A
	case n.kind != format.Kronecker:
		return format.RoleA, format.RoleB
	}
	a, b = format.RoleW1, format.RoleW2
	if !has(a) {
		a = format.RoleW1A
	}
	if !has(b) {
		b = format.RoleW2A
	}
	return a, b
}

// foldBias multiplies a bias, in its own dtype or in F32, or rounds it once.
func (n *newLayer) foldBias(ctx context.Context, src format.Source, s float64) error {
	bias := n.factors[format.RoleBias]
	if bias == nil {
		return nil
	}
	scaled := bias.times(s)
	_, err := scaled.content(ctx, src)
	if isInexact(err) && bias.dtype != dtype.F64 {
		scaled.dtype = dtype.F32
		scaled, err = scaled.rounded(), nil
	}
	n.factors[format.RoleBias] = scaled
	return err
}

// balance divides a scale between A and B as diffusers does (loaders/lora_conversion_utils.py): B
// takes powers of two from A until the part of A is at least half of its own.
func balance(s float64) (down, up float64) {
	down, up = s, 1
	for down != 0 && math.Abs(down)*2 < up {
		down, up = down*2, up/2
	}
	return down, up
}

// maxShift bounds the powers of two by which the parts of a scale move from the balance.
const maxShift = 24

// split divides a scale so that all products are exact. It begins with the balance, and moves
// powers of two where an element leaves the range of its dtype.
func split(ctx context.Context, src format.Source, a, b *factor, s float64) (down, up float64, ok bool, err error) {
	for k := range 2*maxShift + 1 {
		shift := (k + 1) / 2
		if k%2 == 0 {
			shift = -shift
		}
		down, up := balance(s)
		down, up = math.Ldexp(down, shift), math.Ldexp(up, -shift)
		_, err := a.times(down).content(ctx, src)
		if err == nil {
			_, err = b.times(up).content(ctx, src)
		}
		var inexact *inexactError
		switch {
		case err == nil:
			return down, up, true, nil
		case !errors.As(err, &inexact):
			return 0, 0, false, err
		case !inexact.ofRange:
			return 0, 0, false, nil
		}
	}
	return 0, 0, false, nil
}

// times returns a factor whose elements are multiplied by x.
func (f *factor) times(x float64) *factor {
	scaled := *f
	scaled.blocks = nil
	for _, b := range f.blocks {
		b.rounds = b.rounds || !isProduct(b.times*x, b.times, x)
		b.times *= x
		scaled.blocks = append(scaled.blocks, b)
	}
	return &scaled
}

// rounded returns a factor whose products may be rounded.
func (f *factor) rounded() *factor {
	g := f.times(1)
	for i := range g.blocks {
		g.blocks[i].rounds = true
	}
	return g
}

func isInexact(err error) bool {
	var inexact *inexactError
	return errors.As(err, &inexact)
}
