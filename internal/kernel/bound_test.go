package kernel

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestBoundIsTight sums products whose roundings all go the same way and are nearly as large as
// they can be. The error must be within the bound, and near it.
func TestBoundIsTight(t *testing.T) {
	for _, k := range Available() {
		for _, isExact := range []bool{true, false} {
			for _, rank := range []int{1, 2, 4, 15, 16, 17, 40, 64, 256} {
				fuses := microFor[float32](k, dtype.F16, false).fuses
				p := steepProblem(rank, fuses, isExact)
				u := prepare[float32](k, p)
				delta := p.exactDelta(0, 0)
				lost, _ := new(big.Rat).Sub(p.roundedSum(u, fuses), delta).Float64()
				lost = math.Abs(lost)
				bound := float64(u.lBound[0]) * float64(u.rNorm[0])
				if lost > bound/1.009 || lost < 0.95*bound && rank > 1 {
					t.Errorf("%v, rank %d, exact %v: the error is %v, the bound %v", k, rank, isExact,
						lost, bound)
				}
				w := prepareWidened[float32](t, k, p)
				x, _ := delta.Float64()
				lost += unit[float32]() * math.Abs(x)
				bound = float64(w.lBound[0]) * float64(w.rNorm[0])
				if w.micro.fuses == fuses && lost > bound/1.009 {
					t.Errorf("%v, rank %d, exact %v: the error beside a rounded base is %v, the bound %v",
						k, rank, isExact, lost, bound)
				}
			}
		}
	}
}

// TestNoSteepSumIsDecidedWrong puts midpoints of F16 between such a sum and what a kernel computes.
func TestNoSteepSumIsDecidedWrong(t *testing.T) {
	for _, isExact := range []bool{true, false} {
		for _, fuses := range []bool{true, false} {
			for _, rank := range []int{2, 4, 16, 40, 64} {
				p := steepProblem(rank, fuses, isExact)
				all(t, fmt.Sprintf("rank %d, exact %v, fused %v", rank, isExact, fuses), p)
			}
		}
	}
}

// steepProblem returns one row, for which every sum in float32 is too small by nearly half a unit
// per rounding. One product is a little more than 1. It loses digits, and so does its l if S is not
// exact. The others in its chunk, and the first of each later chunk, are nearly half a unit of the
// sum. Column j has a sum that is 4 + 2j half units below a midpoint of F16.
func steepProblem(rank int, fuses, isExact bool) *problem {
	const cols = 30
	p := &problem{d: dtype.F16, rows: 1, cols: cols, w: make([]float64, cols)}
	term := plainTerm{s: 1, rank: rank, l: make([]float64, rank), r: make([]float64, rank*cols)}
	if !isExact {
		term.s = 1 + 0.99*0x1p-24
	}
	big := 0 // the product that passes most roundings
	if !fuses && rank > 1 {
		big = 1
	}
	for k := range rank {
		x := 0x1p-12 * (1 - 0x1p-13)
		switch {
		case k == big:
			x = 1 + 0x1p-12 - 0x1p-23
		case k >= chunk && k%chunk > 0:
			x = 0
		}
		term.l[k] = x
		for j := range cols {
			term.r[k*cols+j] = x
			if k == big {
				term.r[k*cols+j] -= float64(j) * 0x1p-23
			}
		}
	}
	p.terms = []plainTerm{term}
	return p
}

func (p *problem) exactDelta(i, j int) *big.Rat {
	_, delta := p.exact(i, j)
	return delta
}

// roundedSum is the sum of element (0, 0) as a kernel in float32 computes it.
func (p *problem) roundedSum(u *Update[float32], fuses bool) *big.Rat {
	number := func(x float32) *big.Float { return new(big.Float).SetFloat64(float64(x)) }
	const prec, whole = 24, 48
	sum := new(big.Float).SetPrec(prec)
	at, stride := u.column(0)
	for first := 0; first < u.rank; first += chunk {
		part := new(big.Float).SetPrec(prec)
		for k := first; k < min(first+chunk, u.rank); k++ {
			product := new(big.Float).SetPrec(prec)
			if fuses {
				product.SetPrec(whole)
			}
			product.Mul(number(u.l[k]), number(u.r[at+k*stride]))
			part.Add(part, product)
		}
		sum.Add(sum, part)
	}
	x, _ := sum.Rat(nil)
	return x.Mul(x, new(big.Rat).SetFloat64(float64(u.scale)))
}

