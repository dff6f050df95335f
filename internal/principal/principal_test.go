package principal

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/testkit"
	"gonum.org/v1/gonum/mat"
)

// matrix returns a rows×cols matrix with singular values like trained weights': a few large ones,
// then a long slope.
func matrix(rows, cols int) []float32 {
	rng := rand.New(rand.NewPCG(3, uint64(rows)))
	w := make([]float32, rows*cols)
	for i := range w {
		w[i] = float32(rng.NormFloat64() * 0.02)
	}
	for k := range 30 {
		u, v := make([]float64, rows), make([]float64, cols)
		for i := range u {
			u[i] = rng.NormFloat64()
		}
		for j := range v {
			v[j] = rng.NormFloat64()
		}
		for i := range u {
			for j := range v {
				w[i*cols+j] += float32(0.02 / float64(k+2) * u[i] * v[j])
			}
		}
	}
	return w
}

func matrixOf(w []float32, rows, cols int) *mat.Dense {
	m := mat.NewDense(rows, cols, nil)
	for i := range rows {
		for j := range cols {
			m.Set(i, j, float64(w[i*cols+j]))
		}
	}
	return m
}

// difference returns the largest element of P − want, relative to want's largest.
func difference(p Part, want mat.Matrix) float64 {
	rows, cols := want.Dims()
	var got, d mat.Dense
	got.Mul(mat.NewDense(rows, p.Rank, p.Left), mat.NewDense(p.Rank, cols, p.Right))
	d.Sub(&got, want)
	return mat.Norm(&d, math.Inf(1)) / mat.Norm(want, math.Inf(1))
}

// TestSingularIsTheTruncatedSVD compares with U_r·S_r·V_rᵀ of a full decomposition, on both sides
// of fullSide.
func TestSingularIsTheTruncatedSVD(t *testing.T) {
	for _, c := range []struct{ rows, cols, rank int }{{20, 30, 4}, {30, 20, 4}, {12, 12, 40},
		{260, 230, 16}, {230, 400, 5}, {300, 210, 1}, {200, 200, 200}} {
		w := matrix(c.rows, c.cols)
		p, err := Singular(t.Context(), w, c.rows, c.cols, c.rank)
		if err != nil {
			t.Fatal(err)
		}
		var svd mat.SVD
		svd.Factorize(matrixOf(w, c.rows, c.cols), mat.SVDThin)
		var u, v, us, want mat.Dense
		svd.UTo(&u)
		svd.VTo(&v)
		rank := min(c.rank, c.rows, c.cols)
		us.Mul(u.Slice(0, c.rows, 0, rank), mat.NewDiagDense(rank, svd.Values(nil)[:rank]))
		want.Mul(&us, v.Slice(0, c.cols, 0, rank).T())
		if d := difference(p, &want); p.Rank != rank || !(d < 1e-11) {
			t.Errorf("%d×%d, rank %d: rank %d, relative difference %.2g from the truncated SVD",
				c.rows, c.cols, c.rank, p.Rank, d)
		}
	}
}

// TestLeadingIsTheTruncatedQR compares with Q_r·R_r of a Householder decomposition.
func TestLeadingIsTheTruncatedQR(t *testing.T) {
	for _, c := range []struct{ rows, cols, rank int }{{20, 30, 4}, {30, 20, 7}, {12, 12, 40},
		{260, 230, 16}} {
		w := matrix(c.rows, c.cols)
		p, err := Leading(t.Context(), w, c.rows, c.cols, c.rank)
		if err != nil {
			t.Fatal(err)
		}
		rank := min(c.rank, c.rows, c.cols)
		var qr mat.QR
		square := matrixOf(w, c.rows, c.cols)
		if c.rows < c.cols { // gonum needs a tall matrix; Q is that of the first columns
			square = mat.DenseCopyOf(square.Slice(0, c.rows, 0, c.rows))
		}
		qr.Factorize(square)
		var q, r, want mat.Dense
		qr.QTo(&q)
		r.Mul(q.T(), matrixOf(w, c.rows, c.cols))
		want.Mul(q.Slice(0, c.rows, 0, rank), r.Slice(0, rank, 0, c.cols))
		if d := difference(p, &want); p.Rank != rank || !(d < 1e-12) {
			t.Errorf("%d×%d, rank %d: rank %d, relative difference %.2g from the truncated QR",
				c.rows, c.cols, c.rank, p.Rank, d)
		}
	}
}

// TestPartsEndWithTheirContext: a principal part of rank 4096 takes minutes to hours.
func TestPartsEndWithTheirContext(t *testing.T) {
	for name, c := range map[string]struct {
		find       func(context.Context, []float32, int, int, int) (Part, error)
		rows, cols int
	}{
		"singular in full": {Singular, 20, 30}, "singular": {Singular, 200, 210},
		"leading": {Leading, 40, 30},
	} {
		w := matrix(c.rows, c.cols)
		t.Run(name, func(t *testing.T) {
			testkit.EndsAnywhere(t, c.rows+8, 1000, func(ctx context.Context) error {
				_, err := c.find(ctx, w, c.rows, c.cols, 8)
				return err
			})
		})
	}
}

