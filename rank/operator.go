package rank

import (
	"context"
	"math"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/krylov"
	"github.com/loratool/loratool/internal/parallel"
)

// Operator is a matrix given by its products with thin matrices, so it need not be in memory as a
// whole. Products must not depend on the number of workers.
type Operator interface {
	// Dims returns the number of rows m and of columns n.
	Dims() (m, n int)
	// Mul writes Δ·X to dst (m×b) for X (n×b), both row-major.
	Mul(ctx context.Context, dst, x []float32, b int) error
	// MulT writes Δᵀ·Y to dst (n×b) for Y (m×b).
	MulT(ctx context.Context, dst, y []float32, b int) error
}

// Dense is a matrix in memory, row-major.
type Dense struct {
	M, N    int
	Data    []float32 // M×N
	Workers int       // goroutines; 0 means one per processor
}

// Dims returns the number of rows and of columns.
func (d *Dense) Dims() (m, n int) { return d.M, d.N }

// Fixed block sizes keep the order of sums independent of the workers.
const (
	rowBlock    = 128
	columnBlock = 512
	gramBlocks  = 16 // at most, since each has sums of its own
)

// Mul writes Δ·X to dst.
func (d *Dense) Mul(ctx context.Context, dst, x []float32, b int) error {
	return parallel.For(ctx, d.Workers, blocks(d.M, rowBlock), func(_, i int) error {
		lo, hi := i*rowBlock, min((i+1)*rowBlock, d.M)
		kernel.MulThin(dst[lo*b:hi*b], d.Data[lo*d.N:hi*d.N], x, hi-lo, d.N, b)
		return nil
	})
}

// MulT writes Δᵀ·Y to dst.
func (d *Dense) MulT(ctx context.Context, dst, y []float32, b int) error {
	return parallel.For(ctx, d.Workers, blocks(d.N, columnBlock), func(_, i int) error {
		lo, hi := i*columnBlock, min((i+1)*columnBlock, d.N)
		kernel.MulThinT(dst[lo*b:hi*b], d.Data[lo:], y, d.M, hi-lo, d.N, b)
		return nil
	})
}

// gramOperator also multiplies by Δ and then by Δᵀ, in one pass over Δ.
type gramOperator interface {
	Operator
	// mulGram returns Δ·x and Δᵀ·Δ·x for each x.
	mulGram(ctx context.Context, xs [][]float64) (ys, zs [][]float64, err error)
	// mulGramT returns Δᵀ·y and Δ·Δᵀ·y for each y.
	mulGramT(ctx context.Context, ys [][]float64) (xs, zs [][]float64, err error)
}

func (d *Dense) mulGram(ctx context.Context, xs [][]float64) (ys, zs [][]float64, err error) {
	return d.gram(ctx, kernel.Lines{Data: d.Data, Count: d.M, Length: d.N, Apart: d.N, Next: 1}, xs)
}

func (d *Dense) mulGramT(ctx context.Context, ys [][]float64) (xs, zs [][]float64, err error) {
	return d.gram(ctx, kernel.Lines{Data: d.Data, Count: d.N, Length: d.M, Apart: 1, Next: d.N}, ys)
}

// gram returns L·x and Lᵀ·L·x for each x, where l are the rows of L.
func (d *Dense) gram(ctx context.Context, l kernel.Lines, xs [][]float64) (ys, zs [][]float64, err error) {
	b := kernel.RoundUp(len(xs)) // the others are zero
	x := make([]float32, l.Length*b)
	for j, column := range xs {
		for i, v := range column {
			x[i*b+j] = float32(v)
		}
	}
	y, size := make([]float32, l.Count*b), kernel.RoundUp(l.Length)*b
	each := blocks(blocks(l.Count, gramBlocks), kernel.GramLines) * kernel.GramLines
	parts := make([][]float64, blocks(l.Count, each))
	scratch := make([]kernel.Gram, parallel.Workers(d.Workers))
	err = parallel.For(ctx, len(scratch), len(parts), func(worker, i int) error {
		lo, hi := i*each, min((i+1)*each, l.Count)
		part := l
		part.Data, part.Count = l.Data[lo*l.Apart:], hi-lo
		parts[i] = make([]float64, size)
		scratch[worker].Add(y[lo*b:hi*b], parts[i], part, x, b)
		return ctx.Err()
	})
	if err != nil {
		return nil, nil, err
	}
	z := parts[0]
	for _, part := range parts[1:] {
		for i, v := range part {
			z[i] += v
		}
	}
	wide := make([]float64, len(y))
	widen(wide, y)
	return columns(wide, b)[:len(xs)], columns(z[:l.Length*b], b)[:len(xs)], nil
}

// wideOperator also multiplies in float64, for errors below the resolution of float32 products.
type wideOperator interface {
	Operator
	// MulWide writes Δ·X to dst (m×b) for X (n×b), in float64.
	MulWide(ctx context.Context, dst, x []float64, b int) error
	// MulWideT writes Δᵀ·Y to dst (n×b) for Y (m×b), in float64.
	MulWideT(ctx context.Context, dst, y []float64, b int) error
}

// MulWide writes Δ·X to dst, in float64.
func (d *Dense) MulWide(ctx context.Context, dst, x []float64, b int) error {
	return inColumns(ctx, dst, x, b, d.exact().Mul)
}

// MulWideT writes Δᵀ·Y to dst, in float64.
func (d *Dense) MulWideT(ctx context.Context, dst, y []float64, b int) error {
	return inColumns(ctx, dst, y, b, d.exact().MulT)
}

