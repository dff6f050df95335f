package delta_test

import (
	"fmt"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/delta"
)

// values are random numbers of F32, some of them zeros, of many sizes.
func values(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		if rng.IntN(8) > 0 {
			x[i] = float32(rng.NormFloat64() * math.Ldexp(1, rng.IntN(24)-12))
		}
	}
	return x
}

// rational sees numbers as a matrix of exact ones.
type rational func(i, j int) *big.Rat

func of(x []float32, cols int) rational {
	return func(i, j int) *big.Rat { return new(big.Rat).SetFloat64(float64(x[i*cols+j])) }
}

func mul(x ...*big.Rat) *big.Rat {
	p := big.NewRat(1, 1)
	for _, v := range x {
		p.Mul(p, v)
	}
	return p
}

// product is Σ_x a[i, x]·b[x, j].
func product(a, b rational, r int) rational {
	return func(i, j int) *big.Rat {
		sum := new(big.Rat)
		for x := range r {
			sum.Add(sum, mul(a(i, x), b(x, j)))
		}
		return sum
	}
}

// core is Σ a[x, i]·t[x, y, k]·b[y, j] at (i, j·K + k), as spec/METHODS.md has it.
func core(a, t, b rational, r, kernel int) rational {
	return func(i, c int) *big.Rat {
		sum := new(big.Rat)
		for x := range r {
			for y := range r {
				sum.Add(sum, mul(a(x, i), t(x*r+y, c%kernel), b(y, c/kernel)))
			}
		}
		return sum
	}
}

// layerCase is a layer with random factors, and its ΔW/s in exact arithmetic, by the formulas of
// spec/METHODS.md.
type layerCase struct {
	name         string
	kind         format.Kind
	rank         int
	roles        map[format.Role][]uint64
	rows, cols   int
	kernel       int
	exact        func(v map[format.Role][]float32, w []float64) rational
	sizeIsHidden bool // only the weight tells the size
}

