package audit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
)

// TestBracketsHoldTheWeight makes merges with a known weight: rounded once, rounded twice, and with
// foreign elements, for updates down to a thousandth of the step of the dtype. The weight lies
// within the error, which is at most 1 % where one rounding made the merge.
func TestBracketsHoldTheWeight(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
		for _, size := range []float64{0.05, 0.003, 0.0002} {
			for _, weight := range []float64{1, 1.01, -1, 0.35, 12} {
				for _, way := range []string{"once", "twice", "foreign"} {
					t.Run(fmt.Sprint(d, size, weight, way), func(t *testing.T) {
						c, err, share := bracketed(rng, d, size, weight, way)
						if !(math.Abs(c-weight) <= err) || share < 0.7 {
							t.Errorf("weight %g ± %g, share %g, want %g", c, err, share, weight)
						}
						if way == "once" && (share != 1 || err > 0.01*math.Abs(weight)) {
							t.Errorf("weight %g ± %g, share %g, want 1 %% and all", c, err, share)
						}
					})
				}
			}
		}
	}
}

// bracketed brackets a merge of 20000 elements, whose update has a size relative to the weights.
func bracketed(rng *rand.Rand, d dtype.Type, size, weight float64, way string) (c, err, share float64) {
	const n = 20000
	b := &block{elementsOf: &elementsOf{w: make([]float64, n), m: make([]float64, n)}, e: new(expected), nCols: n}
	b.e.merged = &checkpoint.Tensor{DType: d}
	b.u[asStored] = [][]float64{make([]float64, n)}
	for i := range n {
		w, u := round(d, rng.NormFloat64()), size*rng.NormFloat64()
		m := round(d, w+weight*u)
		switch {
		case way == "twice":
			m = round(d, w+round(d, weight*u))
		case way == "foreign" && i%12 == 0:
			m = round(d, w+size*rng.NormFloat64())
		}
		b.w[i], b.m[i], b.u[asStored][0][i] = w, m, u
	}
	g := newBracketing(n)
	g.add(b, n)
	return g.weight()
}