// TestSumsInFloat64 checks the bound of the second pass, with factors that packing leaves as they
// are and with others.
func TestSumsInFloat64(t *testing.T) {
	rng := rand.New(rand.NewPCG(61, 62))
	tiny := func(x []float64) { x[len(x)/2] = 0x1p-100 }
	for name, c := range map[string]struct {
		change   func(p *problem)
		lossless bool
	}{
		"ordinary":          {func(*problem) {}, true},
		"negative":          {func(p *problem) { p.terms[1].s = -0.25 }, true},
		"a scale of 0":      {func(p *problem) { p.terms[1].s = 0 }, false},
		"scale not a power": {func(p *problem) { p.terms[1].s = 0.3 }, false},
		"large factors": {func(p *problem) {
			for i := range p.terms {
				times(p.terms[i].l, 0x1p60)
				times(p.terms[i].r, 0x1p-50)
			}
		}, true},
		"an element of L packed as zero": {func(p *problem) { tiny(p.terms[0].l) }, false},
		"an element of R packed as zero": {func(p *problem) { tiny(p.terms[1].r) }, false},
		"products that underflow": {func(p *problem) {
			for i := range p.terms {
				p.terms[i].s = 0x1p-1060
			}
		}, false},
		"scale beyond float64's middle": {func(p *problem) {
			for i := range p.terms {
				p.terms[i].s = 0x1p-600
			}
		}, false},
	} {
		for _, k := range Available() {
			p := randomProblem(rng, dtype.F16, 5, 50, 0.02, []int{3, 21}, 0.05, 2)
			c.change(p)
			u := prepare[float32](k, p)
			if u.lossless != c.lossless {
				t.Errorf("%s: %v: lossless is %v", name, k, u.lossless)
			}
			back, err := u.Negative(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for n, w := range p.w {
				i, j := n/p.cols, n%p.cols
				for sign, u := range map[float64]*Update[float32]{1: u, -1: back} {
					delta, e := u.sum64(i, j, w)
					want := new(big.Rat).Mul(p.exactDelta(i, j), new(big.Rat).SetFloat64(sign))
					off := want.Sub(want, new(big.Rat).SetFloat64(delta))
					if x, _ := off.Float64(); !(math.Abs(x) <= e) || e > 1e-12*(1+math.Abs(delta)) {
						t.Fatalf("%s: %v: (%d,%d): Δ = %v is off by %v, more than %v", name, k, i, j,
							delta, x, e)
					}
				}
			}
		}
	}
}

// TestDots checks the dot of each kernel with integers, whose sums are exact.
func TestDots(t *testing.T) {
	rng := rand.New(rand.NewPCG(63, 64))
	for _, k := range Available() {
		f := dotFor[float32](k)
		for n := range 70 {
			for _, stride := range []int{1, 7, 16, 64} {
				l := fenced(n, 9, float32(math.NaN()))
				r := fenced(max(0, (n-1)*stride+1), 9, float32(math.NaN()))
				var want float64
				for i := range r.inner {
					r.inner[i] = float32(math.NaN())
				}
				for i := range l.inner {
					x, y := float32(rng.IntN(1<<24)), float32(rng.IntN(2001)-1000)
					l.inner[i], r.inner[i*stride] = x, y
					want += float64(x) * float64(y)
				}
				if got := f(l.inner, r.inner, stride); got != want {
					t.Fatalf("%v: dot of %d with stride %d = %v, want %v", k, n, stride, got, want)
				}
			}
		}
	}
}
