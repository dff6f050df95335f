package kernel

import (
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// rough is a Dense that is wrong by up to err, as it says.
type rough struct {
	cols  int
	exact []float64
	err   float64
	rng   *rand.Rand
}

func (r *rough) AddRow(dst, _ []float64, i int, _ *[]float64) (most, err float64) {
	for j, x := range r.exact[i*r.cols:][:r.cols] {
		most = max(most, x, -x)
		dst[j] += x + 0.99*r.err*(2*r.rng.Float64()-1)
	}
	return most + r.err, r.err
}

func (r *rough) AddExact(sum *big.Float, _ float64, i, j int) float64 {
	sum.Add(sum, big.NewFloat(r.exact[i*r.cols+j]))
	return 0
}

// TestSumWithDenseIsNearest: whatever the errors of a Dense are within its bounds, every element is
// RN of the exact value: of a sum, and of one that magnitudes of rows, columns or groups of columns
// rescale.
func TestSumWithDenseIsNearest(t *testing.T) {
	const rows, cols, rank, group = 12, 15, 3, 5
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32, dtype.F64} {
		rng := rand.New(rand.NewPCG(11, uint64(d)))
		w := normalsOf(rng, rows*cols, 0.05, d)
		w[7] = 0
		sum := Sum{
			Terms: []Term[float64]{{S: 0.7, Rank: rank, L: normalsOf(rng, rows*rank, 0.1, dtype.F32), R: normalsOf(rng, rank*cols, 0.1, dtype.F32)}},
			Dense: []Dense{
				&rough{cols, normalsOf(rng, rows*cols, 0.02, dtype.F64), 1e-5, rng},
				&rough{cols, normalsOf(rng, rows*cols, 0.02, dtype.F64), 1e-12, rng},
			},
		}
		v := make([]*big.Rat, rows*cols)
		for i := range v {
			v[i] = new(big.Rat).SetFloat64(w[i])
			for _, x := range sum.Dense {
				v[i].Add(v[i], new(big.Rat).SetFloat64(x.(*rough).exact[i]))
			}
			for k := range rank {
				p := new(big.Rat).SetFloat64(sum.Terms[0].S)
				p.Mul(p, new(big.Rat).SetFloat64(sum.Terms[0].L[i/cols*rank+k]))
				v[i].Add(v[i], p.Mul(p, new(big.Rat).SetFloat64(sum.Terms[0].R[k*cols+i%cols])))
			}
		}
		for name, c := range map[string]struct{ nGroups, per int }{
			"a sum": {}, "rows": {rows, cols}, "columns": {cols, 1}, "inputs": {cols / group, group},
		} {
			out, magnitude := rowsOf(d, w), normalsOf(rng, c.nGroups, 1, dtype.F32)
			st := mergeSum(t, d, rows, cols, sum, magnitude, out, name == "columns" || name == "inputs")
			groupOf := func(i int) int { return i % cols / max(1, c.per) }
			if name == "rows" {
				groupOf = func(i int) int { return i / cols }
			}
			squares := make([]*big.Rat, c.nGroups)
			for i := range v {
				if c.nGroups > 0 {
					g := groupOf(i)
					if squares[g] == nil {
						squares[g] = new(big.Rat)
					}
					squares[g].Add(squares[g], new(big.Rat).Mul(v[i], v[i]))
				}
			}
			for i := range v {
				compare, sign := func(h *big.Rat) int { return new(big.Rat).Abs(v[i]).Cmp(h) }, v[i].Sign()
				if c.nGroups > 0 {
					g := groupOf(i)
					mv := new(big.Rat).Mul(v[i], new(big.Rat).SetFloat64(magnitude[g]))
					sign = mv.Sign()
					compare = func(h *big.Rat) int {
						h = new(big.Rat).Mul(h, h)
						return new(big.Rat).Mul(mv, mv).Cmp(h.Mul(h, squares[g]))
					}
				}
				if bits := bitsAt(d, out, i); !isNearestTo(d, bits, sign, compare) {
					t.Fatalf("%v, %s: element %d is %#x, not the nearest to the exact value", d, name, i, bits)
				}
			}
			if d == dtype.BF16 && st.Exact == int64(len(v)) {
				t.Errorf("%v, %s: every element took the exact pass", d, name)
			}
		}
	}
}

func rowsOf(d dtype.Type, w []float64) []byte {
	out := make([]byte, len(w)*d.Size())
	for i, x := range w {
		dtype.Store(d, out, i, x)
	}
	return out
}

// mergeSum merges a sum into out.
func mergeSum(
	t *testing.T, d dtype.Type, rows, cols int, sum Sum, magnitude []float64, out []byte, ofColumns bool,
) (st Stats) {
	t.Helper()
	var s RescaleScratch
	var norms *ColumnNorms
	if len(magnitude) == 0 {
		magnitude = nil
	}
	if ofColumns {
		u, err := PrepareRescaled(t.Context(), d, rows, cols, sum, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		squares, before := NewColumnSquares(len(magnitude)), append([]byte(nil), out...)
		if err := u.AddSquares(t.Context(), squares, before, 0, &s); err != nil {
			t.Fatal(err)
		}
		norms = NewColumnNorms([]*ColumnSquares{squares}, func(j, n int, yield func(row, j int, w float64)) error {
			for i := range rows {
				for k := range n {
					yield(i, j+k, dtype.Load(d, before, i*cols+j+k))
				}
			}
			return nil
		})
	}
	u, err := PrepareRescaled(t.Context(), d, rows, cols, sum, magnitude, norms)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Merge(t.Context(), out, 0, &st, &s); err != nil {
		t.Fatal(err)
	}
	return st
}
