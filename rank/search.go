package rank

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/krylov"
)

// search is the state of a decomposition of an m×n matrix, m ≥ n.
type search struct {
	op      Operator
	flipped bool // the matrix is op's transposed, to keep the basis on the short side
	narrow  bool // op does not multiply in float64
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

func newSearch(op Operator, energy float64, o Options) *search {
	m, n := op.Dims()
	return &search{op: op, flipped: n > m, m: max(m, n), n: min(m, n), energy: energy, options: o}
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
		sigma, err := k.space.Values(ctx)
		if err != nil {
			return err
		}
		k.sigma = sigma
		r, more := k.rule.Choose(k.sigma, k.energy, k.m, k.n)
		now := ritz{k.sigma[:r:r], sumSquares(k.sigma[:r])}
		if k.isTooDeep(now) {
			if err := k.widen(ctx, r); err != nil {
				return err
			}
			continue
		}
		done, err := k.isDone(ctx, now, more)
		switch {
		case err != nil:
			return err
		case done:
			return k.finish(ctx, r)
		}
		k.last = now
	}
}

// isDone reports whether the values that the rule keeps are those of the matrix.
func (k *search) isDone(ctx context.Context, now ritz, more bool) (bool, error) {
	tolerance := cmp.Or(k.options.Tolerance, defaultTolerance)
	switch {
	case k.space.Closed:
		return true, nil
	case more:
		return false, nil
	case now.settled(k.last, tolerance, k.energy, k.wide):
		return true, nil
	}
	return k.converged(ctx, now, tolerance)
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
	return can && !k.narrow && !k.wide && len(r.sigma) < k.n && k.energy-r.captured < deepTail*k.energy
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

// converged reports whether the singular values of the space are those of the matrix, by their
// residuals, which tell it a block earlier than settled. A value of AᵀA that the space puts at θ
// with the residual ρ is at most ρ²/(θ − μ) larger, if μ bounds all values beyond those that the
// rule keeps (Mathias, Quadratic residual bounds for the Hermitian eigenvalue problem, 1998). μ is
// estimated by the next value in the space and its residual. Rules whose rank depends on values
// that the space may not have found yet have to settle.
func (k *search) converged(ctx context.Context, now ritz, tolerance float64) (bool, error) {
	const (
		most   = 64 // the vectors of a larger space cost more than another block
		safety = 4
	)
	r := len(now.sigma)
	if _, ok := k.rule.(FixedRank); !ok || k.wide || r >= len(k.sigma) || len(k.sigma) > most {
		return false, nil
	}
	residuals, err := k.space.Residuals(ctx, r+1)
	if err != nil {
		return false, err
	}
	beyond := k.sigma[r] * (k.sigma[r] + residuals[r])
	var lost float64
	for i, s := range now.sigma {
		gap, rho := s*s-beyond, s*residuals[i]
		if gap <= 0 || safety*rho*rho > 2*valueShare*tolerance*s*s*gap {
			return false, nil
		}
		lost += rho * rho / gap
	}
	return safety*lost <= tolerance*(k.energy-now.captured), nil
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

// products multiplies by the matrix of a search, in the precision of its space.
type products struct{ of *search }

func (p products) Dims() (m, n int) { return p.of.m, p.of.n }

// Mul returns A·x for each x.
func (p products) Mul(ctx context.Context, xs [][]float64) ([][]float64, error) {
	return p.multiply(ctx, xs, p.of.m, p.of.flipped)
}

// MulT returns Aᵀ·y for each y.
func (p products) MulT(ctx context.Context, ys [][]float64) ([][]float64, error) {
	return p.multiply(ctx, ys, p.of.n, !p.of.flipped)
}

// multiply multiplies the operator, or its transposed, by xs as the columns of a matrix, and
// returns the product, of rows rows, as vectors.
func (p products) multiply(ctx context.Context, xs [][]float64, rows int, transposed bool) ([][]float64, error) {
	b := len(xs)
	p.count(b, 1)
	x, dst := dense.Flip(slices.Concat(xs...), b, len(xs[0])), make([]float64, rows*b)
	by := narrowly(ctx, p.of.op.Mul)
	switch wide, _ := p.of.op.(wideOperator); {
	case p.of.wide && transposed:
		by = func(dst, x []float64, b int) error { return wide.MulWideT(ctx, dst, x, b) }
	case p.of.wide:
		by = func(dst, x []float64, b int) error { return wide.MulWide(ctx, dst, x, b) }
	case transposed:
		by = narrowly(ctx, p.of.op.MulT)
	}
	err := by(dst, x, b)
	return columns(dst, b), err
}

// count counts products with b vectors.
func (p products) count(b, products int) {
	p.of.out.Products += products
	p.of.out.Flops += 2 * int64(products) * int64(p.of.m) * int64(p.of.n) * int64(b)
}

// MulBoth returns A·x and Aᵀ·A·x for each x, the latter only if the operator finds both in one
// pass.
func (p products) MulBoth(ctx context.Context, xs [][]float64) (ys, zs [][]float64, err error) {
	g, ok := p.of.op.(gramOperator)
	if !ok || p.of.wide {
		ys, err = p.Mul(ctx, xs)
		return ys, nil, err
	}
	p.count(len(xs), 2)
	by := g.mulGram
	if p.of.flipped {
		by = g.mulGramT
	}
	return by(ctx, xs)
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
