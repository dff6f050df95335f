package rank

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/dense"
)

// counted is a matrix that counts the subnormal operands, products and sums in its float32
// products. On many processors each costs some 150 cycles, and no result shows it.
type counted struct {
	*Dense
	operations, subnormal int
}

func (c *counted) look(xs ...float32) {
	c.operations++
	for _, x := range xs {
		if x != 0 && math.Abs(float64(x)) < 0x1p-126 {
			c.subnormal++
			return
		}
	}
}

// product repeats the steps of the kernels for thin products on the columns of x.
func (c *counted) product(x []float32, rows, length, b int, at func(row, k int) float32) {
	for row := range rows {
		for col := range b {
			var sum float32
			for k := range length {
				d, v := at(row, k), x[k*b+col]
				p := d * v
				sum += p
				c.look(d, v, p, sum)
			}
		}
	}
}

func (c *counted) Mul(ctx context.Context, dst, x []float32, b int) error {
	c.product(x, c.M, c.N, b, func(row, k int) float32 { return c.Data[row*c.N+k] })
	return c.Dense.Mul(ctx, dst, x, b)
}

func (c *counted) MulT(ctx context.Context, dst, y []float32, b int) error {
	c.product(y, c.N, c.M, b, func(row, k int) float32 { return c.Data[k*c.N+row] })
	return c.Dense.MulT(ctx, dst, y, b)
}

func (c *counted) mulGram(ctx context.Context, xs [][]float64) (ys, zs [][]float64, err error) {
	ys, zs, err = c.Dense.mulGram(ctx, xs)
	b := len(xs)
	c.product(narrowed(dense.Flip(slices.Concat(xs...), b, c.N)), c.M, c.N, b,
		func(row, k int) float32 { return c.Data[row*c.N+k] })
	c.product(narrowed(dense.Flip(slices.Concat(ys...), b, c.M)), c.N, c.M, b,
		func(row, k int) float32 { return c.Data[k*c.N+row] })
	return ys, zs, err
}

func (c *counted) mulGramT(context.Context, [][]float64) (xs, zs [][]float64, err error) {
	panic("the matrix is higher than wide")
}

// wide counts float64 numbers.
func (c *counted) wide(lists ...[]float64) {
	for _, list := range lists {
		for _, x := range list {
			c.operations++
			if x != 0 && math.Abs(x) < 0x1p-1022 {
				c.subnormal++
			}
		}
	}
}

// TestDecompositionsMeetNoSubnormals decomposes ordinary updates and scaled ones, as a whole or in
// a few rows. Weight decay leaves such rows in embeddings and experts that training never meets.
func TestDecompositionsMeetNoSubnormals(t *testing.T) {
	const m, n = 40, 30
	for name, factor := range map[string]func(i, j int) float64{
		"ordinary":                func(i, j int) float64 { return 1 },
		"10⁻¹⁰ of that":           func(i, j int) float64 { return 1e-10 },
		"10⁻²⁰ of that":           func(i, j int) float64 { return 1e-20 },
		"10⁻³⁰ of that":           func(i, j int) float64 { return 1e-30 },
		"10⁻⁴⁰ of that":           func(i, j int) float64 { return 1e-40 },
		"2⁻⁶ of that":             func(i, j int) float64 { return 0x1p-6 },
		"half the rows are zero":  func(i, j int) float64 { return float64(i % 2) },
		"rows of 10⁻²⁰":           func(i, j int) float64 { return []float64{1, 1e-20}[i%2] },
		"rows of 10⁻³⁰":           func(i, j int) float64 { return []float64{1, 1e-30}[i%2] },
		"rows of 10⁻⁴⁰":           func(i, j int) float64 { return []float64{1, 1e-40}[i%2] },
		"columns of 10⁻³⁰":        func(i, j int) float64 { return []float64{1, 1e-30}[j%2] },
		"rows of every magnitude": func(i, j int) float64 { return math.Pow(10, -float64(i)) },
		"rows of 10⁻²⁰, of 10⁻²⁰": func(i, j int) float64 { return []float64{1, 1e-20}[i%2] * 1e-20 },
	} {
		matrix := withSpectrum(rand.New(rand.NewPCG(103, 104)), m, n, func(i int) float64 {
			return math.Pow(2, -float64(i))
		})
		for i, x := range matrix.Data {
			matrix.Data[i] = float32(float64(x) * factor(i/n, i%n))
		}
		energy, err := matrix.SumSquares(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		exponent, err := matrix.normalise(t.Context(), energy)
		if err != nil {
			t.Fatal(err)
		}
		c := &counted{Dense: matrix}
		d, err := TruncatedSVD(t.Context(), c, math.Ldexp(energy, 2*exponent), FixedRank{4}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		b, a := d.Factors()
		// The residual is Δ − B·A.
		left := &counted{Dense: &Dense{M: m, N: d.K, Data: b}}
		left.product(a, m, d.K, n, func(row, k int) float32 { return b[row*d.K+k] })
		c.operations, c.subnormal = c.operations+left.operations, c.subnormal+left.subnormal
		for i, x := range matrix.Data {
			var p float32
			for k := range d.K {
				p += b[i/n*d.K+k] * a[k*n+i%n]
			}
			c.look(x, p, x-p)
		}
		c.wide(d.U, d.V, d.S, d.Estimates)
		if c.subnormal > 0 || c.operations < 3*m*n*8 {
			t.Errorf("%s: %d of %d operations meet a subnormal number, want none", name, c.subnormal, c.operations)
		}
	}
}
