package kernel

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestWidenedIsNearest: with base values that D cannot hold, every element is RN_D of the exact
// sum, once, also where the value or the sum is near the middle between two numbers of D.
func TestWidenedIsNearest(t *testing.T) {
	const rows, cols = 24, 50
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
		for _, ratio := range []float64{1, 1e-3, 1e-9} {
			rng := rand.New(rand.NewPCG(uint64(d), math.Float64bits(ratio)))
			p := randomProblem(rng, d, rows, cols, 0.02, []int{3, 4}, ratio, 1.5)
			l, _ := d.Layout()
			for i := range p.w {
				p.w[i] = 0.02 * rng.NormFloat64()
				if i%3 == 0 { // the middle between two numbers, or beside it
					x := rounded(d, p.w[i])
					p.w[i] = x + math.Ldexp(x, -l.Fraction-2)*float64(1+i%2)
				}
			}
			for i := range p.terms[0].rank { // rows without an update
				p.terms[0].l[i], p.terms[1].l[i] = 0, 0
			}
			p.terms[1].l[3] = 0
			terms := make([]Term[float64], len(p.terms))
			for i, t := range p.terms {
				terms[i] = Term[float64]{S: t.s, Rank: t.rank, L: t.l, R: t.r}
			}
			u := prepareRescaled(t, d, rows, cols, terms, nil, nil).Widened()
			w := make([]byte, 8*rows*cols)
			for i, x := range p.w {
				dtype.Store(dtype.F64, w, i, x)
			}
			out := make([]byte, d.Size()*rows*cols)
			var st Stats
			var s RescaleScratch
			if err := u.MergeFrom(t.Context(), out, w, 0, &st, &s); err != nil {
				t.Fatal(err)
			}
			for i := range p.w {
				exact, _ := p.exact(i/cols, i%cols)
				if bits := bitsAt(d, out, i); !isNearest(d, bits, exact) {
					t.Fatalf("%v, ratio %v: element %d is %#x, which is not the nearest to %s", d, ratio, i, bits, exact.FloatString(40))
				}
			}
			if st.Elements != rows*cols || st.NaNAfter != 0 {
				t.Errorf("%v: the statistics are %+v", d, st)
			}
		}
	}
}
