package thin

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// productOracle decomposes the whole product.
func productOracle(a, b []float64, m, n, r int) []float64 {
	var d mat.Dense
	d.Mul(mat.NewDense(m, r, b), mat.NewDense(n, r, a).T())
	var svd mat.SVD
	if !svd.Factorize(&d, mat.SVDNone) {
		panic("no convergence")
	}
	return svd.Values(nil)
}

func random64(rng *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = float64(float32(rng.NormFloat64()))
	}
	return x
}

// matrix returns B·Aᵀ of copies, unbalanced.
func matrix(a, b []float64, m, n, r int) *Matrix {
	return &Matrix{M: m, N: n, R: r, B: slices.Clone(b), A: slices.Clone(a)}
}

// products are matrices of all kinds.
var products = []struct {
	name    string
	m, n, r int
	edit    func(a, b []float64, r int)
}{
	{"random", 60, 40, 8, nil},
	{"rank above both sides", 5, 7, 12, nil},
	{"rank above one side", 5, 70, 12, nil},
	{"rank 1", 30, 20, 1, nil},
	{"a wide range of singular values", 60, 50, 6, func(a, b []float64, r int) {
		for i := range b {
			b[i] *= math.Pow(10, -1.2*float64(i%r))
		}
	}},
	{"a repeated column", 60, 50, 6, func(a, b []float64, r int) {
		for i := 0; i < len(b); i += r {
			b[i+1] = b[i]
		}
	}},
	{"zero", 20, 20, 4, func(a, b []float64, r int) { clear(b) }},
}

// factors makes the factors of a product.
func factors(i int) (a, b []float64) {
	c := &products[i]
	rng := rand.New(rand.NewPCG(31, uint64(i)))
	a, b = random64(rng, c.n*c.r), random64(rng, c.m*c.r)
	if c.edit != nil {
		c.edit(a, b, c.r)
	}
	return a, b
}

