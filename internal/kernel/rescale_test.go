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

// prepareRescaled is PrepareRescaled under a context that does not end.
func prepareRescaled(
	t testing.TB, d dtype.Type, rows, cols int, terms []Term[float64], magnitude []float64,
	norms *ColumnNorms,
) *Rescaled {
	t.Helper()
	u, err := PrepareRescaled(t.Context(), d, rows, cols, Sum{Terms: terms}, magnitude, norms)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// rescale runs DoRA on the problem in blocks of several rows.
func (p *problem) rescale(t testing.TB, magnitude []float64, ofColumns bool,
	blockRows int) (out []byte, st Stats) {
	t.Helper()
	terms := make([]Term[float64], len(p.terms))
	for i, t := range p.terms {
		terms[i] = Term[float64]{S: t.s, Rank: t.rank, L: t.l, R: t.r}
	}
	var s RescaleScratch
	w := p.bytes()
	line := p.cols * p.d.Size()
	var norms *ColumnNorms
	if ofColumns {
		parts := []*ColumnSquares{NewColumnSquares(p.cols), NewColumnSquares(p.cols)}
		u := prepareRescaled(t, p.d, p.rows, p.cols, terms, magnitude, nil)
		half := p.rows / 2
		for row := 0; row < p.rows; {
			part, end := 0, half
			if row >= half {
				part, end = 1, p.rows
			}
			next := min(row+blockRows, end)
			u.AddSquares(t.Context(), parts[part], w[row*line:next*line], row, &s)
			row = next
		}
		norms = NewColumnNorms(parts, func(j, n int, yield func(row, j int, w float64)) error {
			for i := range p.rows {
				for j, end := j, j+n; j < end; j++ {
					yield(i, j, p.w[i*p.cols+j])
				}
			}
			return nil
		})
	}
	u := prepareRescaled(t, p.d, p.rows, p.cols, terms, magnitude, norms)
	for row := 0; row < p.rows; row += blockRows {
		if err := u.Merge(t.Context(), w[row*line:min(row+blockRows, p.rows)*line], row, &st, &s); err != nil {
			t.Fatal(err)
		}
	}
	return w, st
}

// checkRescaled compares every element with m·v/‖v‖ over the rationals: a number h is below it if
// h²·Σv² is below (m·v)².
func (p *problem) checkRescaled(t *testing.T, name string, magnitude []float64,
	ofColumns bool) Stats {
	t.Helper()
	name = fmt.Sprintf("%s, %v, of columns %v", name, p.d, ofColumns)
	got, st := p.rescale(t, magnitude, ofColumns, p.rows)
	if other, _ := p.rescale(t, magnitude, ofColumns, 7); !bytes.Equal(got, other) {
		t.Errorf("%s: the bytes depend on the size of blocks", name)
	}
	v := make([]*big.Rat, p.rows*p.cols)
	squares := make([]*big.Rat, len(magnitude))
	group := func(i int) int {
		if ofColumns {
			return i % p.cols
		}
		return i / p.cols
	}
	for i := range v {
		v[i], _ = p.exact(i/p.cols, i%p.cols)
		g := group(i)
		if squares[g] == nil {
			squares[g] = new(big.Rat)
		}
		squares[g].Add(squares[g], new(big.Rat).Mul(v[i], v[i]))
	}
	for i := range v {
		g := group(i)
		mv := new(big.Rat).Mul(v[i], new(big.Rat).SetFloat64(magnitude[g]))
		above := new(big.Rat).Mul(mv, mv)
		compare := func(h *big.Rat) int {
			h = new(big.Rat).Mul(h, h)
			return above.Cmp(h.Mul(h, squares[g]))
		}
		if bits := bitsAt(p.d, got, i); !isNearestTo(p.d, bits, mv.Sign(), compare) {
			t.Fatalf("%s: element %d is %#x, which is not the nearest to %v·%v/√%v", name, i, bits,
				magnitude[g], v[i].FloatString(30), squares[g].FloatString(30))
		}
	}
	return st
}

// ways calls f for every dtype, with magnitudes of rows and of columns.
func ways(f func(d dtype.Type, ofColumns bool)) {
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32, dtype.F64} {
		f(d, false)
		f(d, true)
	}
}

// normalsOf returns random numbers that a dtype can hold.
func normalsOf(rng *rand.Rand, n int, std float64, d dtype.Type) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = in(d, rng.NormFloat64()*std)
	}
	return x
}

// in rounds a number to a dtype.
func in(d dtype.Type, x float64) float64 {
	var b [8]byte
	dtype.Store(d, b[:], 0, x)
	return dtype.Load(d, b[:], 0)
}