func cases() []layerCase {
	type roles = map[format.Role][]uint64
	type floats = map[format.Role][]float32
	return []layerCase{
		{"hadamard", format.Hadamard, 5, roles{"w1_a": {4, 5}, "w1_b": {5, 6}, "w2_a": {4, 5}, "w2_b": {5, 3, 2}}, 4, 6, 2,
			func(v floats, _ []float64) rational {
				p, q := product(of(v["w1_a"], 5), of(v["w1_b"], 6), 5), product(of(v["w2_a"], 5), of(v["w2_b"], 6), 5)
				return func(i, j int) *big.Rat { return mul(p(i, j), q(i, j)) }
			}, false},
		{"hadamard with cores", format.Hadamard, 2, roles{"w1_a": {2, 4}, "w1_b": {2, 3}, "t1": {2, 2, 3}, "w2_a": {2, 4}, "w2_b": {2, 3}, "t2": {2, 2, 3}}, 4, 9, 3,
			func(v floats, _ []float64) rational {
				p := core(of(v["w1_a"], 4), of(v["t1"], 3), of(v["w1_b"], 3), 2, 3)
				q := core(of(v["w2_a"], 4), of(v["t2"], 3), of(v["w2_b"], 3), 2, 3)
				return func(i, j int) *big.Rat { return mul(p(i, j), q(i, j)) }
			}, false},
		{"kronecker of whole matrices", format.Kronecker, 1, roles{"w1": {2, 3}, "w2": {4, 2, 2}}, 8, 12, 2,
			func(v floats, _ []float64) rational {
				return func(i, j int) *big.Rat { return mul(of(v["w1"], 3)(i/4, j/4), of(v["w2"], 4)(i%4, j%4)) }
			}, false},
		{"kronecker of thin products", format.Kronecker, 2, roles{"w1_a": {2, 2}, "w1_b": {2, 3}, "w2_a": {4, 2}, "w2_b": {2, 5}}, 8, 15, 1,
			func(v floats, _ []float64) rational {
				u := product(of(v["w1_a"], 2), of(v["w1_b"], 3), 2)
				w := product(of(v["w2_a"], 2), of(v["w2_b"], 5), 2)
				return func(i, j int) *big.Rat { return mul(u(i/4, j/5), w(i%4, j%5)) }
			}, false},
		{"kronecker with a core", format.Kronecker, 3, roles{"w1": {2, 2}, "w2_a": {3, 2}, "w2_b": {3, 5}, "t2": {3, 3, 2, 2}}, 4, 40, 4,
			func(v floats, _ []float64) rational {
				w := core(of(v["w2_a"], 2), of(v["t2"], 4), of(v["w2_b"], 5), 3, 4)
				return func(i, j int) *big.Rat { return mul(of(v["w1"], 2)(i/2, j/20), w(i%2, j%20)) }
			}, false},
		{"convolution with a core", format.Conv, 3, roles{"A": {3, 5, 1}, "B": {4, 3, 1}, "core": {3, 3, 2}}, 4, 10, 2,
			func(v floats, _ []float64) rational {
				b := of(v["B"], 3)
				return core(func(x, i int) *big.Rat { return b(i, x) }, of(v["core"], 2), of(v["A"], 5), 3, 2)
			}, false},
		{"output scaling", format.OutputScaling, 1, roles{"vector": {4}}, 4, 6, 2,
			func(v floats, w []float64) rational {
				return func(i, j int) *big.Rat {
					return mul(of(v["vector"], 1)(i, 0), new(big.Rat).SetFloat64(w[i*6+j]))
				}
			}, true},
		{"input scaling", format.InputScaling, 1, roles{"vector": {1, 3, 1}}, 4, 6, 2,
			func(v floats, w []float64) rational {
				return func(i, j int) *big.Rat {
					return mul(of(v["vector"], 1)(j/2, 0), new(big.Rat).SetFloat64(w[i*6+j]))
				}
			}, true},
	}
}

// draw makes the layer with random factors.
func (c *layerCase) draw(t *testing.T, rng *rand.Rand) (format.Source, map[format.Role][]float32) {
	t.Helper()
	x, drawn := format.NewBuilder(""), make(map[format.Role][]float32)
	parts := make(map[format.Role]format.Data)
	for _, role := range slices.Sorted(maps.Keys(c.roles)) {
		n := uint64(1)
		for _, d := range c.roles[role] {
			n *= d
		}
		drawn[role] = values(rng, int(n))
		parts[role] = format.Float32s(drawn[role], c.roles[role]...)
	}
	x.Method("m", c.kind, "f", c.rank, 1, parts)
	src, err := x.Source()
	if err != nil {
		t.Fatal(c.name, err)
	}
	return src, drawn
}

// TestDeltasEqualTheirFormulas compares every element with exact arithmetic: AddExact equals it,
// and AddRow is as near as its bound says.
func TestDeltasEqualTheirFormulas(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range cases() {
		for range 4 {
			src, drawn := c.draw(t, rng)
			l := &src.Manifest().Adapters[0].Layers[0]
			rows, cols := delta.Size(l, src.Manifest().Tensors)
			if !c.sizeIsHidden && (rows != uint64(c.rows) || cols != uint64(c.cols)) {
				t.Fatalf("%s: size %d×%d, want %d×%d", c.name, rows, cols, c.rows, c.cols)
			}
			w := make([]float64, c.rows*c.cols)
			for i := range w {
				w[i] = rng.NormFloat64()
			}
			scale := rng.NormFloat64()
			d, err := delta.Read(t.Context(), src, l, scale, c.rows, c.cols, c.kernel)
			if err != nil {
				t.Fatal(c.name, err)
			}
			compare(t, c, d, scale, w, c.exact(drawn, w))
		}
	}
}

