package report

import (
	"context"
	"math"
	"math/rand/v2"

	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/krylov"
	"github.com/loratool/loratool/internal/thin"
)

const (
	// intruderCount is the number of singular vectors of W + ΔW that can be intruders.
	intruderCount = 10
	// intruderCosine is the cosine below which a singular vector resembles none of W.
	intruderCosine = 0.5
	// decomposedSide is the largest short side of a W that is decomposed.
	decomposedSide = 256
)

// intruders counts the intruder dimensions of arXiv:2410.21228: among the first left singular
// vectors of W + ΔW those whose cosine with every left singular vector of W is below ½.
//
// A small W is decomposed, and the count is exact. The vectors of a large one are not computed. The
// first vectors of W + ΔW come from a Krylov space, with a residual of 10⁻⁵ of the largest singular
// value. For each of them bounds on its cosines with all vectors of W decide (see likeness), which
// is exact but for three things: vectors of W whose squared singular values differ by less than
// 10⁻⁵ of their mean count as one; where W has more rows than columns, vectors of singular values
// below a twentieth of their root mean square are left out; and a vector for which the bounds do
// not decide within 400 products is counted by estimates. estimated is the number of these.
func intruders(ctx context.Context, w []float32, m, n int, delta *thin.Matrix) (count, estimated int, err error) {
	if min(m, n) <= decomposedSide {
		count, err = intrudersOfSmall(ctx, w, m, n, delta)
		return count, 0, err
	}
	return intrudersOfLarge(ctx, &krylov.Float32{M: m, N: n, Data: w, Workers: 1}, delta)
}

const (
	// leadingResidual is the residual of the vectors of W + ΔW, relative to its largest singular
	// value.
	leadingResidual = 1e-5
	// leadingBlock is the number of vectors of a block of their Krylov space.
	leadingBlock = intruderCount + 6
	// likenessSteps is the most products with WWᵀ for one vector, and likenessEvery the number of
	// them between two looks at the bounds.
	likenessSteps, likenessEvery = 400, 8
	// sameSquares is the difference of squared singular values that counts as none, and leastSquare
	// the least one whose vector counts where W has more rows than columns, both relative to their
	// mean.
	sameSquares, leastSquare = 1e-5, 0.05 * 0.05
)

// intrudersOfLarge is intruders without a decomposition.
func intrudersOfLarge(
	ctx context.Context, w *krylov.Float32, delta *thin.Matrix,
) (count, estimated int, err error) {
	energy := 0.0
	for _, x := range w.Data {
		energy += float64(x) * float64(x)
	}
	leading, err := leadingVectors(ctx, &updated{w, delta}, energy)
	if err != nil || energy == 0 { // a W of zeros has no vectors of its own
		return len(leading), 0, err
	}
	mean := energy / float64(min(w.M, w.N))
	least := -1.0
	if w.M > w.N {
		least = leastSquare * mean
	}
	var open []*likeness
	for _, y := range leading {
		open = append(open, &likeness{basis: krylov.Basis{Dim: w.M, Vectors: [][]float64{y}, Workers: 1}})
	}
	for step := 1; len(open) > 0; step++ {
		if err := growAll(ctx, w, open); err != nil {
			return 0, 0, err
		}
		var rest []*likeness
		for _, l := range open {
			if step%likenessEvery > 0 && !l.isClosed && step < likenessSteps {
				rest = append(rest, l)
				continue
			}
			isIntruder, isCertain, err := l.decide(ctx, sameSquares*mean, least)
			switch {
			case err != nil:
				return 0, 0, err
			case !isCertain && step < likenessSteps && !l.isClosed:
				rest = append(rest, l)
				continue
			case !isCertain:
				estimated++
			}
			if isIntruder {
				count++
			}
		}
		open = rest
	}
	return count, estimated, nil
}

// leadingVectors returns the first left singular vectors of W + ΔW. energy is ‖W‖².
func leadingVectors(ctx context.Context, a *updated, energy float64) (all [][]float64, err error) {
	added, err := a.addedEnergy(ctx)
	if err != nil {
		return nil, err
	}
	s := krylov.New(a, krylov.Double, krylov.Options{
		Energy: energy + added, Width: leadingBlock, Random: rand.New(rand.NewPCG(1, 2)), Workers: 1,
	})
	for !s.Closed {
		if err := s.Grow(ctx); err != nil {
			return nil, err
		}
		residual, largest, err := s.Residual(ctx, intruderCount)
		if err != nil {
			return nil, err
		}
		if residual <= leadingResidual*largest {
			break
		}
	}
	u, err := s.Left(ctx, intruderCount)
	if err != nil {
		return nil, err
	}
	m, _ := a.Dims()
	columns := dense.Flip(u, m, intruderCount)
	for i := range intruderCount {
		if y := columns[i*m : (i+1)*m]; dense.Norm(y) > 0.5 { // a value that is 0 may have no vector
			all = append(all, y)
		}
	}
	return all, nil
}

