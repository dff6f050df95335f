package krylov

import (
	"context"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/parallel"
)

// Float32 is a matrix in float32, row-major, whose products are in float64.
type Float32 struct {
	M, N    int
	Data    []float32
	Workers int // goroutines; 0 means one per processor
}

// Fixed block sizes keep the order of sums independent of the workers.
const (
	rowBlock    = 64
	columnBlock = 512
)

// Dims returns the number of rows and of columns.
func (a *Float32) Dims() (m, n int) { return a.M, a.N }

// Mul returns A·x for each x.
func (a *Float32) Mul(ctx context.Context, xs [][]float64) ([][]float64, error) {
	ys := zeros(len(xs), a.M)
	blocks := (a.M + rowBlock - 1) / rowBlock
	return ys, parallel.For(ctx, a.Workers, blocks, func(_, block int) error {
		line := make([]float64, a.N)
		for i := block * rowBlock; i < min((block+1)*rowBlock, a.M); i++ {
			widen(line, a.Data[i*a.N:(i+1)*a.N])
			for c, x := range xs {
				ys[c][i] = dense.Dot(line, x)
			}
		}
		return nil
	})
}

// MulT returns Aᵀ·y for each y.
func (a *Float32) MulT(ctx context.Context, ys [][]float64) ([][]float64, error) {
	xs := zeros(len(ys), a.N)
	blocks := (a.N + columnBlock - 1) / columnBlock
	return xs, parallel.For(ctx, a.Workers, blocks, func(_, block int) error {
		lo, hi := block*columnBlock, min((block+1)*columnBlock, a.N)
		line := make([]float64, hi-lo)
		for i := range a.M {
			widen(line, a.Data[i*a.N+lo:i*a.N+hi])
			for c, y := range ys {
				dense.AddScaled(xs[c][lo:hi], y[i], line)
			}
		}
		return nil
	})
}

func widen(dst []float64, x []float32) {
	for i, v := range x {
		dst[i] = float64(v)
	}
}
