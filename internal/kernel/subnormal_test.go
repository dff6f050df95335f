package kernel

import (
	"bytes"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// everyText calls a test for each amd64 micro-kernel, interpreted.
func everyText(t *testing.T, narrow func(*testing.T, dtype.Type, tested[float32], *counts),
	wide func(*testing.T, dtype.Type, tested[float64], *counts)) {
	for _, isa := range []struct {
		name                string
		rows, bytes, panels int
	}{{"AVX512", 8, 128, 8}, {"AVX2", 4, 64, 16}} {
		for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
			for _, widened := range []bool{false, true} {
				name := map[dtype.Type]string{dtype.BF16: "bf16", dtype.F16: "f16", dtype.F32: "f32"}[d] +
					map[bool]string{true: "Widened"}[widened] + isa.name
				c := new(counts)
				t.Run(name, func(t *testing.T) {
					if d == dtype.F32 {
						m := interpreted[float64](name, isa.rows, isa.bytes/8, isa.panels, c)
						wide(t, d, tested[float64]{m, widened}, c)
					} else {
						m := interpreted[float32](name, isa.rows, isa.bytes/4, isa.panels, c)
						narrow(t, d, tested[float32]{m, widened}, c)
					}
				})
			}
		}
	}
}

// TestMicroKernelsByTheirText checks the contract of kernels that this processor may not run.
func TestMicroKernelsByTheirText(t *testing.T) {
	everyText(t, textBlocks[float32], textBlocks[float64])
}

func textBlocks[T Float](t *testing.T, d dtype.Type, m tested[T], _ *counts) {
	rng := rand.New(rand.NewPCG(41, 42))
	for i, rank := range []int{1, 5, 16, 17, 33} {
		f := newField(d, m, rank, 1+i%2, 7*i, i)
		f.fill(rng, []float64{0.05, 1}[i%2])
		f.rescale([]float64{1, 0x1p-30, 0x1p40, 0}[i%4])
		f.check(t, fmt.Sprintf("rank %d, %d panels", rank, f.panels))
	}
}

// TestNoSubnormalsOnOrdinaryData merges common cases. No constant, bound, packed factor or
// intermediate result may be subnormal. Unscaled, B times 10⁻²⁰ would give subnormal squares, 10⁻³⁰
// products, and 10⁻⁴⁰ elements.
func TestNoSubnormalsOnOrdinaryData(t *testing.T) {
	everyText(t, countSubnormals[float32], countSubnormals[float64])
}

func countSubnormals[T Float](t *testing.T, d dtype.Type, m tested[T], c *counts) {
	k := &Kernel{name: t.Name()}
	switch m := any(m.micro).(type) {
	case micro[float32]:
		k.bf16, k.f16, k.bf16Widened, k.f16Widened = m, m, m, m
	case micro[float64]:
		k.f32, k.f32Widened = m, m
	}
	for name, change := range map[string]func(*plainTerm){
		"ordinary": func(*plainTerm) {},
		"half of A is zero": func(x *plainTerm) {
			clear(x.r[len(x.r)/2:])
			clearColumns(x.r, 40)
		},
		"half of B is zero":     func(x *plainTerm) { clear(x.l[len(x.l)/2:]) },
		"B is 10⁻¹⁰ of that":    func(x *plainTerm) { times(x.l, 1e-10) },
		"B is 10⁻²⁰ of that":    func(x *plainTerm) { times(x.l, 1e-20) },
		"B is 10⁻³⁰ of that":    func(x *plainTerm) { times(x.l, 1e-30) },
		"B is 10⁻⁴⁰ of that":    func(x *plainTerm) { times(x.l, 1e-40) },
		"A is 10⁻²⁰ of that":    func(x *plainTerm) { times(x.r, 1e-20) },
		"A is 10⁻⁴⁰ of that":    func(x *plainTerm) { times(x.r, 1e-40) },
		"both are 10⁻³⁰":        func(x *plainTerm) { times(x.l, 1e-30); times(x.r, 1e-30) },
		"a row is 10⁻⁴⁰":        func(x *plainTerm) { times(x.l[:x.rank], 1e-38) },
		"the scale is 10⁻³⁰":    func(x *plainTerm) { x.s = 1e-30 },
		"the scale is 10⁻¹⁰⁰":   func(x *plainTerm) { x.s = 1e-100 },
		"A is 10²⁰, B is 10⁻²⁰": func(x *plainTerm) { times(x.r, 1e20); times(x.l, 1e-20) },
	} {
		p := randomProblem(rand.New(rand.NewPCG(43, 44)), d, 9, 40, 0.02, []int{18}, 0.05, 2)
		change(&p.terms[0])
		*c = counts{}
		w, u := p.bytes(), prepare[T](k, p)
		if m.isWidened {
			u = prepareWidened[T](t, k, p)
		}
		before := bytes.Clone(w)
		for _, xs := range [][]T{u.l, u.r, u.lBound, u.rNorm, {u.floor, u.scale, u.inverse}} {
			for _, x := range xs {
				if x := math.Abs(float64(x)); x != 0 && x < normal[T]() {
					t.Fatalf("%s: %v is subnormal, and enters the kernel", name, x)
				}
			}
		}
		var st Stats
		if m.isWidened {
			u.MergeFrom(t.Context(), w, p.w, 0, &st, new(Scratch[T]))
		} else {
			u.Merge(t.Context(), w, 0, &st, new(Scratch[T]))
		}
		p.checkResult(t, name, before, w)
		if c.subnormal > 0 || c.operations < 4*40*18 {
			t.Errorf("%s: %d of %d operations have a subnormal operand or result, want none", name,
				c.subnormal, c.operations)
		}
		if st.Slow > st.Elements/20 {
			t.Errorf("%s: %d of %d elements need the slow pass", name, st.Slow, st.Elements)
		}
	}
}

