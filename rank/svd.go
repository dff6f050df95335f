package rank

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/loratool/loratool/internal/parallel"
)

// Options of a decomposition. The zero value is ready.
type Options struct {
	Tolerance float64 // relative excess over the smallest error that may be left; 0 is 1e-4
	Seed      uint64  // of the first block
	Workers   int     // goroutines; 0 is one per processor
}

const defaultTolerance = 1e-4

// Decomposition is a truncated singular value decomposition Δ ≈ U·diag(S)·Vᵀ.
type Decomposition struct {
	K int       // number of singular triplets
	U []float64 // m×K, row-major, orthonormal columns
	V []float64 // n×K
	S []float64 // K singular values, descending

	// Estimates are all values that the last basis gave, S among them, descending. Beyond K they are lower bounds in the
	// sense that Σ_{i≤k} Estimates[i]² is the energy that some rank-k matrix is known to reach.
	Estimates []float64
	Energy    float64 // ‖Δ‖_F²
	Error     float64 // ‖Δ − U·diag(S)·Vᵀ‖_F, from the energies: √(‖Δ‖² − ΣS²)
	Products  int     // products with thin matrices, by Δ and by Δᵀ
	Flops     int64   // of these products
	Complete  bool    // the basis spans all of Δ: nothing was truncated before the rank was chosen
	Wide      bool    // the last products were in float64, as the error is below what float32 resolves
}

// TruncatedSVD decomposes Δ to the rank that rule chooses. energy is ‖Δ‖_F². It returns K = 0 for a zero matrix. The result is
// the same for any number of workers.
func TruncatedSVD(ctx context.Context, op Operator, energy float64, rule Rule, o Options) (*Decomposition, error) {
	return newTruncation(op, energy, o).to(ctx, rule)
}

// truncation is a decomposition that can go on to another rank from the basis that it has.
type truncation struct {
	krylov  *krylov
	flipped bool // the operator is transposed, to keep the basis on the short side
}

func newTruncation(op Operator, energy float64, o Options) *truncation {
	m, n := op.Dims()
	t := &truncation{flipped: n > m}
	if t.flipped {
		op, m, n = transpose(op), n, m
	}
	t.krylov = &krylov{op: op, m: m, n: n, energy: energy, options: o}
	return t
}

// to decomposes to the rank that rule chooses.
func (t *truncation) to(ctx context.Context, rule Rule) (*Decomposition, error) {
	k := t.krylov
	before := k.out
	k.out = &Decomposition{Energy: k.energy, Complete: true}
	if before != nil {
		k.out.Products, k.out.Flops = before.Products, before.Flops
	}
	if k.energy == 0 || k.n == 0 {
		return k.out, nil
	}
	err := k.run(ctx, rule)
	if t.flipped {
		k.out.U, k.out.V = k.out.V, k.out.U
	}
	return k.out, err
}

// transpose returns an operator's transpose, which multiplies in float64 if the operator does.
func transpose(op Operator) Operator {
	if w, ok := op.(wideOperator); ok {
		return wideTransposed{transposed{op}, w}
	}
	return transposed{op}
}

// transposed is an operator's transpose.
type transposed struct{ Operator }

func (t transposed) Dims() (m, n int) { n, m = t.Operator.Dims(); return m, n }
func (t transposed) Mul(ctx context.Context, dst, x []float32, b int) error {
	return t.Operator.MulT(ctx, dst, x, b)
}
func (t transposed) MulT(ctx context.Context, dst, y []float32, b int) error {
	return t.Operator.Mul(ctx, dst, y, b)
}

type wideTransposed struct {
	transposed
	wide wideOperator
}

func (t wideTransposed) MulWide(ctx context.Context, dst, x []float64, b int) error {
	return t.wide.MulWideT(ctx, dst, x, b)
}
func (t wideTransposed) MulWideT(ctx context.Context, dst, y []float64, b int) error {
	return t.wide.MulWide(ctx, dst, y, b)
}

