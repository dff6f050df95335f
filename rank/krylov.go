package rank

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/parallel"
)

// krylov is the state of a decomposition of an m×n matrix, m ≥ n.
type krylov struct {
	op      Operator
	m, n    int
	energy  float64
	rule    Rule
	options Options
	out     *Decomposition

	rng    *rand.Rand
	width  int          // columns of a new block
	wide   wideOperator // nil while products are in float32
	start  []float64    // first block; nil for a random one
	basis  []block
	gram   []float64 // YᵀY, q×q
	q      int
	check  int       // number of columns at which to solve the projected problem again
	last   ritz      // the last solution
	sigma  []float64 // all its singular values
	closed bool      // the basis cannot grow
}

// run extends the basis until the rank that rule chooses has settled, and forms the result. Another
// call may use another rule.
func (k *krylov) run(ctx context.Context, rule Rule) error {
	k.rule = rule
	if k.q > 0 { // the present basis may suffice
		if r, more := rule.Choose(k.sigma, k.energy, k.m, k.n); !more || k.closed {
			return k.finish(ctx, r)
		}
	}
	tolerance := k.options.Tolerance
	if tolerance == 0 {
		tolerance = defaultTolerance
	}
	for {
		next, err := k.grow(ctx)
		if err != nil {
			return err
		}
		if next != nil {
			if err := k.extend(ctx, next); err != nil {
				return err
			}
			if k.q < k.check && k.q < k.n {
				continue
			}
		}
		k.closed = next == nil || k.q >= k.n
		// The projected problem costs q³, so a growing basis is checked less and less often.
		k.check = k.q + k.q/8
		values, err := dense.Eigenvalues(ctx, k.gram, k.q)
		if err != nil {
			return err
		}
		k.sigma = roots(values)
		r, more := k.rule.Choose(k.sigma, k.energy, k.m, k.n)
		now := ritz{k.sigma[:r:r], sumSquares(k.sigma[:r])}
		switch {
		case k.isTooDeep(now):
			if err := k.widen(ctx, r); err != nil {
				return err
			}
			continue
		case k.closed || !more && now.settled(k.last, tolerance, k.energy, k.wide != nil):
			return k.finish(ctx, r)
		}
		k.last = now
	}
}

// grow returns the next block of the basis, or nil if the basis is complete.
func (k *krylov) grow(ctx context.Context) ([]float64, error) {
	switch {
	case k.start != nil:
		start := k.start
		k.start = nil
		return start, nil
	case k.q == 0:
		return k.firstBlock(ctx)
	case k.q >= k.n:
		return nil, nil
	}
	return k.nextBlock(ctx)
}

// deepTail is the share of energy that rounding in float32 products hides: an error of 3.5e-4·‖Δ‖.
const deepTail = 0x1p-23

// isTooDeep reports whether the tail beyond the kept values is too small for float32 and products
// in float64 are possible. A matrix kept whole has no tail.
func (k *krylov) isTooDeep(r ritz) bool {
	_, can := k.op.(wideOperator)
	return can && k.wide == nil && len(r.sigma) < k.n && k.energy-r.captured < deepTail*k.energy
}

// widen continues in float64, from a basis of the known leading right singular vectors.
func (k *krylov) widen(ctx context.Context, r int) error {
	const more = 8 // vectors beyond the rank: convergence depends on the gap behind them
	b := min(k.q, r+more)
	_, vectors, err := dense.Eigen(ctx, slices.Clone(k.gram), k.q)
	if err != nil {
		return err
	}
	v := make([]float64, k.n*b)
	err = k.combine(ctx, v, k.n, b, vectors,
		func(x *block, i int) []float64 { return x.v[i*x.b : (i+1)*x.b] },
		func(int) float64 { return 1 })
	if err != nil {
		return err
	}
	k.wide = k.op.(wideOperator)
	k.basis, k.gram, k.q, k.check, k.last, k.closed = nil, nil, 0, 0, ritz{}, false
	k.start, err = k.orthonormalise(ctx, v, b, 0)
	return err
}

// ritz is a solution of the projected problem: the singular values that the rule keeps, and their
// energy.
type ritz struct {
	sigma    []float64
	captured float64
}

// valueTolerance is the relative change between two checks below which a singular value has
// converged. Convergence is geometric, so later changes add up to about the same.
const valueTolerance = 3e-5

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
		// A value below the rounding of float32 products, or of squares in float64, has no digits
		// that could converge.
		if s-last.sigma[i] > valueTolerance*s && s > 1e-6*r.sigma[0] {
			return false
		}
	}
	return true
}

// firstBlock returns a random orthonormal block, of a width that suits the expected rank.
func (k *krylov) firstBlock(ctx context.Context) ([]float64, error) {
	k.width = 8
	switch hint := k.rule.Hint(); {
	case hint > 32:
		k.width = 32
	case hint > 8:
		k.width = 16
	}
	k.rng = rand.New(rand.NewPCG(k.options.Seed, 0x6c6f7261))
	return k.randomBlock(ctx)
}

// randomBlock returns a random orthonormal block, orthogonal to the basis.
func (k *krylov) randomBlock(ctx context.Context) ([]float64, error) {
	b := min(k.width, k.n-k.q)
	z := make([]float64, k.n*b)
	for i := range z {
		z[i] = k.rng.NormFloat64()
	}
	return k.orthonormalise(ctx, z, b, 0)
}

