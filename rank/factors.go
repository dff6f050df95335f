package rank

import (
	"context"
	"math"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/thin"
)

// factors is the way in which A and B of a layer hold one matrix B·A or, for stacked experts, one
// for each expert.
type factors struct {
	module   string
	form     blockForm
	n        int // number of blocks; 1 without experts
	rows     int // of a block
	cols     int
	rank     int
	restA    []uint64 // the shape of A behind its ranks: inputs, and the window of a convolution
	restB    []uint64 // the shape of B behind its ranks: ones
	nA, nB   int      // blocks of A and of B; 1 if all experts share the factor
	tensorsA int      // numbers of the tensors
	tensorsB int
}

// blockForm says where the factors of a block are.
type blockForm int

const (
	single   blockForm = iota // A is r×…, B is m×r×…
	inStacks                  // A is (E·r)×n with one expert after the other, B is m×(r·E) with the expert running fastest
	inThrees                  // A is E×r×n and B is E×m×r, or 1 in place of E
)

// factorsOf describes the factors of a layer of a valid manifest. It fails for a layer whose update
// is no thin product.
func factorsOf(l *format.Layer, tensors []format.Tensor, isPerExpert bool) (*factors, error) {
	iA, hasA := l.Roles[format.RoleA]
	iB, hasB := l.Roles[format.RoleB]
	_, hasCore := l.Roles[format.RoleCore]
	inThree := hasA && hasB && isPerExpert && len(tensors[iA].Shape) == 3 && len(tensors[iB].Shape) == 3
	if !hasA || !hasB || hasCore || l.Kind == format.Other && !inThree {
		return nil, fault.New(fault.Unsupported, "the update of %q is no product of two thin factors", l.Module)
	}
	a, b := &tensors[iA], &tensors[iB]
	for _, t := range []*format.Tensor{a, b} {
		if !t.DType.IsFloat() {
			return nil, fault.New(fault.Unsupported,
				"%q is stored as %v, want F64, F32, F16 or BF16", t.Name, t.DType)
		}
	}
	x := &factors{module: l.Module, n: 1, nA: 1, nB: 1, rank: l.Rank, tensorsA: iA, tensorsB: iB}
	r, sa, sb := uint64(l.Rank), a.Shape, b.Shape
	fits := len(sa) > 1 && len(sb) > 1
	switch {
	case inThree && l.Kind == format.Other:
		x.form = inThrees
		n := max(sa[0], sb[0])
		fits = sa[1] == r && sb[2] == r && (sa[0] == n || sa[0] == 1) && (sb[0] == n || sb[0] == 1)
		x.n, x.nA, x.nB = int(n), int(sa[0]), int(sb[0])
		x.rows, x.restA = int(sb[1]), sa[2:]
	case fits && l.Kind.IsExpert():
		x.form = inStacks
		fits = len(sa) == 2 && len(sb) == 2 && sa[0] == sb[1] && sa[0]%r == 0
		x.n = int(sa[0] / r)
		x.nA, x.nB = x.n, x.n
		x.rows, x.restA = int(sb[0]), sa[1:]
	case fits:
		fits = sa[0] == r && sb[1] == r && uint64(b.Elements()) == sb[0]*r
		x.rows, x.restA, x.restB = int(sb[0]), sa[1:], sb[2:]
	}
	x.cols = 1
	for _, d := range x.restA {
		x.cols *= int(d)
	}
	if !fits || x.n == 0 {
		return nil, fault.New(fault.Corrupt, "%q: lora_A has shape %d and lora_B %d, which do not make products of rank %d",
			l.Module, sa, sb, l.Rank)
	}
	return x, nil
}

// equals reports whether two layers have updates of the same sizes.
func (x *factors) equals(y *factors) bool {
	if x.form != y.form || x.n != y.n || x.rows != y.rows || len(x.restA) != len(y.restA) {
		return false
	}
	for i, d := range x.restA {
		if y.restA[i] != d {
			return false
		}
	}
	return true
}