// block is b columns of a basis, row-major.
type block struct {
	v []float64 // n×b, orthonormal
	y []float64 // Δ·v, m×b
	b int
	q int // columns before it
}

// krylov is the state of one decomposition; m ≥ n.
type krylov struct {
	op      Operator
	m, n    int
	energy  float64
	rule    Rule
	options Options
	out     *Decomposition

	rng    *rand.Rand
	width  int          // of a new block
	wide   wideOperator // nil while products in float32 do
	start  []float64    // the first block, where it is not random
	basis  []block
	gram   []float64 // YᵀY, q×q
	q      int
	check  int       // the columns from which on the projected problem is looked at again
	last   ritz      // the last look
	sigma  []float64 // all singular values that it gave
	closed bool      // nothing is left to extend the basis with
}

// run extends the basis until the rank that rule chooses has settled, and forms the result. It may be
// called again, with another rule.
func (k *krylov) run(ctx context.Context, rule Rule) error {
	k.rule = rule
	if k.q > 0 { // what is there may do
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
		// The projected problem costs q³, so a growing basis is looked at less and less often.
		k.check = k.q + k.q/8
		values, err := symmetricValues(ctx, k.gram, k.q)
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

// grow returns the next block of the basis, or nil where it holds all there is.
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

// deepTail is the share of the energy below which what is left cannot be told from the rounding of
// products in float32: an error of 3.5e-4·‖Δ‖.
const deepTail = 0x1p-23

// isTooDeep reports whether the singular values that are kept leave less than float32 resolves, and
// products in float64 can tell. A matrix that is kept whole leaves nothing, in whatever precision.
func (k *krylov) isTooDeep(r ritz) bool {
	_, can := k.op.(wideOperator)
	return can && k.wide == nil && len(r.sigma) < k.n && k.energy-r.captured < deepTail*k.energy
}

// widen goes on in float64, from a basis of the leading right singular vectors as they are known.
func (k *krylov) widen(ctx context.Context, r int) error {
	const more = 8 // vectors beyond the rank, as convergence depends on the gap behind them
	b := min(k.q, r+more)
	_, vectors, err := symmetricEigen(ctx, slices.Clone(k.gram), k.q)
	if err != nil {
		return err
	}
	v := make([]float64, k.n*b)
	err = k.combine(ctx, v, k.n, b, vectors, func(x *block, i int) []float64 { return x.v[i*x.b : (i+1)*x.b] }, func(int) float64 { return 1 })
	if err != nil {
		return err
	}
	k.wide = k.op.(wideOperator)
	k.basis, k.gram, k.q, k.check, k.last, k.closed = nil, nil, 0, 0, ritz{}, false
	k.start, err = k.orthonormalise(ctx, v, b, 0)
	return err
}

// ritz is what one look at the basis gave: the singular values that the rule keeps, and their energy.
type ritz struct {
	sigma    []float64
	captured float64
}

// valueTolerance is the relative change of a singular value between two looks below which it has converged; since
// convergence is geometric, what is left to come is of that size.
const valueTolerance = 3e-5

// settled reports whether nothing that matters has changed since the last look: not the rank, not the energy as far as the
// error shows it and sums in float64 do, and no singular value.
func (r ritz) settled(last ritz, tolerance, energy float64, wide bool) bool {
	change := tolerance * max(energy-r.captured, 1e-12*energy)
	if wide {
		change = max(tolerance*(energy-r.captured), 1e-15*energy)
	}
	if len(last.sigma) != len(r.sigma) || r.captured-last.captured > change {
		return false
	}
	for i, s := range r.sigma {
		// A value that is lost in the rounding of float32 products, or of squares in float64, has no digits to wait for.
		if s-last.sigma[i] > valueTolerance*s && s > 1e-6*r.sigma[0] {
			return false
		}
	}
	return true
}

// firstBlock is a random orthonormal block, as wide as suits the rank that will probably be asked for.
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

// randomBlock is a random orthonormal block, orthogonal to the basis.
func (k *krylov) randomBlock(ctx context.Context) ([]float64, error) {
	b := min(k.width, k.n-k.q)
	z := make([]float64, k.n*b)
	for i := range z {
		z[i] = k.rng.NormFloat64()
	}
	return k.orthonormalise(ctx, z, b, 0)
}

// multiply writes Δ·v to y, in the precision that the basis is in.
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
		c, err := thinGram(ctx, k.options.Workers, k.m, other.b, b, func(_, lo, hi int) (x, y []float64) {
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

// nextBlock is the orthonormal part of Δᵀ·Y that the basis does not have; nil if the basis holds all of Δ but rounding.
func (k *krylov) nextBlock(ctx context.Context) ([]float64, error) {
	last := &k.basis[len(k.basis)-1]
	z := make([]float64, k.n*last.b)
	if err := k.multiplyT(ctx, z, last.y, last.b); err != nil {
		return nil, err
	}
	// What rounding alone can leave: u·σ₁·‖Y‖ per column.
	unit, rest := 0x1p-24, 1e-10
	if k.wide != nil {
		unit, rest = 0x1p-53, 1e-14
	}
	noise := unit * math.Sqrt(k.largest()*sumSquares(last.y)/float64(last.b))
	if z, err := k.orthonormalise(ctx, z, last.b, noise); err != nil || z != nil {
		return z, err
	}
	// The basis is invariant. From b columns it can hold no more than b vectors for one singular value, however often that
	// occurs, so what energy is left is looked for from a new start.
	if captured := k.trace(); k.energy-captured <= rest*k.energy {
		return nil, nil
	}
	return k.randomBlock(ctx)
}

// trace is the energy that the basis holds: Σσ² of the projected problem.
func (k *krylov) trace() (sum float64) {
	for i := range k.q {
		sum += k.gram[i*k.q+i]
	}
	return sum
}

// largest is a lower bound of σ₁², close enough to scale noise with: the largest diagonal element of the projected problem.
func (k *krylov) largest() (most float64) {
	for i := range k.q {
		most = max(most, k.gram[i*k.q+i])
	}
	return most
}

// orthonormalise makes the columns of z (n×b) orthogonal to the basis and to each other, twice, and drops the directions in
// which they are not longer than noise: nil means that none is left. At most as many columns remain as the space has left.
func (k *krylov) orthonormalise(ctx context.Context, z []float64, b int, noise float64) ([]float64, error) {
	for pass := range 2 {
		for i := range k.basis {
			if err := project(ctx, k.options.Workers, k.n, z, b, k.basis[i].v, k.basis[i].b); err != nil {
				return nil, err
			}
		}
		g, err := thinGram(ctx, k.options.Workers, k.n, b, b, func(_, lo, hi int) (x, y []float64) { return z[lo*b : hi*b], z[lo*b : hi*b] })
		if err != nil {
			return nil, err
		}
		values, vectors, err := symmetricEigen(ctx, g, b)
		if err != nil {
			return nil, err
		}
		floor := math.Max(noise*noise, 1e-28*values[0])
		if pass == 1 {
			floor = 0.25 // the columns are nearly orthonormal already
		}
		keep := 0
		for keep < min(b, k.n-k.q) && values[keep] > floor {
			keep++
		}
		if keep == 0 {
			return nil, nil
		}
		turn := make([]float64, b*keep)
		for s := range b {
			for t := range keep {
				turn[s*keep+t] = -vectors[s*b+t] / math.Sqrt(values[t]) // minus, as the product is subtracted
			}
		}
		out := make([]float64, k.n*keep)
		err = parallel.For(ctx, k.options.Workers, blocks(k.n, thinRows), func(_, i int) error {
			lo, hi := i*thinRows, min((i+1)*thinRows, k.n)
			subtractProduct(out[lo*keep:hi*keep], z[lo*b:hi*b], turn, hi-lo, b, keep)
			return nil
		})
		if err != nil {
			return nil, err
		}
		z, b = out, keep
	}
	return z, nil
}

// thinRows is the number of rows that a product of two thin matrices takes at a time. It is fixed, so that sums have the same
// order for any number of workers.
const thinRows = 1024

// project subtracts from z (n×b) its part in the span of v (n×c).
func project(ctx context.Context, workers, n int, z []float64, b int, v []float64, c int) error {
	coeff, err := thinGram(ctx, workers, n, c, b, func(_ int, lo, hi int) (x, y []float64) { return v[lo*c : hi*c], z[lo*b : hi*b] })
	if err != nil {
		return err
	}
	return parallel.For(ctx, workers, blocks(n, thinRows), func(_, i int) error {
		lo, hi := i*thinRows, min((i+1)*thinRows, n)
		subtractProduct(z[lo*b:hi*b], v[lo*c:hi*c], coeff, hi-lo, c, b)
		return nil
	})
}

// thinGram is XᵀY (a×b) for X (n×a) and Y (n×b), which rows returns piece by piece.
func thinGram(ctx context.Context, workers, n, a, b int, rows func(worker, lo, hi int) (x, y []float64)) ([]float64, error) {
	parts := make([][]float64, blocks(n, thinRows))
	err := parallel.For(ctx, workers, len(parts), func(worker, i int) error {
		lo, hi := i*thinRows, min((i+1)*thinRows, n)
		parts[i] = make([]float64, a*b)
		x, y := rows(worker, lo, hi)
		addTransposedProduct(parts[i], x, y, hi-lo, a, b)
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

// finish forms the first r singular triplets.
func (k *krylov) finish(ctx context.Context, r int) error {
	_, vectors, err := symmetricEigen(ctx, slices.Clone(k.gram), k.q)
	if err != nil {
		return err
	}
	d := k.out
	d.K, d.Complete, d.Wide = r, k.closed, k.wide != nil
	d.S, d.Estimates = slices.Clone(k.sigma[:r]), slices.Clone(k.sigma)
	d.Error = norm(k.energy - sumSquares(d.S))
	d.U, d.V = make([]float64, k.m*r), make([]float64, k.n*r)
	err = k.combine(ctx, d.V, k.n, r, vectors, func(x *block, i int) []float64 { return x.v[i*x.b : (i+1)*x.b] }, func(int) float64 { return 1 })
	if err != nil {
		return err
	}
	return k.combine(ctx, d.U, k.m, r, vectors, func(x *block, i int) []float64 { return x.y[i*x.b : (i+1)*x.b] }, func(t int) float64 {
		if d.S[t] == 0 {
			return 0
		}
		return 1 / d.S[t]
	})
}

// combine writes to dst (rows×r) the first r combinations of the basis, or of its products, by the columns
// of vectors; row returns row i of a block, and scale is applied to column t.
func (k *krylov) combine(ctx context.Context, dst []float64, rows, r int, vectors []float64, row func(x *block, i int) []float64, scale func(t int) float64) error {
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

// Factors returns B = U·√S (m×K) and A = √S·Vᵀ (K×n), so that B·A is the truncation. The square root on both sides keeps
// both factors in the range where 16-bit types are precise.
func (d *Decomposition) Factors() (b, a []float32) {
	wideB, wideA := d.factors()
	return narrowed(wideB), narrowed(wideA)
}

// factors is Factors before they are rounded to float32.
func (d *Decomposition) factors() (b, a []float64) {
	k := d.K
	if k == 0 {
		return nil, nil
	}
	m, n := len(d.U)/k, len(d.V)/k
	b, a = make([]float64, m*k), make([]float64, k*n)
	for t := range k {
		root := math.Sqrt(d.S[t])
		for i := range m {
			b[i*k+t] = d.U[i*k+t] * root
		}
		for j := range n {
			a[t*n+j] = d.V[j*k+t] * root
		}
	}
	return b, a
}