// TestRescaledIsNearest: every element is RN of the exact value.
func TestRescaledIsNearest(t *testing.T) {
	const rows, cols, rank = 36, 47, 5
	ways(func(d dtype.Type, ofColumns bool) {
		rng := rand.New(rand.NewPCG(7, uint64(d)))
		p := &problem{d: d, rows: rows, cols: cols, w: normalsOf(rng, rows*cols, 0.05, d)}
		p.terms = []plainTerm{{s: 1.7, rank: rank, l: normalsOf(rng, rows*rank, 0.1, dtype.F32),
			r: normalsOf(rng, rank*cols, 0.1, dtype.F32)}}
		n := rows
		if ofColumns {
			n = cols
		}
		if st := p.checkRescaled(t, "ordinary", normalsOf(rng, n, 1, dtype.F32),
			ofColumns); st.Exact > 0 {
			t.Errorf("%v, of columns %v: %d ordinary elements took the exact pass, want none", d,
				ofColumns, st.Exact)
		}
	})
}

// TestRescaledCancels: if w ≈ −ΔW, the error of float64 is as large as v itself.
func TestRescaledCancels(t *testing.T) {
	ways(func(d dtype.Type, ofColumns bool) {
		small := &problem{d: d, rows: 1, cols: 1, w: []float64{1},
			terms: []plainTerm{{s: 1, rank: 2, l: []float64{1, 0x1p-60}, r: []float64{-1, 1}}}}
		small.checkRescaled(t, "w + ΔW = 2⁻⁶⁰", []float64{1.7e-18}, ofColumns)
		small.terms[0].l[1] = 0x1p-120
		small.checkRescaled(t, "w + ΔW = 2⁻¹²⁰", []float64{1.7e-18}, ofColumns)

		const n, rank = 9, 3
		rng := rand.New(rand.NewPCG(8, uint64(d)))
		p := &problem{d: d, rows: n, cols: n,
			terms: []plainTerm{{s: 1.7, rank: rank, l: normalsOf(rng, n*rank, 0.1, dtype.F32),
				r: normalsOf(rng, rank*n, 0.1, dtype.F32)}}}
		p.w = make([]float64, n*n)
		for i := range p.w {
			_, delta := (&problem{cols: n, w: p.w, terms: p.terms}).exact(i/n, i%n)
			f, _ := delta.Float64()
			p.w[i] = in(d, -f)
		}
		p.checkRescaled(t, "w = RN(−ΔW)", normalsOf(rng, n, 1, dtype.F32), ofColumns)
	})
}

// TestRescaledTies: a group of one element gives ±m, and a 3-4-5 triangle has a rational norm, so
// exact ties are common.
func TestRescaledTies(t *testing.T) {
	ways(func(d dtype.Type, ofColumns bool) {
		rng := rand.New(rand.NewPCG(9, uint64(d)))
		ulp := map[dtype.Type]float64{dtype.BF16: 0x1p-7, dtype.F16: 0x1p-10, dtype.F32: 0x1p-23,
			dtype.F64: 0x1p-51}[d]
		const n = 500
		alone := &problem{d: d, rows: n, cols: 1, w: normalsOf(rng, n, 1, d),
			terms: []plainTerm{{s: 1, rank: 1, l: normalsOf(rng, n, 0.1, dtype.F32),
				r: normalsOf(rng, 1, 0.1, dtype.F32)}}}
		pair := &problem{d: d, rows: n, cols: 2, w: make([]float64, 2*n)}
		magnitude, five := make([]float64, n), make([]float64, n)
		for i := range n {
			magnitude[i] = 1 + (float64(rng.IntN(int(1/ulp)/2))+0.5)*ulp
			five[i] = 5 * (1 + (float64(rng.IntN(8))+0.5)*ulp)
			pair.w[2*i], pair.w[2*i+1] = 3, 4
		}
		if ofColumns {
			alone.transpose()
			pair.transpose()
		}
		alone.checkRescaled(t, "alone", magnitude, ofColumns)
		pair.checkRescaled(t, "3, 4, 5", five, ofColumns)
	})
}

// transpose transposes the matrix and its update.
func (p *problem) transpose() {
	w := make([]float64, len(p.w))
	for i := range p.rows {
		for j := range p.cols {
			w[j*p.rows+i] = p.w[i*p.cols+j]
		}
	}
	for i := range p.terms {
		t := &p.terms[i] // of rank 1, so factors are vectors
		t.l, t.r = t.r, t.l
	}
	p.w, p.rows, p.cols = w, p.cols, p.rows
}