func TestSingularValues(t *testing.T) {
	for i, c := range products {
		a, b := factors(i)
		want := productOracle(a, b, c.m, c.n, c.r)
		got, err := matrix(a, b, c.m, c.n, c.r).SingularValues(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != min(c.m, c.n, c.r) {
			t.Errorf("%s: %d values, want %d", c.name, len(got), min(c.m, c.n, c.r))
		}
		for i := range got {
			// The oracle itself has an absolute error of about 2^-50·σ₁.
			if math.Abs(got[i]-want[i]) > 1e-6*want[i]+0x1p-46*want[0] {
				t.Errorf("%s: σ_%d = %.12g, want %.12g", c.name, i+1, got[i], want[i])
			}
		}
	}
}

// TestDecompose: the best approximation of every rank has the error that Eckart and Young give, and
// the singular vectors are orthonormal. The factors of the matrix stay as they are.
func TestDecompose(t *testing.T) {
	for i, c := range products {
		a, b := factors(i)
		sigma := productOracle(a, b, c.m, c.n, c.r)
		x := matrix(a, b, c.m, c.n, c.r)
		d, err := x.Decompose(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(x.A, a) || !slices.Equal(x.B, b) {
			t.Errorf("%s: Decompose changes its matrix", c.name)
		}
		whole := product64(b, a, c.m, c.n, c.r)
		for k := range len(d.Sigma) + 1 {
			f, err := d.Factors(t.Context(), k)
			if err != nil {
				t.Fatal(err)
			}
			var diff mat.Dense
			diff.Sub(whole, product64(f.B, f.A, c.m, c.n, k))
			var tail float64
			for _, v := range sigma[min(k, len(sigma)):] {
				tail += v * v
			}
			if got, want := mat.Norm(&diff, 2), math.Sqrt(tail); math.Abs(got-want) > 1e-9*mat.Norm(whole, 2) {
				t.Errorf("%s: the error at rank %d is %.12g, want %.12g", c.name, k, got, want)
			}
		}
		k := 0
		for k < len(d.Sigma) && d.Sigma[k] > 1e-7*d.Sigma[0] {
			k++
		}
		if k == 0 {
			continue
		}
		v, err := d.Vectors(t.Context(), k)
		if err != nil {
			t.Fatal(err)
		}
		for side, q := range map[string]*mat.Dense{"U": mat.NewDense(c.m, k, v.B), "V": mat.NewDense(c.n, k, v.A)} {
			var g mat.Dense
			g.Mul(q.T(), q)
			for i := range k {
				for j := range k {
					want := 0.0
					if i == j {
						want = 1
					}
					if math.Abs(g.At(i, j)-want) > 1e-8 {
						t.Errorf("%s: (%sᵀ%s)[%d,%d] = %.12g, want %v", c.name, side, side, i, j, g.At(i, j), want)
					}
				}
			}
		}
	}
}

// TestNormOfADifference: the norm of what is left of two nearly equal products has the accuracy of
// the parts, and not that of their squares.
func TestNormOfADifference(t *testing.T) {
	rng := rand.New(rand.NewPCG(35, 36))
	const m, n, r = 40, 30, 5
	a, b := random64(rng, n*r), random64(rng, m*r)
	x := matrix(a, b, m, n, r)
	near := matrix(a, b, m, n, r)
	for i := range near.B {
		near.B[i] += 1e-11 * rng.NormFloat64()
	}
	var diff mat.Dense
	diff.Sub(product64(x.B, x.A, m, n, r), product64(near.B, near.A, m, n, r))
	for _, c := range []struct {
		sum  *Matrix
		want float64
	}{
		{Sum(Term{1, x}, Term{-1, near}), mat.Norm(&diff, 2)},
		{Sum(Term{0.5, x}), mat.Norm(product64(b, a, m, n, r), 2) / 2},
		{Sum(Term{1, x}, Term{-1, x}), 0},
	} {
		got, err := c.sum.Norm(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(got-c.want) > 1e-3*c.want+1e-13 {
			t.Errorf("norm %.6g, want %.6g", got, c.want)
		}
	}
}

// TestSumOfExponents: a sum takes the exponents of its terms into account, even where they are far
// apart.
func TestSumOfExponents(t *testing.T) {
	one := func(exponent int) *Matrix {
		return &Matrix{M: 1, N: 1, R: 1, B: []float64{1}, A: []float64{1}, Exponent: exponent}
	}
	for _, c := range []struct{ e, f int }{{0, 3}, {-900, -901}, {900, -1500}} {
		s := Sum(Term{3, one(c.e)}, Term{-1, one(c.f)})
		got := s.B[0]*s.A[0] + s.B[1]*s.A[1]
		if want := 3*math.Ldexp(1, c.e-s.Exponent) - math.Ldexp(1, c.f-s.Exponent); got != want {
			t.Errorf("2^%d and 2^%d: %v, want %v", c.e, c.f, got, want)
		}
	}
}

func TestInner(t *testing.T) {
	rng := rand.New(rand.NewPCG(37, 38))
	const m, n = 9, 7
	a, b, c, d := random64(rng, n*3), random64(rng, m*3), random64(rng, n*2), random64(rng, m*2)
	x, y := product64(b, a, m, n, 3), product64(d, c, m, n, 2)
	var want float64
	for i := range m {
		for j := range n {
			want += x.At(i, j) * y.At(i, j)
		}
	}
	got, err := Inner(t.Context(), matrix(a, b, m, n, 3), matrix(c, d, m, n, 2))
	if err != nil || math.Abs(got-want) > 1e-12*math.Abs(want) {
		t.Errorf("inner product %v (%v), want %v", got, err, want)
	}
}

func product64(b, a []float64, m, n, r int) *mat.Dense {
	d := mat.NewDense(m, n, nil)
	if r > 0 {
		d.Mul(mat.NewDense(m, r, b), mat.NewDense(n, r, a).T())
	}
	return d
}

// TestSingularValuesDoNotSeeTheFactorization: B·G and G⁻¹·A have the same product.
func TestSingularValuesDoNotSeeTheFactorization(t *testing.T) {
	rng := rand.New(rand.NewPCG(33, 34))
	const m, n, r = 50, 40, 6
	a, b := random64(rng, n*r), random64(rng, m*r)
	want, err := matrix(a, b, m, n, r).SingularValues(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g := mat.NewDense(r, r, random64(rng, r*r))
	var inverse, bg, ag mat.Dense
	if err := inverse.Inverse(g); err != nil {
		t.Fatal(err)
	}
	bg.Mul(mat.NewDense(m, r, b), g)
	ag.Mul(mat.NewDense(n, r, a), inverse.T())
	got, err := matrix(ag.RawMatrix().Data, bg.RawMatrix().Data, m, n, r).SingularValues(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if math.Abs(got[i]-want[i]) > 1e-9*want[0] {
			t.Errorf("σ_%d = %.12g, want %.12g", i+1, got[i], want[i])
		}
	}
}

// TestLost compares the norm that rounding and truncation lose with that of the formed difference,
// for errors from those of bfloat16 down to those of float64, at extreme exponents, and where
// rounding makes a column zero.
func TestLost(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const m, n, r = 30, 20, 6
	for _, c := range []struct {
		k        int
		bits     int     // of the rounded factors
		exponent int     // of Δ
		tail     float64 // of the values beyond k
	}{{4, 8, 0, 0.1}, {4, 24, 0, 1e-7}, {6, 24, 0, 1}, {4, 24, 900, 1e-7}, {4, 24, -900, 1e-7}, {6, 40, 0, 1}, {4, 24, 0, 0}} {
		x := &Matrix{M: m, N: n, R: r, B: make([]float64, m*r), A: make([]float64, n*r), Exponent: c.exponent}
		for i := range x.B {
			x.B[i] = rng.NormFloat64()
			if i%r >= c.k {
				x.B[i] *= c.tail
			}
		}
		for i := range x.A {
			x.A[i] = rng.NormFloat64()
		}
		x.Balance()
		d, err := x.Decompose(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		near, err := d.Factors(t.Context(), c.k)
		if err != nil {
			t.Fatal(err)
		}
		var left float64
		for _, s := range d.Sigma[c.k:] {
			left += s * s
		}
		rounded := &Matrix{M: m, N: n, R: c.k, B: slices.Clone(near.B), A: slices.Clone(near.A), Exponent: near.Exponent}
		for _, f := range [][]float64{rounded.B, rounded.A} {
			for i, v := range f {
				fraction, e := math.Frexp(v)
				f[i] = math.Ldexp(math.Round(math.Ldexp(fraction, c.bits)), e-c.bits)
			}
		}
		// The truth, in exact arithmetic and relative to 2^exponent.
		squares := new(big.Float).SetPrec(600)
		for i := range m {
			for j := range n {
				v := new(big.Float).SetPrec(600)
				for _, part := range []struct {
					x    *Matrix
					sign float64
				}{{x, 1}, {rounded, -1}} {
					for k := range part.x.R {
						b := new(big.Float).SetPrec(600).SetFloat64(part.sign * part.x.B[i*part.x.R+k])
						b.Mul(b, new(big.Float).SetPrec(600).SetFloat64(part.x.A[j*part.x.R+k]))
						v.Add(v, b.SetMantExp(b, part.x.Exponent-c.exponent))
					}
				}
				squares.Add(squares, v.Mul(v, v))
			}
		}
		want, _ := squares.Sqrt(squares).Float64()
		got, err := Lost(t.Context(), x, 1, math.Ldexp(math.Sqrt(left), d.Exponent), near, rounded)
		got = math.Ldexp(got, -c.exponent)
		if err != nil || math.Abs(got-want) > 1e-6*want+1e-14 {
			t.Errorf("%+v: lost %v, %v, want %v", c, got, err, want)
		}
	}
}
