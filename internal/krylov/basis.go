package krylov

import (
	"context"
	"slices"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/parallel"
)

// Basis is a growing set of vectors. The zero value with a dimension is empty.
type Basis struct {
	Dim     int
	Vectors [][]float64
	Workers int // goroutines; 0 means one per processor
}

// Size returns the number of vectors.
func (b *Basis) Size() int { return len(b.Vectors) }

// dependent is the share of a vector that rounding leaves after removing a basis that contains it.
const dependent = 0x1p-44

// Extend adds the directions of xs that an orthonormal basis lacks, and returns their number. It
// leaves out directions that are no longer than noise. It overwrites xs.
//
// Two passes suffice (Giraud, Langou and Rozložník, 2005): the first may leave a share of the basis
// in a short direction, which the second removes.
func (b *Basis) Extend(ctx context.Context, xs [][]float64, noise float64) (added int, err error) {
	least := make([]float64, len(xs))
	for i, x := range xs {
		least[i] = max(noise, dependent*dense.Norm(x))
	}
	for range 2 {
		if err := b.Project(ctx, xs); err != nil {
			return 0, err
		}
		xs = orthonormal(xs, least, b.Dim-b.Size())
		for i := range xs {
			least[i] = 0.5 // of vectors that are already nearly orthonormal
		}
	}
	b.Vectors = append(b.Vectors, xs...)
	return len(xs), ctx.Err()
}

// orthonormal makes vectors orthonormal, in place, and returns at most most of them. It leaves out
// those of which no more than least is outside the ones before them.
func orthonormal(xs [][]float64, least []float64, most int) (kept [][]float64) {
	for i, x := range xs {
		for range 2 {
			for _, q := range kept {
				dense.AddScaled(x, -dense.Dot(q, x), q)
			}
		}
		if norm := dense.Norm(x); norm > least[i] && len(kept) < most {
			for j := range x {
				x[j] *= 1 / norm
			}
			kept = append(kept, x)
		}
	}
	return kept
}

// Project subtracts from each x its part in the span of an orthonormal basis.
func (b *Basis) Project(ctx context.Context, xs [][]float64) error {
	if len(xs) == 0 || b.Size() == 0 {
		return ctx.Err()
	}
	c, err := b.Coefficients(ctx, xs)
	if err != nil {
		return err
	}
	return b.each(ctx, func(_, lo, hi int) {
		for j, x := range xs {
			for i, q := range b.Vectors {
				dense.AddScaled(x[lo:hi], -c[i*len(xs)+j], q[lo:hi])
			}
		}
	})
}

// Coefficients returns the inner products of all vectors of the basis with all of xs, a matrix of
// len(xs) columns.
func (b *Basis) Coefficients(ctx context.Context, xs [][]float64) ([]float64, error) {
	parts := make([][]float64, b.pieces())
	err := b.each(ctx, func(piece, lo, hi int) {
		c := make([]float64, 0, b.Size()*len(xs))
		for _, q := range b.Vectors {
			for _, x := range xs {
				c = append(c, dense.Dot(q[lo:hi], x[lo:hi]))
			}
		}
		parts[piece] = c
	})
	sum := make([]float64, b.Size()*len(xs))
	for _, c := range parts {
		for i, x := range c {
			sum[i] += x
		}
	}
	return sum, err
}

// Combine returns r combinations of the vectors as the columns of a matrix. Row i of by has the
// coefficients of vector i; columns that it lacks are zero.
func (b *Basis) Combine(ctx context.Context, by []float64, cols, r int) ([]float64, error) {
	all := make([]float64, r*b.Dim)
	err := b.each(ctx, func(_, lo, hi int) {
		for t := range min(r, cols) {
			for i, v := range b.Vectors {
				dense.AddScaled(all[t*b.Dim+lo:t*b.Dim+hi], by[i*cols+t], v[lo:hi])
			}
		}
	})
	return dense.Flip(all, r, b.Dim), err
}

// pieceDim is the number of elements of a vector that are processed together. It is fixed, so that
// sums have the same order for any number of workers.
const pieceDim = 1024

func (b *Basis) pieces() int { return (b.Dim + pieceDim - 1) / pieceDim }

// each calls f for all pieces of the vectors, in parallel.
func (b *Basis) each(ctx context.Context, f func(piece, lo, hi int)) error {
	return parallel.For(ctx, b.Workers, b.pieces(), func(_, i int) error {
		f(i, i*pieceDim, min((i+1)*pieceDim, b.Dim))
		return nil
	})
}

// clones returns copies of vectors.
func clones(xs [][]float64) [][]float64 {
	ys := make([][]float64, len(xs))
	for i, x := range xs {
		ys[i] = slices.Clone(x)
	}
	return ys
}

// zeros returns n vectors of zeros.
func zeros(n, dim int) [][]float64 {
	xs := make([][]float64, n)
	for i := range xs {
		xs[i] = make([]float64, dim)
	}
	return xs
}
