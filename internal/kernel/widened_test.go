package kernel

import (
	"fmt"
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
			u := prepareRescaled(t, d, rows, cols, termsOf[float64](p), nil, nil).Widened()
			checkWidened(t, fmt.Sprintf("%v, ratio %v, rescaled", d, ratio), p, func(out []byte, w []float64, st *Stats) error {
				return u.MergeFrom(t.Context(), out, w, 0, st, new(RescaleScratch))
			})
			for _, k := range Available() {
				name := fmt.Sprintf("%v, ratio %v, %v", d, ratio, k)
				if d != dtype.F32 {
					checkUpdateWidened[float32](t, name+" in float32", k, p)
				}
				checkUpdateWidened[float64](t, name+" in float64", k, p)
			}
		}
	}
}

func checkUpdateWidened[T Float](t *testing.T, name string, k *Kernel, p *problem) {
	t.Helper()
	u := prepareWidened[T](t, k, p)
	st := checkWidened(t, name, p, func(out []byte, w []float64, st *Stats) error {
		return u.MergeFrom(t.Context(), out, w, 0, st, new(Scratch[T]))
	})
	// A third of the base lies in the middle between two numbers, and rows have no update.
	if st.Slow > st.Elements/2 {
		t.Errorf("%s: %d of %d elements need the slow pass", name, st.Slow, st.Elements)
	}
}

// checkWidened merges a base whose values D may not hold.
func checkWidened(
	t *testing.T, name string, p *problem, merge func(out []byte, w []float64, st *Stats) error,
) (st Stats) {
	t.Helper()
	out := make([]byte, p.d.Size()*p.rows*p.cols)
	if err := merge(out, p.w, &st); err != nil {
		t.Fatal(err)
	}
	for i := range p.w {
		exact, _ := p.exact(i/p.cols, i%p.cols)
		if bits := bitsAt(p.d, out, i); !isNearest(p.d, bits, exact) {
			t.Fatalf("%s: element %d is %#x, which is not the nearest to %s", name, i, bits, exact.FloatString(40))
		}
	}
	if st.Elements != int64(p.rows*p.cols) || st.NaNAfter != 0 {
		t.Errorf("%s: the statistics are %+v", name, st)
	}
	return st
}