// multiply writes Δ·v to y, in the precision of the basis.
func (k *krylov) multiply(ctx context.Context, y, v []float64, b int) error {
	k.count(b)
	if k.wide != nil {
		return k.wide.MulWide(ctx, y, v, b)
	}
	y32 := make([]float32, len(y))
	if err := k.op.Mul(ctx, y32, narrowed(v), b); err != nil {
		return err
	}
	widen(y, y32)
	return nil
}

// multiplyT writes Δᵀ·y to z.
func (k *krylov) multiplyT(ctx context.Context, z, y []float64, b int) error {
	k.count(b)
	if k.wide != nil {
		return k.wide.MulWideT(ctx, z, y, b)
	}
	z32 := make([]float32, len(z))
	if err := k.op.MulT(ctx, z32, narrowed(y), b); err != nil {
		return err
	}
	widen(z, z32)
	return nil
}

// extend adds a block to the basis, multiplies it by Δ, and solves the projected problem.
func (k *krylov) extend(ctx context.Context, v []float64) error {
	b := len(v) / k.n
	next := block{v: v, y: make([]float64, k.m*b), b: b, q: k.q}
	if err := k.multiply(ctx, next.y, v, b); err != nil {
		return err
	}
	k.basis = append(k.basis, next)

	old, q := k.q, k.q+b
	gram := make([]float64, q*q)
	for i := range old {
		copy(gram[i*q:], k.gram[i*old:(i+1)*old])
	}
	for i := range k.basis {
		other := &k.basis[i]
		c, err := thinGram(ctx, k.options.Workers, k.m, other.b, b,
			func(_, lo, hi int) (x, y []float64) {
				return other.y[lo*other.b : hi*other.b], next.y[lo*b : hi*b]
			})
		if err != nil {
			return err
		}
		for s := range other.b {
			for t := range b {
				gram[(other.q+s)*q+old+t] = c[s*b+t]
				gram[(old+t)*q+other.q+s] = c[s*b+t]
			}
		}
	}
	k.gram, k.q = gram, q
	return nil
}

func (k *krylov) count(b int) {
	k.out.Products++
	k.out.Flops += 2 * int64(k.m) * int64(k.n) * int64(b)
}

// nextBlock returns an orthonormal block of the part of Δᵀ·Y outside the basis, or nil if only
// rounding is outside.
func (k *krylov) nextBlock(ctx context.Context) ([]float64, error) {
	last := &k.basis[len(k.basis)-1]
	z := make([]float64, k.n*last.b)
	if err := k.multiplyT(ctx, z, last.y, last.b); err != nil {
		return nil, err
	}
	// Rounding alone leaves up to u·σ₁·‖Y‖ per column.
	unit, rest := 0x1p-24, 1e-10
	if k.wide != nil {
		unit, rest = 0x1p-53, 1e-14
	}
	noise := unit * math.Sqrt(k.largest()*sumSquares(last.y)/float64(last.b))
	if z, err := k.orthonormalise(ctx, z, last.b, noise); err != nil || z != nil {
		return z, err
	}
	// The basis is invariant. Started from b columns, it contains at most b vectors for one
	// singular value, however often that value occurs. A new start finds the remaining energy.
	if captured := k.trace(); k.energy-captured <= rest*k.energy {
		return nil, nil
	}
	return k.randomBlock(ctx)
}

// trace returns the energy within the basis: Σσ² of the projected problem.
func (k *krylov) trace() (sum float64) {
	for i := range k.q {
		sum += k.gram[i*k.q+i]
	}
	return sum
}

// largest returns a lower bound of σ₁² close enough to scale noise: the largest diagonal element of
// the projected problem.
func (k *krylov) largest() (most float64) {
	for i := range k.q {
		most = max(most, k.gram[i*k.q+i])
	}
	return most
}

// finish forms the first r singular triplets.
func (k *krylov) finish(ctx context.Context, r int) error {
	_, vectors, err := dense.Eigen(ctx, slices.Clone(k.gram), k.q)
	if err != nil {
		return err
	}
	d := k.out
	d.K, d.Complete, d.Wide = r, k.closed, k.wide != nil
	d.S, d.Estimates = slices.Clone(k.sigma[:r]), slices.Clone(k.sigma)
	d.Error = norm(k.energy - sumSquares(d.S))
	d.U, d.V = make([]float64, k.m*r), make([]float64, k.n*r)
	err = k.combine(ctx, d.V, k.n, r, vectors,
		func(x *block, i int) []float64 { return x.v[i*x.b : (i+1)*x.b] },
		func(int) float64 { return 1 })
	if err != nil {
		return err
	}
	return k.combine(ctx, d.U, k.m, r, vectors,
		func(x *block, i int) []float64 { return x.y[i*x.b : (i+1)*x.b] },
		func(t int) float64 {
			if d.S[t] == 0 {
				return 0
			}
			return 1 / d.S[t]
		})
}

// combine writes r combinations of the basis, or of its products, to dst (rows×r). The columns of
// vectors are the coefficients, row returns row i of a block, and scale multiplies column t.
func (k *krylov) combine(ctx context.Context, dst []float64, rows, r int, vectors []float64,
	row func(x *block, i int) []float64, scale func(t int) float64) error {
	const step = 512
	return parallel.For(ctx, k.options.Workers, blocks(rows, step), func(_, part int) error {
		for i := part * step; i < min((part+1)*step, rows); i++ {
			sum := dst[i*r : (i+1)*r]
			for j := range k.basis {
				b := &k.basis[j]
				for s, x := range row(b, i) {
					for t, w := range vectors[(b.q+s)*k.q:][:r] {
						sum[t] += x * w
					}
				}
			}
			for t := range sum {
				sum[t] *= scale(t)
			}
		}
		return nil
	})
}