func times(xs []float64, f float64) {
	for i := range xs {
		xs[i] = float64(float32(xs[i] * f))
	}
}

// clearColumns zeroes every third column.
func clearColumns(xs []float64, cols int) {
	for i := range xs {
		if i%cols%3 == 0 {
			xs[i] = 0
		}
	}
}

// TestFactorsOfEverySize mixes magnitudes from the bottom of float32 to beyond its middle in one
// factor, so that some elements are packed as zeros, beside weights small enough to show it.
func TestFactorsOfEverySize(t *testing.T) {
	rng := rand.New(rand.NewPCG(45, 46))
	for _, d := range floats {
		for round := range 6 {
			p := randomProblem(rng, d, 7, 40, 1, []int{5, 2}, 1, 1)
			for i := range p.terms {
				for n, f := range [][]float64{p.terms[i].l, p.terms[i].r} {
					for j := range f {
						f[j] = float64(float32(math.Ldexp(rng.NormFloat64(),
							rng.IntN(160)-130+20*n)))
					}
				}
			}
			p.terms[0].s, p.terms[1].s = math.Ldexp(1.1, 40*round-100), 1
			for i := range p.w {
				p.w[i] = rounded(d, math.Ldexp(rng.NormFloat64(), rng.IntN(120)-110))
				if i%5 == 0 {
					p.w[i] = 0
				}
				if math.IsInf(p.w[i], 0) {
					p.w[i] = 1
				}
			}
			all(t, fmt.Sprintf("%v/%d", d, round), p)
		}
	}
}

// TestResultsAtTheBottom merges updates of 10⁻³⁴ and less into mostly zero weights. Without
// bottom.go nearly every element would take the slow pass.
func TestResultsAtTheBottom(t *testing.T) {
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16} {
		for _, factor := range []float64{1e-34, 1e-36, 1e-38, 1e-40} {
			p := randomProblem(rand.New(rand.NewPCG(49, 50)), d, 17, 70, 0.02, []int{5, 3}, 0.05, 2)
			times(p.terms[0].l, factor)
			times(p.terms[1].l, factor)
			for i := range p.w {
				switch i % 8 {
				case 0:
				case 1:
					p.w[i] = rounded(d, p.w[i]*factor)
				case 2:
					p.w[i] = math.Copysign(0, -1)
				default:
					p.w[i] = 0
				}
			}
			for _, k := range Available() {
				name := fmt.Sprintf("%v/%v", d, factor)
				if st := check[float32](t, name, k, p); st.Slow > st.Elements/20 {
					t.Errorf("%s/%v: %d of %d elements need the slow pass", name, k, st.Slow,
						st.Elements)
				}
				// Where float32 is subnormal, both roundings are of similar size.
				checkFigures[float32](t, k, p, 0x1p-11)
			}
		}
	}
}