// read reads all blocks. Their exponents are 0. nonFinite counts NaN and infinite values.
func (x *factors) read(ctx context.Context, src format.Source) (all []*thin.Matrix, nonFinite int64, err error) {
	turned := 0
	if x.form == single {
		turned = x.rank
	}
	a, badA, err := readFactor(ctx, src, x.tensorsA, turned)
	if err != nil {
		return nil, 0, err
	}
	b, badB, err := readFactor(ctx, src, x.tensorsB, 0)
	if err != nil {
		return nil, 0, err
	}
	if x.form == single {
		return []*thin.Matrix{{M: x.rows, N: x.cols, R: x.rank, B: b, A: a}}, badA + badB, nil
	}
	for e := range x.n {
		m := &thin.Matrix{M: x.rows, N: x.cols, R: x.rank}
		m.B, m.A = make([]float64, x.rows*x.rank), make([]float64, x.cols*x.rank)
		x.each(m.B, m.A, e, x.rank, func(i int, v *float64) { *v = b[i] }, func(i int, v *float64) { *v = a[i] })
		all = append(all, m)
	}
	return all, badA + badB, nil
}

// each calls onB for every element of B, rows×rank, and onA for every element of A's transpose,
// cols×rank, of a block, with the number of the element in the tensor.
func (x *factors) each(b, a []float64, block, rank int, onB, onA func(i int, v *float64)) {
	inA, inB := min(block, x.nA-1), min(block, x.nB-1)
	for i := range x.rows {
		for k := range rank {
			at := i*rank + k // of a whole
			switch x.form {
			case inStacks:
				at = (i*rank+k)*x.n + block
			case inThrees:
				at += inB * x.rows * rank
			}
			onB(at, &b[i*rank+k])
		}
	}
	for k := range rank {
		for j := range x.cols {
			onA((inA*rank+k)*x.cols+j, &a[j*rank+k])
		}
	}
}

// stored are the factors of a layer as the bytes of its tensors.
type stored struct {
	dtype          dtype.Type
	rank           int
	shapeA, shapeB []uint64
	a, b           []byte
	isExact        bool // no element was rounded
}

// store rounds blocks of one rank, all with the exponent 0, to a dtype. It replaces the elements
// of the blocks by the stored values.
func (x *factors) store(all []*thin.Matrix, d dtype.Type) (*stored, error) {
	y := *x // every expert has factors of its own
	y.nA, y.nB = x.n, x.n
	k := all[0].R
	size := d.Size()
	s := &stored{
		dtype: d, rank: k, isExact: true,
		b: make([]byte, x.n*x.rows*k*size), a: make([]byte, x.n*x.cols*k*size),
	}
	rank, n := uint64(k), uint64(x.n)
	switch x.form {
	case inStacks:
		s.shapeA, s.shapeB = append([]uint64{n * rank}, x.restA...), []uint64{uint64(x.rows), rank * n}
	case inThrees:
		s.shapeA, s.shapeB = append([]uint64{n, rank}, x.restA...), []uint64{n, uint64(x.rows), rank}
	default:
		s.shapeA, s.shapeB = append([]uint64{rank}, x.restA...), append([]uint64{uint64(x.rows), rank}, x.restB...)
	}
	isFinite := true
	round := func(raw []byte) func(i int, v *float64) {
		return func(i int, v *float64) {
			dtype.Store(d, raw, i, *v)
			r := dtype.Load(d, raw, i)
			s.isExact = s.isExact && r == *v
			isFinite = isFinite && !math.IsInf(r, 0)
			*v = r
		}
	}
	for e, m := range all {
		y.each(m.B, m.A, e, k, round(s.b), round(s.a))
	}
	if !isFinite {
		return nil, fault.New(fault.Unsupported, "the factors of %q do not fit the range of %v", x.module, d).
			WithHint("store them with CombineOptions.DType=bf16 or f32")
	}
	return s, nil
}