func compare(t *testing.T, c layerCase, d *delta.Delta, scale float64, w []float64, exact rational) {
	t.Helper()
	var buf []float64
	for i := range c.rows {
		row, line := make([]float64, c.cols), w[i*c.cols:(i+1)*c.cols]
		most, e := d.AddRow(row, line, i, &buf)
		for j, got := range row {
			want := mul(exact(i, j), new(big.Rat).SetFloat64(scale))
			sum := new(big.Float).SetPrec(1 << 12)
			if special := d.AddExact(sum, line[j], i, j); special != 0 {
				t.Fatalf("%s (%d, %d): %v", c.name, i, j, special)
			}
			if r, _ := sum.Rat(nil); r == nil && want.Sign() != 0 || r != nil && r.Cmp(want) != 0 {
				t.Fatalf("%s (%d, %d): AddExact gives %v, want %v", c.name, i, j, sum, want)
			}
			off := new(big.Rat).Sub(new(big.Rat).SetFloat64(got), want)
			if off.Abs(off).Cmp(new(big.Rat).SetFloat64(e)) > 0 {
				t.Fatalf("%s (%d, %d): AddRow gives %v, want %s within %g", c.name, i, j, got, want.FloatString(20), e)
			}
			if x, _ := want.Float64(); math.Abs(x) > most+e || e > 1e-12*most {
				t.Fatalf("%s (%d, %d): %g is above the bound %g ± %g", c.name, i, j, x, most, e)
			}
		}
	}
}

// TestRowsOfZerosStay: a row without a change leaves even a negative zero alone.
func TestRowsOfZerosStay(t *testing.T) {
	d := delta.Sum(delta.Product(2, 1, 2, []float64{0, 1}, []float64{1, 1}), 1)
	row, buf := []float64{math.Copysign(0, -1), 1}, []float64(nil)
	if most, e := d.AddRow(row, nil, 0, &buf); most != 0 || e != 0 || !math.Signbit(row[0]) {
		t.Error(fmt.Sprint(row, most, e))
	}
}

// TestThinProductsEqualTheirFormulas multiplies the factors of every kind that has some, in exact
// arithmetic. Those of F32 numbers are exact, except behind a core.
func TestThinProductsEqualTheirFormulas(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, c := range cases() {
		src, drawn := c.draw(t, rng)
		l := &src.Manifest().Adapters[0].Layers[0]
		d, err := delta.Read(t.Context(), src, l, 1, c.rows, c.cols, c.kernel)
		if err != nil {
			t.Fatal(c.name, err)
		}
		thin := d.Thin()
		if c.sizeIsHidden {
			if thin != nil || d.ThinRank() != 0 {
				t.Errorf("%s: a scaling has factors", c.name)
			}
			continue
		}
		_, hasCore := l.Roles[format.RoleCore]
		_, hasT2 := l.Roles[format.RoleT2]
		if thin.Rank != d.ThinRank() || thin.IsExact == (hasCore || hasT2) {
			t.Errorf("%s: rank %d, want %d; exact %v", c.name, thin.Rank, d.ThinRank(), thin.IsExact)
		}
		exact := c.exact(drawn, nil)
		for i := range c.rows {
			for j := range c.cols {
				sum, size := new(big.Rat), new(big.Rat)
				for k := range thin.Rank {
					p := mul(new(big.Rat).SetFloat64(thin.B[i*thin.Rank+k]), new(big.Rat).SetFloat64(thin.A[k*c.cols+j]))
					sum.Add(sum, p)
					size.Add(size, p.Abs(p))
				}
				off := sum.Sub(sum, exact(i, j))
				allowed := new(big.Rat)
				if !thin.IsExact {
					allowed.Mul(size, new(big.Rat).SetFloat64(0x1p-48))
				}
				if off.Abs(off).Cmp(allowed) > 0 {
					t.Fatalf("%s (%d, %d): off by %s", c.name, i, j, off.FloatString(30))
				}
			}
		}
	}
}
