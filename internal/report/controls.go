package report

import (
	"context"
	"math"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/rectangle"
	"github.com/loratool/loratool/internal/thin"
	"github.com/loratool/loratool/rank"
)

const (
	// intruderCount is the number of singular vectors of W + ΔW that can be intruders.
	intruderCount = 10
	// intruderCosine is the cosine below which a singular vector resembles none of W.
	intruderCosine = 0.5
	// ownTolerance is the relative error of the energy outside of W's first singular vectors.
	ownTolerance = 1e-6
)

// control adds the figures that need decompositions of W. They hold W in memory.
func (l *LayerOnBase) control(
	ctx context.Context, rect *rectangle.Rectangle, base *checkpoint.Checkpoint, delta *thin.Matrix,
	o *BaseOptions,
) error {
	if !o.Own && !o.Intruders {
		return nil
	}
	w := make([]float64, 0, l.Rows*l.Columns)
	if err := rect.EachRows(ctx, base, func(_, _ int, rows []float64) error {
		w = append(w, rows...)
		return nil
	}); err != nil {
		return err
	}
	if o.Own {
		own, err := ownProjection(ctx, w, l)
		if err != nil {
			return err
		}
		l.Own = &own
	}
	if o.Intruders {
		n, err := intruders(ctx, w, l.Rows, l.Columns, delta)
		if err != nil {
			return err
		}
		l.Intruders = &n
	}
	return nil
}

// ownProjection returns ‖UᵀWV‖_F for the first singular vectors of W itself: √Σσᵢ².
func ownProjection(ctx context.Context, w []float64, l *LayerOnBase) (float64, error) {
	if l.Rank == 0 || l.BaseNorm == 0 {
		return 0, nil
	}
	narrow := make([]float32, len(w))
	for i, x := range w {
		narrow[i] = float32(x)
	}
	op := &rank.Dense{M: l.Rows, N: l.Columns, Data: narrow, Workers: 1}
	d, err := rank.TruncatedSVD(ctx, op, l.BaseNorm*l.BaseNorm, rank.FixedRank{K: l.Rank},
		rank.Options{Tolerance: ownTolerance, Workers: 1})
	if err != nil {
		return 0, err
	}
	return dense.Norm(d.S), nil
}

// intruders counts the intruder dimensions of arXiv:2410.21228: among the first left singular
// vectors of W + ΔW those whose cosine with every left singular vector of W is below ½.
func intruders(ctx context.Context, w []float64, m, n int, delta *thin.Matrix) (int, error) {
	sum := append([]float64(nil), w...)
	b := make([]float64, len(delta.B))
	for i, x := range delta.B {
		b[i] = math.Ldexp(x, delta.Exponent)
	}
	dense.AddProductTransposed(sum, b, delta.A, m, n, delta.R)
	before, err := leftVectors(ctx, w, m, n)
	if err != nil {
		return 0, err
	}
	after, err := leftVectors(ctx, sum, m, n)
	if err != nil {
		return 0, err
	}
	p := min(m, n)
	cosines := make([]float64, p*p) // a row for each vector of W + ΔW
	dense.AddTransposedProduct(cosines, after, before, m, p, p)
	count := 0
	for j := range min(intruderCount, p) {
		most := 0.0
		for _, c := range cosines[j*p : (j+1)*p] {
			most = max(most, math.Abs(c))
		}
		if most < intruderCosine {
			count++
		}
	}
	return count, nil
}

// leftVectors returns the min(m, n) left singular vectors of a matrix as columns, the first ones
// first. It may overwrite the matrix. Vectors of singular values that are zero are zero.
func leftVectors(ctx context.Context, a []float64, m, n int) ([]float64, error) {
	if m <= n {
		_, u, err := dense.LeftVectors(ctx, a, m, n)
		return u, err
	}
	sigma, v, err := dense.LeftVectors(ctx, dense.Flip(a, m, n), n, m)
	if err != nil {
		return nil, err
	}
	for i := range n {
		for j, s := range sigma {
			if v[i*n+j] /= s; s <= float64(m)*0x1p-52*sigma[0] {
				v[i*n+j] = 0
			}
		}
	}
	u := make([]float64, m*n)
	dense.AddProduct(u, a, v, m, n, n)
	return u, nil
}