// likeness is the Lanczos process of WWᵀ that begins with a unit vector y. It tells how y is made
// of the left singular vectors uᵢ of W.
//
// The shares ⟨uᵢ, y⟩² are the masses of a measure, at the places σᵢ². After k steps the process has
// its Gauss quadrature: nodes θ and weights w. By the inequalities of Chebyshev, Markov and
// Stieltjes (Szegő, Orthogonal Polynomials, theorem 3.41.1), the mass from a node to the next one,
// both included, is at most the sum of their weights. So no share is above the largest such sum. A
// node has settled if its residual is below a tolerance: WWᵀ has an eigenvector there, and the
// weight is its share.
type likeness struct {
	basis    krylov.Basis // orthonormal, with y as the first one
	diagonal []float64    // of the tridiagonal matrix of the process
	beside   []float64    // the elements beside it; the last one leads out of the basis
	isClosed bool         // the basis has all vectors of which y is made
}

// growAll makes a step of every process. They share the products with W.
func growAll(ctx context.Context, w *krylov.Float32, all []*likeness) error {
	newest := make([][]float64, len(all))
	for i, l := range all {
		newest[i] = l.basis.Vectors[l.basis.Size()-1]
	}
	images, err := w.MulT(ctx, newest)
	if err != nil {
		return err
	}
	images, err = w.Mul(ctx, images)
	if err != nil {
		return err
	}
	for i, l := range all {
		image := images[i]
		l.diagonal = append(l.diagonal, dense.Dot(newest[i], image))
		next := append([]float64(nil), image...)
		added, err := l.basis.Extend(ctx, [][]float64{next}, 0x1p-46*dense.Norm(image))
		if err != nil {
			return err
		}
		if added == 0 {
			l.beside, l.isClosed = append(l.beside, 0), true
			continue
		}
		l.beside = append(l.beside, dense.Dot(l.basis.Vectors[l.basis.Size()-1], image))
	}
	return nil
}

// decide reports whether y resembles no singular vector, and whether that is certain. Nodes have
// settled with a residual of at most same. Singular vectors count if the squares of their values
// are at least least.
func (l *likeness) decide(ctx context.Context, same, least float64) (isIntruder, isCertain bool, err error) {
	k := len(l.diagonal)
	t := make([]float64, k*k)
	for i, x := range l.diagonal {
		t[i*k+i] = x
		if i+1 < k {
			t[i*k+i+1], t[(i+1)*k+i] = l.beside[i], l.beside[i]
		}
	}
	nodes, vectors, err := dense.Eigen(ctx, t, k)
	if err != nil {
		return false, false, err
	}
	const enough = intruderCosine * intruderCosine
	isIntruder, isCertain = true, true
	before := 0.0 // the weight of the node before, if it has not settled
	for i, node := range nodes {
		weight := vectors[i] * vectors[i]
		isSettled := math.Abs(l.beside[k-1]*vectors[(k-1)*k+i]) <= same
		if weight >= enough && node >= least {
			if isIntruder = false; isSettled {
				return false, true, nil
			}
		}
		if isSettled {
			weight = 0 // all of it is at the node
		}
		isCertain = isCertain && before+weight < enough
		before = weight
	}
	return isIntruder, isCertain, nil
}

// updated is W + ΔW.
type updated struct {
	w     *krylov.Float32
	delta *thin.Matrix
}

// addedEnergy returns ‖W + ΔW‖² − ‖W‖² = ⟨ΔW, W + (W + ΔW)⟩.
func (a *updated) addedEnergy(ctx context.Context) (sum float64, err error) {
	columns := dense.Flip(a.delta.A, a.delta.N, a.delta.R)
	var right [][]float64
	for k := range a.delta.R {
		right = append(right, columns[k*a.delta.N:(k+1)*a.delta.N])
	}
	before, err := a.w.Mul(ctx, right)
	if err != nil {
		return 0, err
	}
	after, err := a.Mul(ctx, right)
	for i, b := range a.delta.B {
		sum += b * (before[i%a.delta.R][i/a.delta.R] + after[i%a.delta.R][i/a.delta.R])
	}
	return math.Ldexp(sum, a.delta.Exponent), err
}

// Dims implements krylov.Matrix.
func (a *updated) Dims() (m, n int) { return a.w.Dims() }

// Mul implements krylov.Matrix.
func (a *updated) Mul(ctx context.Context, xs [][]float64) ([][]float64, error) {
	ys, err := a.w.Mul(ctx, xs)
	a.add(ys, a.delta.B, a.delta.A, xs)
	return ys, err
}

// MulT implements krylov.Matrix.
func (a *updated) MulT(ctx context.Context, ys [][]float64) ([][]float64, error) {
	xs, err := a.w.MulT(ctx, ys)
	a.add(xs, a.delta.A, a.delta.B, ys)
	return xs, err
}

// add adds left·rightᵀ·x, with ΔW's exponent, to each of dst.
func (a *updated) add(dst [][]float64, left, right []float64, xs [][]float64) {
	r := a.delta.R
	for c, x := range xs {
		inner := make([]float64, r)
		dense.AddTransposedProduct(inner, right, x, len(x), r, 1)
		for k := range inner {
			inner[k] = math.Ldexp(inner[k], a.delta.Exponent)
		}
		dense.AddProduct(dst[c], left, inner, len(dst[c]), r, 1)
	}
}

// intrudersOfSmall is intruders by decompositions of W and of W + ΔW.
func intrudersOfSmall(ctx context.Context, narrow []float32, m, n int, delta *thin.Matrix) (int, error) {
	w := make([]float64, len(narrow))
	for i, x := range narrow {
		w[i] = float64(x)
	}
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