func (d *Dense) exact() *krylov.Float32 {
	return &krylov.Float32{M: d.M, N: d.N, Data: d.Data, Workers: d.Workers}
}

// inColumns multiplies the columns of x (…×b) and writes the products to the columns of dst.
func inColumns(ctx context.Context, dst, x []float64, b int,
	mul func(context.Context, [][]float64) ([][]float64, error)) error {
	ys, err := mul(ctx, columns(x, b))
	for j, y := range ys {
		for i, v := range y {
			dst[i*b+j] = v
		}
	}
	return err
}

// scratch returns a function that allocates n values per worker at first use.
func (d *Dense) scratch(n int) func(worker int) []float64 {
	all := make([][]float64, parallel.Workers(d.Workers))
	return func(worker int) []float64 {
		if all[worker] == nil {
			all[worker] = make([]float64, n)
		}
		return all[worker]
	}
}

// residualWide is ResidualSquares in float64, for factors and errors below the resolution of
// float32.
func (d *Dense) residualWide(ctx context.Context, b, a []float64, r int) (float64, error) {
	scratch := d.scratch(min(rowBlock, d.M) * d.N)
	parts := make([]float64, blocks(d.M, rowBlock))
	err := parallel.For(ctx, d.Workers, len(parts), func(worker, i int) error {
		lo, hi := i*rowBlock, min((i+1)*rowBlock, d.M)
		rows := scratch(worker)[:(hi-lo)*d.N]
		widen(rows, d.Data[lo*d.N:hi*d.N])
		dense.SubtractProduct(rows, b[lo*r:hi*r], a, hi-lo, r, d.N)
		parts[i] = sumSquares(rows)
		return nil
	})
	var sum float64
	for _, p := range parts {
		sum += p
	}
	return sum, err
}

// leastElement is the smallest element that counts in a matrix of norm near 1.
const leastElement = kernel.LeastElement

// normalise scales Δ by a power of two that brings its norm near 1, and returns the even exponent.
// It returns 0 for norms from 2⁻⁴ to 2²⁰, where no float32 product can overflow or vanish. energy
// is ‖Δ‖².
//
// Elements below leastElement become zeros. Their products would be subnormal numbers, at some 150
// cycles each on many processors: weight decay leaves such rows in embeddings and experts that
// training never meets. Together they have less than 2⁻⁵⁶·√(m·n) of ‖Δ‖, 2⁻⁴⁴ for a 4096×4096
// matrix.
func (d *Dense) normalise(ctx context.Context, energy float64) (exponent int, err error) {
	if energy == 0 {
		return 0, nil
	}
	exponent = exponentFor(energy)
	half := float32(math.Ldexp(1, exponent/2)) // in two steps, since float32 may not hold the whole factor
	return exponent, parallel.For(ctx, d.Workers, blocks(d.M, rowBlock), func(_, i int) error {
		rows := d.Data[i*rowBlock*d.N : min((i+1)*rowBlock, d.M)*d.N]
		for j, x := range rows {
			x = x * half * half
			if -leastElement < x && x < leastElement {
				x = 0
			}
			rows[j] = x
		}
		return nil
	})
}

// exponentFor returns the exponent of normalise.
func exponentFor(energy float64) int {
	if _, e := math.Frexp(norm(energy)); e <= -4 || e >= 20 {
		return -e / 2 * 2
	}
	return 0
}

// SumSquares returns ‖Δ‖_F², accumulated in float64.
func (d *Dense) SumSquares(ctx context.Context) (float64, error) {
	return sumBlocks(ctx, d.Workers, blocks(d.M, rowBlock), func(i int) float64 {
		var sum float64
		for _, x := range d.Data[i*rowBlock*d.N : min((i+1)*rowBlock, d.M)*d.N] {
			sum += float64(x) * float64(x)
		}
		return sum
	})
}

// ResidualSquares returns ‖Δ − B·A‖_F² for B (m×r) and A (r×n). It compares every element.
func (d *Dense) ResidualSquares(ctx context.Context, b, a []float32, r int) (float64, error) {
	// Rows that are a power of two apart would share one set of the first-level cache.
	const more = 16
	next := d.N + more
	spread := make([]float32, r*next)
	for k := range r {
		copy(spread[k*next:], a[k*d.N:(k+1)*d.N])
	}
	return sumBlocks(ctx, d.Workers, blocks(d.M, rowBlock), func(i int) float64 {
		lo, hi := i*rowBlock, min((i+1)*rowBlock, d.M)
		return kernel.ResidualSquares(d.Data[lo*d.N:hi*d.N], b[lo*r:hi*r], spread, next, hi-lo, d.N, r)
	})
}

func blocks(n, size int) int { return (n + size - 1) / size }

// sumBlocks adds one number per block, in the order of the blocks.
func sumBlocks(ctx context.Context, workers, n int, f func(i int) float64) (float64, error) {
	parts := make([]float64, n)
	err := parallel.For(ctx, workers, n, func(_, i int) error {
		parts[i] = f(i)
		return nil
	})
	var sum float64
	for _, p := range parts {
		sum += p
	}
	return sum, err
}

func norm(squares float64) float64 { return math.Sqrt(max(squares, 0)) }

func widen(dst []float64, x []float32) {
	for i, v := range x {
		dst[i] = float64(v)
	}
}

func narrowed(x []float64) []float32 {
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = float32(v)
	}
	return y
}

func sumSquares(s []float64) (sum float64) {
	for _, x := range s {
		sum += x * x
	}
	return sum
}