// TestRescaledAtTheEndsOfTheRange: squares beyond the range of float64, and groups of zeros.
func TestRescaledAtTheEndsOfTheRange(t *testing.T) {
	const rows, cols, rank = 4, 5, 2
	for _, scale := range []float64{0x1p600, 0x1p-540, 0x1p-1060} {
		for _, ofColumns := range []bool{false, true} {
			rng := rand.New(rand.NewPCG(10, 1))
			p := &problem{d: dtype.F64, rows: rows, cols: cols, w: make([]float64, rows*cols)}
			p.terms = []plainTerm{{s: scale, rank: rank,
				l: normalsOf(rng, rows*rank, 0.1, dtype.F32),
				r: normalsOf(rng, rank*cols, 0.1, dtype.F32)}}
			for i := range p.w {
				p.w[i] = rng.NormFloat64() * scale
			}
			for _, m := range []float64{scale, 1} {
				magnitude := make([]float64, cols)
				for i := range magnitude {
					magnitude[i] = (1 + rng.Float64()) * m
				}
				p.checkRescaled(t, fmt.Sprint("scale ", scale), magnitude, ofColumns)
			}
		}
	}
}

// TestRescaledBeyondTheRange: products, scales and sums that float64 cannot hold. The result is of
// the size of the magnitudes.
func TestRescaledBeyondTheRange(t *testing.T) {
	const rows, cols, rank = 3, 4, 2
	ways(func(d dtype.Type, ofColumns bool) {
		for _, scale := range []float64{0x1p100, 0x1p1000, 0x1p-1000} {
			rng := rand.New(rand.NewPCG(11, 1))
			p := &problem{d: d, rows: rows, cols: cols, w: normalsOf(rng, rows*cols, 1, dtype.BF16)}
			p.terms = []plainTerm{{s: scale, rank: rank, l: normalsOf(rng, rows*rank, scale, dtype.F64),
				r: normalsOf(rng, rank*cols, 0x1p600, dtype.F64)}}
			clear(p.terms[0].l[:rank]) // a row that stays in the range
			magnitude := normalsOf(rng, cols, 1, dtype.F32)
			p.checkRescaled(t, fmt.Sprint("scale ", scale), magnitude, ofColumns)
		}
	})
	// Terms that leave the range and cancel: V is (3, 4), and m/‖V‖ is 2/5.
	p := &problem{d: dtype.F32, rows: 1, cols: 2, w: []float64{3, 4}, terms: []plainTerm{
		{s: 1, rank: 1, l: []float64{0x1p1000}, r: []float64{0x1p1000, 0x1p1000}},
		{s: -1, rank: 1, l: []float64{0x1p1000}, r: []float64{0x1p1000, 0x1p1000}}}}
	got, _ := p.rescale(t, []float64{2}, false, 1)
	for i, want := range []float32{1.2, 1.6} {
		if x := dtype.Load(p.d, got, i); float32(x) != want {
			t.Errorf("element %d is %v, want %v", i, x, want)
		}
	}
}

func TestRescaledOfZerosIsNaN(t *testing.T) {
	p := &problem{d: dtype.F32, rows: 1, cols: 3, w: make([]float64, 3)}
	cancelled := &problem{d: dtype.F32, rows: 1, cols: 1, w: []float64{1},
		terms: []plainTerm{{s: 1, rank: 1, l: []float64{1}, r: []float64{-1}}}}
	for _, p := range []*problem{p, cancelled} {
		for _, ofColumns := range []bool{false, true} {
			got, _ := p.rescale(t, []float64{1, 1, 1}[:p.cols], ofColumns, 1)
			for i := range p.cols {
				if x := dtype.Load(p.d, got, i); !math.IsNaN(x) {
					t.Errorf("element %d of a group without a direction is %v, want NaN", i, x)
				}
			}
		}
	}
}

// TestSpecialGroups checks the values of section 6.5 of spec/APPLY.md for zeros, NaN and infinity:
// of the first element of a row.
func TestSpecialGroups(t *testing.T) {
	inf, nan, zero := math.Inf(1), math.NaN(), math.Copysign(0, -1)
	for _, c := range []struct{ m, v, other, want float64 }{
		{2, 3, inf, 0}, {2, -3, inf, zero}, {-2, 3, inf, zero}, {2, 0, inf, 0}, {-2, 0, -inf, zero},
		{2, inf, 3, nan}, {2, inf, inf, nan}, {2, 3, nan, nan}, {2, nan, 3, nan}, {2, inf, nan, nan},
		{nan, 3, 4, nan}, {inf, 3, 4, inf}, {inf, -3, 4, -inf}, {-inf, 3, 4, -inf}, {inf, 0, 4, nan},
		{inf, 3, inf, nan}, {inf, 0, 0, nan}, {2, 0, 0, nan}, {0, 0, 0, nan}, {0, -3, 4, zero},
		{zero, 3, 4, zero}, {zero, -3, 4, 0}, {zero, 0, 4, zero}, {0, 3, inf, 0},
	} {
		for _, d := range []dtype.Type{dtype.BF16, dtype.F64} {
			// A term of w, of which the products with 2¹⁰⁰⁰ leave the range before they cancel.
			p := &problem{d: d, rows: 1, cols: 2, w: []float64{c.v, c.other}, terms: []plainTerm{
				{s: 1, rank: 2, l: []float64{0x1p1000, -0x1p1000}, r: []float64{0x1p1000, 0, 0x1p1000, 0}}}}
			for _, terms := range [][]plainTerm{nil, p.terms} {
				p.terms = terms
				got, _ := p.rescale(t, []float64{c.m}, false, 1)
				if x := dtype.Load(d, got, 0); x != c.want && x == x || math.Signbit(x) != math.Signbit(c.want) && x == x ||
					(x != x) != (c.want != c.want) {
					t.Errorf("%v·%v beside %v in %v, with %d terms: %v, want %v", c.m, c.v, c.other, d, len(terms), x, c.want)
				}
			}
		}
	}
}

