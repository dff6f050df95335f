package rank

import (
	"context"
	"math/rand/v2"
	"slices"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/krylov"
)

// search is the state of a decomposition of an m×n matrix, m ≥ n.
type search struct {
	op      Operator
	m, n    int
	energy  float64
	rule    Rule
	options Options
	out     *Decomposition

	space *krylov.Space
	wide  bool      // products are in float64
	check int       // dimension of the space at which to look at its singular values again
	last  ritz      // those of the last look that the rule keeps
	sigma []float64 // all of them
}

// run grows the space until the rank that rule chooses has settled, and forms the result. Another
// call may use another rule.
func (k *search) run(ctx context.Context, rule Rule) error {
	k.rule = rule
	if k.space == nil {
		k.space = krylov.New(products{k}, krylov.Single, k.spaceOptions())
	} else if r, more := rule.Choose(k.sigma, k.energy, k.m, k.n); !more || k.space.Closed {
		return k.finish(ctx, r) // the present space suffices
	}
	tolerance := k.options.Tolerance
	if tolerance == 0 {
		tolerance = defaultTolerance
	}
	for {
		if err := k.space.Grow(ctx); err != nil {
			return err
		}
		q := k.space.Size()
		if q < k.check && !k.space.Closed {
			continue
		}
		// The projected problem costs q³, so a growing space is checked less and less often.
		k.check = q + q/8
		var err error
		if k.sigma, err = k.space.Values(ctx); err != nil {
			return err
		}
		r, more := k.rule.Choose(k.sigma, k.energy, k.m, k.n)
		now := ritz{k.sigma[:r:r], sumSquares(k.sigma[:r])}
		switch {
		case k.isTooDeep(now):
			if err := k.widen(ctx, r); err != nil {
				return err
			}
			continue
		case k.space.Closed || !more && now.settled(k.last, tolerance, k.energy, k.wide):
			return k.finish(ctx, r)
		}
		k.last = now
	}
}

// spaceOptions returns the options of a space, with a block width that suits the expected rank.
func (k *search) spaceOptions() krylov.Options {
	width := 8
	switch hint := k.rule.Hint(); {
	case hint > 32:
		width = 32
	case hint > 8:
		width = 16
	}
	return krylov.Options{Energy: k.energy, Width: width, Workers: k.options.Workers,
		Random: rand.New(rand.NewPCG(k.options.Seed, 0x6c6f7261))}
}

// deepTail is the share of energy that rounding in float32 products hides: an error of 3.5e-4·‖Δ‖.
const deepTail = 0x1p-23

// isTooDeep reports whether the tail beyond the kept values is too small for float32 and products
// in float64 are possible. A matrix kept whole has no tail.
func (k *search) isTooDeep(r ritz) bool {
	_, can := k.op.(wideOperator)
	return can && !k.wide && len(r.sigma) < k.n && k.energy-r.captured < deepTail*k.energy
}

// widen continues in float64, from a space of the known leading right singular vectors.
func (k *search) widen(ctx context.Context, r int) error {
	const more = 8 // vectors beyond the rank: convergence depends on the gap behind them
	b := min(k.space.Size(), r+more)
	_, v, err := k.space.Vectors(ctx, b)
	if err != nil {
		return err
	}
	k.wide, k.check, k.last = true, 0, ritz{}
	k.space = krylov.NewAt(products{k}, krylov.Double, k.spaceOptions(), columns(v, b))
	return nil
}

// ritz is a solution of the projected problem: the singular values that the rule keeps, and their
// energy.
type ritz struct {
	sigma    []float64
	captured float64
}

// valueShare is the share of the tolerance by which a converged singular value may change between
// two checks, relative to the value. Convergence is geometric, so later changes add up to about the
// same.
const valueShare = 0.3

// settled reports whether the rank, the singular values and the energy have stopped changing.
// Changes of the energy count as far as they affect the error and sums in float64 resolve them.
func (r ritz) settled(last ritz, tolerance, energy float64, wide bool) bool {
	change := tolerance * max(energy-r.captured, 1e-12*energy)
	if wide {
		change = max(tolerance*(energy-r.captured), 1e-15*energy)
	}
	if len(last.sigma) != len(r.sigma) || r.captured-last.captured > change {
		return false
	}
	for i, s := range r.sigma {
		// A value below the rounding of float32 products has no digits that could converge.
		if s-last.sigma[i] > valueShare*tolerance*s && s > 1e-6*r.sigma[0] {
			return false
		}
	}
	return true
}

// finish forms the first r singular triplets.
func (k *search) finish(ctx context.Context, r int) (err error) {
	d := k.out
	d.K, d.Complete, d.Wide = r, k.space.Closed, k.wide
	d.S, d.Estimates = slices.Clone(k.sigma[:r]), slices.Clone(k.sigma)
	d.Error = norm(k.energy - sumSquares(d.S))
	d.U, d.V, err = k.space.Vectors(ctx, r)
	return err
}

// products multiplies by the operator of a search, in the precision of its space.
type products struct{ of *search }

func (p products) Dims() (m, n int) { return p.of.m, p.of.n }

func (p products) Mul(ctx context.Context, xs [][]float64) ([][]float64, error) {
	if p.of.wide {
		return p.multiply(xs, p.of.m, func(dst, x []float64, b int) error {
			return p.of.op.(wideOperator).MulWide(ctx, dst, x, b)
		})
	}
	return p.multiply(xs, p.of.m, narrowly(ctx, p.of.op.Mul))
}

func (p products) MulT(ctx context.Context, ys [][]float64) ([][]float64, error) {
	if p.of.wide {
		return p.multiply(ys, p.of.n, func(dst, y []float64, b int) error {
			return p.of.op.(wideOperator).MulWideT(ctx, dst, y, b)
		})
	}
	return p.multiply(ys, p.of.n, narrowly(ctx, p.of.op.MulT))
}

// multiply calls by with xs as the columns of a matrix, and returns the product, of rows rows, as
// vectors.
func (p products) multiply(
	xs [][]float64, rows int, by func(dst, x []float64, b int) error,
) ([][]float64, error) {
	b := len(xs)
	p.of.out.Products++
	p.of.out.Flops += 2 * int64(p.of.m) * int64(p.of.n) * int64(b)
	x, dst := make([]float64, len(xs[0])*b), make([]float64, rows*b)
	for j, column := range xs {
		for i, v := range column {
			x[i*b+j] = v
		}
	}
	err := by(dst, x, b)
	return columns(dst, b), err
}

// narrowly returns a product in float32 as one in float64.
func narrowly(
	ctx context.Context, mul func(ctx context.Context, dst, x []float32, b int) error,
) func(dst, x []float64, b int) error {
	return func(dst, x []float64, b int) error {
		y := make([]float32, len(dst))
		err := mul(ctx, y, narrowed(x), b)
		widen(dst, y)
		return err
	}
}

// columns returns the columns of a matrix with b columns.
func columns(x []float64, b int) [][]float64 {
	return slices.Collect(slices.Chunk(dense.Flip(x, len(x)/b, b), len(x)/b))
}
