package rank

import (
	"context"
	"math"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/parallel"
)

// block is b columns of a basis, row-major.
type block struct {
	v []float64 // n×b, orthonormal
	y []float64 // Δ·v, m×b
	b int
	q int // number of columns before it
}

// orthonormalise makes the columns of z (n×b) orthogonal to the basis and to each other, in two
// passes. It drops directions that are no longer than noise, and returns nil if none is left. The
// rest of the space limits the number of columns.
func (k *krylov) orthonormalise(
	ctx context.Context, z []float64, b int, noise float64,
) ([]float64, error) {
	for pass := range 2 {
		for i := range k.basis {
			err := project(ctx, k.options.Workers, k.n, z, b, k.basis[i].v, k.basis[i].b)
			if err != nil {
				return nil, err
			}
		}
		floor := func(largest float64) float64 { return math.Max(noise*noise, 1e-28*largest) }
		if pass == 1 { // the columns are already nearly orthonormal
			floor = func(float64) float64 { return 0.25 }
		}
		var err error
		if z, b, err = k.turn(ctx, z, b, floor); b == 0 || err != nil {
			return nil, err
		}
	}
	return z, nil
}

// turn makes the columns of z (n×b) orthonormal. It multiplies z by the eigenvectors of zᵀz and
// divides by the roots of its eigenvalues. Eigenvalues at or below the floor, which depends on the
// largest one, are dropped. It returns the number of remaining columns.
func (k *krylov) turn(ctx context.Context, z []float64, b int, floor func(largest float64) float64) (
	out []float64, keep int, err error) {
	g, err := thinGram(ctx, k.options.Workers, k.n, b, b,
		func(_, lo, hi int) (x, y []float64) { return z[lo*b : hi*b], z[lo*b : hi*b] })
	if err != nil {
		return nil, 0, err
	}
	values, vectors, err := dense.Eigen(ctx, g, b)
	if err != nil {
		return nil, 0, err
	}
	least := floor(values[0])
	for keep < min(b, k.n-k.q) && values[keep] > least {
		keep++
	}
	if keep == 0 {
		return nil, 0, nil
	}
	by := make([]float64, b*keep)
	for s := range b {
		for t := range keep {
			// negative, since the product is subtracted
			by[s*keep+t] = -vectors[s*b+t] / math.Sqrt(values[t])
		}
	}
	out = make([]float64, k.n*keep)
	err = parallel.For(ctx, k.options.Workers, blocks(k.n, thinRows), func(_, i int) error {
		lo, hi := i*thinRows, min((i+1)*thinRows, k.n)
		dense.SubtractProduct(out[lo*keep:hi*keep], z[lo*b:hi*b], by, hi-lo, b, keep)
		return nil
	})
	return out, keep, err
}

// thinRows is the number of rows of a thin product that are processed together. It is fixed, so
// that sums have the same order for any number of workers.
const thinRows = 1024

// project subtracts from z (n×b) its part in the span of v (n×c).
func project(ctx context.Context, workers, n int, z []float64, b int, v []float64, c int) error {
	coeff, err := thinGram(ctx, workers, n, c, b,
		func(_ int, lo, hi int) (x, y []float64) { return v[lo*c : hi*c], z[lo*b : hi*b] })
	if err != nil {
		return err
	}
	return parallel.For(ctx, workers, blocks(n, thinRows), func(_, i int) error {
		lo, hi := i*thinRows, min((i+1)*thinRows, n)
		dense.SubtractProduct(z[lo*b:hi*b], v[lo*c:hi*c], coeff, hi-lo, c, b)
		return nil
	})
}

// thinGram computes XᵀY (a×b) for X (n×a) and Y (n×b), which rows returns piece by piece.
func thinGram(ctx context.Context, workers, n, a, b int,
	rows func(worker, lo, hi int) (x, y []float64)) ([]float64, error) {
	parts := make([][]float64, blocks(n, thinRows))
	err := parallel.For(ctx, workers, len(parts), func(worker, i int) error {
		lo, hi := i*thinRows, min((i+1)*thinRows, n)
		parts[i] = make([]float64, a*b)
		x, y := rows(worker, lo, hi)
		dense.AddTransposedProduct(parts[i], x, y, hi-lo, a, b)
		return nil
	})
	sum := make([]float64, a*b)
	for _, g := range parts {
		for i, v := range g {
			sum[i] += v
		}
	}
	return sum, err
}

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

func roots(values []float64) []float64 {
	s := make([]float64, len(values))
	for i, v := range values {
		s[i] = norm(v)
	}
	return s
}

func sumSquares(s []float64) (sum float64) {
	for _, x := range s {
		sum += x * x
	}
	return sum
}
