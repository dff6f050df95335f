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

// ownTolerance is the relative error of the energy outside of W's first singular vectors.
const ownTolerance = 1e-6

// control adds the figures that need decompositions of W. They hold W in memory.
func (l *LayerOnBase) control(
	ctx context.Context, rect *rectangle.Rectangle, base *checkpoint.Checkpoint, delta *thin.Matrix,
	o *BaseOptions,
) error {
	if !o.Own && !o.Intruders {
		return nil
	}
	w := make([]float32, 0, l.Rows*l.Columns) // which holds all weights but those in float64
	if err := rect.EachRows(ctx, base, func(_, _ int, rows []float64) error {
		for _, x := range rows {
			w = append(w, float32(x))
		}
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
	if o.Intruders && l.BaseNorm < math.MaxFloat32 { // which NaN is not
		n, estimated, err := intruders(ctx, w, l.Rows, l.Columns, delta)
		if err != nil {
			return err
		}
		l.Intruders, l.IntrudersEstimated = &n, estimated
	}
	return nil
}

// ownProjection returns ‖UᵀWV‖_F for the first singular vectors of W itself: √Σσᵢ².
func ownProjection(ctx context.Context, w []float32, l *LayerOnBase) (float64, error) {
	if l.Rank == 0 || l.BaseNorm == 0 {
		return 0, nil
	}
	op := &rank.Dense{M: l.Rows, N: l.Columns, Data: w, Workers: 1}
	d, err := rank.TruncatedSVD(ctx, op, l.BaseNorm*l.BaseNorm, rank.FixedRank{K: l.Rank},
		rank.Options{Tolerance: ownTolerance, Workers: 1})
	if err != nil {
		return 0, err
	}
	return dense.Norm(d.S), nil
}