// TestOpenParts: equal singular values at the cut, and dependent columns, leave the part open. A
// rank of the smaller side does not.
func TestOpenParts(t *testing.T) {
	type find = func(context.Context, []float32, int, int, int) (Part, error)
	for _, c := range []struct {
		name string
		find find
		n    int
		edit func(w []float32, n int)
		rank int
		open bool
	}{
		{"equal values, small", Singular, 20, func(w []float32, n int) { diagonal(w, n, 5, 3, 3, 1) }, 2, true},
		{"equal values behind the cut", Singular, 20, func(w []float32, n int) { diagonal(w, n, 5, 3, 1, 1) }, 2, false},
		{"equal values, large", Singular, 220, func(w []float32, n int) { diagonal(w, n, 5, 3, 3, 1) }, 2, true},
		{"equal values before the cut", Singular, 220, func(w []float32, n int) { diagonal(w, n, 3, 3, 2, 1) }, 2, false},
		{"zeros at the cut", Singular, 220, func(w []float32, n int) { diagonal(w, n, 3, 2) }, 5, false},
		{"the whole", Singular, 20, func(w []float32, n int) { diagonal(w, n, 1, 1) }, 20, false},
		{"a multiple of a column", Leading, 20, func(w []float32, n int) { repeat(w, n, 2) }, 3, true},
		{"the same behind the rank", Leading, 20, func(w []float32, n int) { repeat(w, n, 3) }, 3, false},
		{"the whole with one", Leading, 20, func(w []float32, n int) { repeat(w, n, 3) }, 20, false},
	} {
		w := matrix(c.n, c.n)
		c.edit(w, c.n)
		p, err := c.find(t.Context(), w, c.n, c.n, c.rank)
		if errors.Is(err, ErrOpen) != c.open || err == nil && c.open {
			t.Errorf("%s: %v, want open %v", c.name, err, c.open)
		}
		if d := 0.0; c.rank == c.n {
			if d = difference(p, matrixOf(w, c.n, c.n)); d != 0 {
				t.Errorf("%s: the part differs from the matrix by %g", c.name, d)
			}
		}
	}
}

// diagonal fills a matrix with zeros but for the first elements of its diagonal.
func diagonal(w []float32, n int, values ...float32) {
	clear(w)
	for i, v := range values {
		w[i*n+i] = v
	}
}

// repeat makes column k three times the first one.
func repeat(w []float32, n, k int) {
	for i := range n {
		w[i*n] = float32(i%7 - 3)
		w[i*n+k] = 3 * w[i*n]
	}
}

// TestDegenerateMatrices: fewer singular values than the rank, and none.
func TestDegenerateMatrices(t *testing.T) {
	const n = 220
	low := make([]float32, n*n)
	for i := range n {
		for j := range n {
			low[i*n+j] = float32(i%3) * float32(j%5)
		}
	}
	for name, w := range map[string][]float32{"rank 1": low, "zero": make([]float32, n*n)} {
		p, err := Singular(t.Context(), w, n, n, 20)
		if err != nil {
			t.Fatal(name, err)
		}
		for i, x := range p.Left {
			if x-x != 0 {
				t.Fatalf("%s: element %d is %v", name, i, x)
			}
		}
		if name == "rank 1" {
			if d := difference(p, matrixOf(low, n, n)); !(d < 1e-13) {
				t.Errorf("a matrix of rank 1 is its own principal part, but for a relative %.2g", d)
			}
		}
	}
}

// TestLoopsMeetNoSubnormals checks the matrix that the products read, for weights that are
// ordinary, small as a whole, or small in some rows. It compares the part with that of the weights
// in float64.
func TestLoopsMeetNoSubnormals(t *testing.T) {
	const rows, cols, rank = 40, 30, 5
	for name, factor := range map[string]func(i int) float64{
		"ordinary":      func(int) float64 { return 1 },
		"10⁻¹⁰ of that": func(int) float64 { return 1e-10 },
		"10⁻²⁰ of that": func(int) float64 { return 1e-20 },
		"10⁻³⁰ of that": func(int) float64 { return 1e-30 },
		"10⁻³⁶ of that": func(int) float64 { return 1e-36 },
		"10⁻⁴⁰ of that": func(int) float64 { return 1e-40 },
		"rows of 10⁻⁴⁰": func(i int) float64 { return []float64{1, 1e-40}[i%2] },
		"rows of 10⁻⁴⁰, of 10²⁰": func(i int) float64 {
			return []float64{1e20, 1e-20}[i%2]
		},
	} {
		w := matrix(rows, cols)
		for i, x := range w {
			w[i] = float32(float64(x) * factor(i/cols))
		}
		x, _, err := normal(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range x {
			if v != 0 && -0x1p-126 < v && v < 0x1p-126 {
				t.Fatalf("%s: element %d, %v, enters the products as %v", name, i, w[i], v)
			}
		}
		p, err := Singular(t.Context(), w, rows, cols, rank)
		if err != nil {
			t.Fatal(err)
		}
		exact := matrixOf(w, rows, cols)
		var svd mat.SVD
		svd.Factorize(exact, mat.SVDThin)
		var u, right, want mat.Dense
		svd.UTo(&u)
		right.Mul(u.Slice(0, rows, 0, rank).T(), exact)
		want.Mul(u.Slice(0, rows, 0, rank), &right)
		if d := difference(p, &want); !(d < 1e-11) {
			t.Errorf("%s: relative difference %.2g from the truncated SVD", name, d)
		}
		q, err := Leading(t.Context(), w, rows, cols, rank)
		if err != nil {
			t.Fatal(err)
		}
		var product mat.Dense
		product.Mul(mat.NewDense(rows, rank, q.Left), mat.NewDense(rank, cols, q.Right))
		for i := range rows { // the first columns of W are in the span of Q's
			for j := range rank {
				if d := math.Abs(product.At(i, j) - exact.At(i, j)); !(d <= 1e-13*mat.Norm(exact,
					2)) {
					t.Errorf("%s: element %d, %d of the leading part is off by %v", name, i, j, d)
				}
			}
		}
	}
}

func BenchmarkSingular(b *testing.B) {
	w := matrix(1024, 1536)
	for b.Loop() {
		if _, err := Singular(b.Context(), w, 1024, 1536, 16); err != nil {
			b.Fatal(err)
		}
	}
}
