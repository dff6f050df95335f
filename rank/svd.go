package rank

import (
	"context"
	"math"
	"math/rand/v2"

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
	U []float32 // m×K, row-major, orthonormal columns
	V []float32 // n×K
	S []float64 // K singular values, descending

	// Estimates are all values that the last basis gave, S among them, descending. Beyond K they are lower bounds in the
	// sense that Σ_{i≤k} Estimates[i]² is the energy that some rank-k matrix is known to reach.
	Estimates []float64
	Energy    float64 // ‖Δ‖_F²
	Error     float64 // ‖Δ − U·diag(S)·Vᵀ‖_F, from the energies: √(‖Δ‖² − ΣS²)
	Products  int     // products with thin matrices, by Δ and by Δᵀ
	Flops     int64   // of these products
	Complete  bool    // the basis spans all of Δ: nothing was truncated before the rank was chosen
}

// TruncatedSVD decomposes Δ to the rank that rule chooses. energy is ‖Δ‖_F². It returns K = 0 for a zero matrix. The result is
// the same for any number of workers.
func TruncatedSVD(ctx context.Context, op Operator, energy float64, rule Rule, o Options) (*Decomposition, error) {
	m, n := op.Dims()
	d := &Decomposition{Energy: energy, Complete: true}
	if energy == 0 || m == 0 || n == 0 {
		return d, nil
	}
	if n > m { // keep the basis on the short side
		t, err := TruncatedSVD(ctx, transposed{op}, energy, rule, o)
		if err == nil {
			t.U, t.V = t.V, t.U
		}
		return t, err
	}
	k := &krylov{op: op, m: m, n: n, energy: energy, rule: rule, options: o, out: d}
	return d, k.run(ctx)
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

// block is b columns of a basis, row-major.
type block struct {
	v []float64 // n×b, orthonormal
	y []float32 // Δ·v, m×b
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
	width  int // of a new block
	basis  []block
	gram   []float64 // YᵀY, q×q
	q      int
	values []float64 // eigenvalues of gram, descending
	vecs   []float64
}

func (k *krylov) run(ctx context.Context) error {
	tolerance := k.options.Tolerance
	if tolerance == 0 {
		tolerance = defaultTolerance
	}
	next := k.firstBlock()
	lastRank, lastEnergy := -1, 0.0
	for {
		if err := k.extend(ctx, next); err != nil {
			return err
		}
		sigma := roots(k.values)
		r, more := k.rule.Choose(sigma, k.energy, k.m, k.n)
		captured := sumSquares(sigma[:r])
		complete := k.q >= k.n
		if !complete && !more && r == lastRank && captured-lastEnergy <= tolerance*max(k.energy-captured, 1e-12*k.energy) {
			return k.finish(ctx, r, sigma, false)
		}
		if complete {
			return k.finish(ctx, r, sigma, true)
		}
		lastRank, lastEnergy = r, captured
		var err error
		if next, err = k.nextBlock(ctx); err != nil {
			return err
		}
		if next == nil {
			return k.finish(ctx, r, sigma, true)
		}
	}
}

// firstBlock is a random orthonormal block, as wide as suits the rank that will probably be asked for.
func (k *krylov) firstBlock() []float64 {
	k.width = 8
	switch hint := k.rule.Hint(); {
	case hint > 32:
		k.width = 32
	case hint > 8:
		k.width = 16
	}
	k.rng = rand.New(rand.NewPCG(k.options.Seed, 0x6c6f7261))
	return k.randomBlock()
}

// randomBlock is a random orthonormal block, orthogonal to the basis.
func (k *krylov) randomBlock() []float64 {
	b := min(k.width, k.n-k.q)
	z := make([]float64, k.n*b)
	for i := range z {
		z[i] = k.rng.NormFloat64()
	}
	z, _ = k.orthonormalise(z, b, 0)
	return z
}

// extend adds a block to the basis, multiplies it by Δ, and solves the projected problem.
func (k *krylov) extend(ctx context.Context, v []float64) error {
	b := len(v) / k.n
	next := block{v: v, y: make([]float32, k.m*b), b: b, q: k.q}
	x := make([]float32, len(v))
	for i, e := range v {
		x[i] = float32(e)
	}
	if err := k.op.Mul(ctx, next.y, x, b); err != nil {
		return err
	}
	k.count(b)
	k.basis = append(k.basis, next)

	old, q := k.q, k.q+b
	gram := make([]float64, q*q)
	for i := range old {
		copy(gram[i*q:], k.gram[i*old:(i+1)*old])
	}
	for i := range k.basis {
		other := &k.basis[i]
		c, err := gramOf(ctx, k.options.Workers, k.m, other.y, other.b, next.y, b)
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
	var err error
	k.values, k.vecs, err = symmetricEigen(gram, q)
	return err
}

func (k *krylov) count(b int) {
	k.out.Products++
	k.out.Flops += 2 * int64(k.m) * int64(k.n) * int64(b)
}

// nextBlock is the orthonormal part of Δᵀ·Y that the basis does not have; nil if the basis holds all of Δ but rounding.
func (k *krylov) nextBlock(ctx context.Context) ([]float64, error) {
	last := &k.basis[len(k.basis)-1]
	z32 := make([]float32, k.n*last.b)
	if err := k.op.MulT(ctx, z32, last.y, last.b); err != nil {
		return nil, err
	}
	k.count(last.b)
	z := make([]float64, len(z32))
	for i, e := range z32 {
		z[i] = float64(e)
	}
	// What rounding in float32 alone can leave: u·σ₁·‖Y‖ per column.
	var yNorm float64
	for _, e := range last.y {
		yNorm += float64(e) * float64(e)
	}
	noise := 0x1p-24 * math.Sqrt(max(k.values[0], 0)*yNorm/float64(last.b))
	if z, b := k.orthonormalise(z, last.b, noise); b > 0 {
		return z, nil
	}
	// The basis is invariant. From b columns it can hold no more than b vectors for one singular value, however often that
	// occurs, so what energy is left is looked for from a new start.
	if k.energy-sumSquares(roots(k.values)) <= 1e-10*k.energy {
		return nil, nil
	}
	return k.randomBlock(), nil
}

// orthonormalise makes the columns of z (n×b) orthogonal to the basis and to each other, twice, and drops the directions in
// which they are not longer than noise. At most as many columns remain as the space has left.
func (k *krylov) orthonormalise(z []float64, b int, noise float64) ([]float64, int) {
	for pass := range 2 {
		for i := range k.basis {
			project(k.n, z, b, k.basis[i].v, k.basis[i].b)
		}
		g := make([]float64, b*b)
		for i := range k.n {
			row := z[i*b : (i+1)*b]
			for s, x := range row {
				for t := s; t < b; t++ {
					g[s*b+t] += x * row[t]
				}
			}
		}
		for s := range b {
			for t := range s {
				g[s*b+t] = g[t*b+s]
			}
		}
		values, vectors, err := symmetricEigen(g, b)
		if err != nil {
			return nil, 0
		}
		keep := 0
		floor := math.Max(noise*noise, 1e-28*values[0])
		if pass == 1 {
			floor = 0.25 // the columns are nearly orthonormal already
		}
		for keep < min(b, k.n-k.q) && values[keep] > floor {
			keep++
		}
		if keep == 0 {
			return nil, 0
		}
		out := make([]float64, k.n*keep)
		for i := range k.n {
			row := z[i*b : (i+1)*b]
			for t := range keep {
				var sum float64
				for s, x := range row {
					sum += x * vectors[s*b+t]
				}
				out[i*keep+t] = sum / math.Sqrt(values[t])
			}
		}
		z, b = out, keep
	}
	return z, b
}

// project subtracts from z (n×b) its part in the span of v (n×c).
func project(n int, z []float64, b int, v []float64, c int) {
	coeff := make([]float64, c*b)
	for i := range n {
		zi := z[i*b : (i+1)*b]
		for s, x := range v[i*c : (i+1)*c] {
			row := coeff[s*b : (s+1)*b]
			for t, y := range zi {
				row[t] += x * y
			}
		}
	}
	for i := range n {
		zi := z[i*b : (i+1)*b]
		for s, x := range v[i*c : (i+1)*c] {
			row := coeff[s*b : (s+1)*b]
			for t := range zi {
				zi[t] -= x * row[t]
			}
		}
	}
}

// gramOf is XᵀY for X (m×a) and Y (m×b), summed in float64 in a fixed order.
func gramOf(ctx context.Context, workers, m int, x []float32, a int, y []float32, b int) ([]float64, error) {
	const rows = 2048
	parts := make([][]float64, blocks(m, rows))
	err := parallel.For(ctx, workers, len(parts), func(_, i int) error {
		g := make([]float64, a*b)
		for r := i * rows; r < min((i+1)*rows, m); r++ {
			yr := y[r*b : (r+1)*b]
			for s, v := range x[r*a : (r+1)*a] {
				row := g[s*b : (s+1)*b]
				for t, w := range yr {
					row[t] += float64(v) * float64(w)
				}
			}
		}
		parts[i] = g
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

// finish forms the first r singular triplets.
func (k *krylov) finish(ctx context.Context, r int, sigma []float64, complete bool) error {
	d := k.out
	d.K, d.Complete = r, complete
	d.S, d.Estimates = sigma[:r:r], sigma
	d.Error = norm(k.energy - sumSquares(d.S))
	d.U, d.V = make([]float32, k.m*r), make([]float32, k.n*r)
	combine := func(dst []float32, rows int, at func(b *block, i, s int) float64, scale func(t int) float64) error {
		const step = 512
		return parallel.For(ctx, k.options.Workers, blocks(rows, step), func(_, part int) error {
			sum := make([]float64, r)
			for i := part * step; i < min((part+1)*step, rows); i++ {
				clear(sum)
				for j := range k.basis {
					b := &k.basis[j]
					for s := range b.b {
						x := at(b, i, s)
						row := k.vecs[(b.q+s)*k.q:][:r]
						for t, w := range row {
							sum[t] += x * w
						}
					}
				}
				for t := range sum {
					dst[i*r+t] = float32(sum[t] * scale(t))
				}
			}
			return nil
		})
	}
	err := combine(d.V, k.n, func(b *block, i, s int) float64 { return b.v[i*b.b+s] }, func(int) float64 { return 1 })
	if err != nil {
		return err
	}
	return combine(d.U, k.m, func(b *block, i, s int) float64 { return float64(b.y[i*b.b+s]) }, func(t int) float64 {
		if sigma[t] == 0 {
			return 0
		}
		return 1 / sigma[t]
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
	k := d.K
	if k == 0 {
		return nil, nil
	}
	m, n := len(d.U)/k, len(d.V)/k
	b, a = make([]float32, m*k), make([]float32, k*n)
	for t := range k {
		root := math.Sqrt(d.S[t])
		for i := range m {
			b[i*k+t] = float32(float64(d.U[i*k+t]) * root)
		}
		for j := range n {
			a[t*n+j] = float32(float64(d.V[j*k+t]) * root)
		}
	}
	return b, a
}