// TestFiguresOfEverySize compares the sums of squares with unlimited arithmetic, for bases and
// updates over the whole range. Sums of squares in float32 have a relative error of 2⁻¹⁷, and δ
// differs from Δ by a few units.
func TestFiguresOfEverySize(t *testing.T) {
	for _, c := range []struct {
		d       dtype.Type
		w, l, r float64
	}{
		{dtype.BF16, 1, 1e-12, 1e-12}, {dtype.BF16, 1, 1e-20, 1e-25},
		{dtype.BF16, 1e-20, 1e-10, 1e-10}, {dtype.BF16, 1e-30, 1e-20, 1e-10},
		{dtype.BF16, 1e-38, 1e-20, 1e-18}, {dtype.BF16, 1e20, 1e10, 1e9},
		{dtype.BF16, 1e35, 1e20, 1e14}, {dtype.BF16, 1, 1e-40, 1e-40},
		{dtype.F16, 1, 1e-12, 1e-12}, {dtype.F16, 1, 1e-40, 1e-5}, {dtype.F16, 1e-4, 1e-20, 1e-10},
		{dtype.F16, 1e3, 1e10, 1e-8},
		{dtype.F32, 1e-35, 1e-20, 1e-16}, {dtype.F32, 1, 1e-38, 1e-38},
		{dtype.F32, 1e37, 1e20, 1e16}, {dtype.F32, 1e-30, 1e-40, 1e5},
		{dtype.F64, 1e-300, 1e-38, 1e-38}, {dtype.F64, 1e300, 1e30, 1e30},
		{dtype.F64, 1, 1e-38, 1e-38}, {dtype.F64, 1e-170, 1e-30, 1e-30},
	} {
		p := randomProblem(rand.New(rand.NewPCG(47, 48)), c.d, 6, 40, 1, []int{3}, 1, 1)
		x := &p.terms[0]
		if c.d == dtype.F64 && c.w != 1 {
			x.s = c.w / 16 / c.l / c.r
		}
		for i := range x.l {
			x.l[i] = float64(float32(x.l[i] * c.l))
		}
		for i := range x.r {
			x.r[i] = float64(float32(x.r[i] * c.r))
		}
		for i := range p.w {
			p.w[i] = rounded(c.d, p.w[i]*c.w)
		}
		for _, k := range Available() {
			if c.d == dtype.BF16 || c.d == dtype.F16 {
				checkFigures[float32](t, k, p, 0x1p-16)
			}
			checkFigures[float64](t, k, p, 0x1p-16)
		}
	}
}

func checkFigures[T Float](t *testing.T, k *Kernel, p *problem, tolerance float64) {
	t.Helper()
	name := fmt.Sprintf("%v/%v/%d", p.d, k, 8*sizeOf[T]())
	w, st := p.bytes(), Stats{}
	prepare[T](k, p).Merge(t.Context(), w, 0, &st, new(Scratch[T]))
	var sums [4]*big.Float
	for i := range sums {
		sums[i] = new(big.Float).SetPrec(4000)
	}
	for i := range p.rows {
		for j := range p.cols {
			n := i*p.cols + j
			_, delta := p.exact(i, j)
			base, moved := new(big.Rat).SetFloat64(p.w[n]),
				new(big.Rat).SetFloat64(dtype.Load(p.d, w, n))
			moved.Sub(moved, base)
			for m, x := range []*big.Rat{base, delta, moved, new(big.Rat).Sub(moved, delta)} {
				f := new(big.Float).SetPrec(4000).SetRat(x)
				sums[m].Add(sums[m], f.Mul(f, f))
			}
		}
	}
	got := []*Squares{&st.NormW, &st.NormDelta, &st.NormStored, &st.NormError}
	for m, other := range []int{1, 0, 1, 1} {
		r := new(big.Float).Quo(sums[m], sums[other])
		want, _ := r.Sqrt(r).Float64()
		if x := got[m].Ratio(got[other]); !(math.Abs(x-want) <= tolerance*want+8*unit[T]()) {
			t.Errorf("%s: w %v, s %v: norm %d over norm %d = %v, want %v", name, p.w[0],
				p.terms[0].s, m, other, x, want)
		}
	}
}