// TestRescaledSpecials: NaN or infinity makes its own group NaN, as in IEEE arithmetic, and no
// other.
func TestRescaledSpecials(t *testing.T) {
	for _, d := range []dtype.Type{dtype.F32, dtype.F64} {
		for _, bad := range []float64{math.NaN(), math.Inf(1)} {
			p := &problem{d: d, rows: 2, cols: 2, w: []float64{bad, 1, 3, 4}}
			for _, ofColumns := range []bool{false, true} {
				got, _ := p.rescale(t, []float64{5, 5}, ofColumns, 2)
				if x := dtype.Load(d, got, 0); !math.IsNaN(x) {
					t.Errorf("%v in %v: the element itself is %v, want NaN", bad, d, x)
				}
				if x := dtype.Load(d, got, 3); !ofColumns && x != 4 || math.IsNaN(x) {
					t.Errorf("%v in %v, of columns %v: the other group has %v, want a number", bad,
						d, ofColumns, x)
				}
			}
		}
	}
}

// TestRescaleMeetsNoSubnormals checks every number that the float64 pass of DoRA loads or computes,
// for ordinary and for tiny updates. None may be near the bottom of float64.
func TestRescaleMeetsNoSubnormals(t *testing.T) {
	const rows, cols, rank = 4, 20, 18
	ways(func(d dtype.Type, ofColumns bool) {
		for _, factor := range []float64{1, 1e-10, 1e-20, 1e-30, 1e-40} {
			p := randomProblem(rand.New(rand.NewPCG(53, 54)), d, rows, cols, 0.02, []int{rank},
				0.05, 2)
			x := &p.terms[0]
			times(x.l, factor)
			times(x.r, factor)
			clear(p.w[cols : 2*cols]) // a row without base values
			n := rows
			if ofColumns {
				n = cols
			}
			magnitude := normalsOf(rand.New(rand.NewPCG(55, 56)), n, 1, dtype.F32)
			terms := []Term[float64]{{S: x.s, Rank: rank, L: x.l, R: x.r}}
			var s RescaleScratch
			u := prepareRescaled(t, d, rows, cols, terms, magnitude, nil)
			if ofColumns {
				sums := NewColumnSquares(cols)
				u.AddSquares(t.Context(), sums, p.bytes(), 0, &s)
				norms := NewColumnNorms([]*ColumnSquares{sums}, nil)
				u = prepareRescaled(t, d, rows, cols, terms, magnitude, norms)
			}
			var seen []float64
			seen = append(seen, u.floor, u.unit, u.lTotal, u.rTotal)
			seen = append(append(append(append(seen, u.lNorm...), u.rNorm...), x.l...), x.r...)
			for _, q := range u.quotients {
				seen = append(seen, q.factor, q.spread, q.share, q.norm.hi, q.norm.lo)
			}
			w, line := p.bytes(), cols*d.Size()
			for i := range rows {
				s.load(u, w[i*line:(i+1)*line])
				u.row(i, &s)
				norm := u.rowNorm(&s)
				seen = append(seen, norm.hi, norm.lo)
				for j, v := range s.v {
					square, e := twoProduct(v, v)
					seen = append(seen, s.w[j], v, s.low[j], s.delta[j], square, e)
					seen = append(seen, u.unit*(u.lNorm[i]*u.rNorm[j]+math.Abs(s.w[j])))
					for k := range rank {
						product, e := twoProduct(x.l[i*rank+k], x.r[k*cols+j])
						seen = append(seen, product, e, x.s*product)
					}
				}
			}
			for _, y := range seen {
				if y != 0 && math.Abs(y) < 0x1p-1022 {
					t.Fatalf("%v, of columns %v, factors times %v: %v is subnormal", d, ofColumns,
						factor, y)
				}
			}
			if factor == 1e-40 {
				p.checkRescaled(t, "factors times 10⁻⁴⁰", magnitude, ofColumns)
			}
		}
	})
}
