package thin

import (
	"context"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/dense"
)

// SingularValues returns the min(M, N, R) singular values of B·Aᵀ, descending; those of Δ are
// 2^Exponent times as large. The matrix must be balanced. SingularValues may overwrite its factors.
func (x *Matrix) SingularValues(ctx context.Context) ([]float64, error) {
	c, err := x.core(ctx)
	if err != nil {
		return nil, err
	}
	return dense.SingularValues(ctx, c.values, c.rows, c.cols)
}

// Decomposition is the singular value decomposition of a matrix, Δ = 2^Exponent·U·Σ·Vᵀ.
type Decomposition struct {
	Sigma    []float64 // min(M, N, R) values, descending
	Exponent int

	matrix *Matrix
	left   []float64 // a basis of B's columns, M×p
	by     []float64 // U = left·by, p×p
	cols   int       // of by
	turned []float64 // V·Σ = A·turned, R×p
}

// Decompose decomposes a balanced matrix. The result refers to its factors, which stay as they are.
func (x *Matrix) Decompose(ctx context.Context) (*Decomposition, error) {
	c, err := x.coreAndBasis(ctx)
	if err != nil {
		return nil, err
	}
	d := &Decomposition{Exponent: x.Exponent, matrix: x, cols: c.rows}
	wide := c.values
	if c.cols < c.rows {
		wide = make([]float64, c.rows*c.rows) // more columns, of zeros
		for i := range c.rows {
			copy(wide[i*c.rows:], c.values[i*c.cols:(i+1)*c.cols])
		}
	}
	sigma, u, err := dense.LeftVectors(ctx, wide, c.rows, max(c.rows, c.cols))
	if err != nil {
		return nil, err
	}
	d.Sigma = sigma[:min(x.M, x.N, x.R)]
	d.turned = make([]float64, x.R*c.rows)
	dense.AddTransposedProduct(d.turned, c.triangleB, u, c.rows, x.R, c.rows)
	if d.left, d.by = c.basisB, u; d.left == nil {
		d.left = x.B
		dense.SolveUpper(c.triangleB, u, x.R, c.rows)
	}
	return d, nil
}

// Factors returns the best approximation of rank k, at most len(Sigma), as factors B (M×k) and A
// (N×k), with √Σ in each: Δ_k = 2^Exponent·B·Aᵀ (Eckart and Young, 1936). Columns of singular
// values that are zero are zero.
func (d *Decomposition) Factors(ctx context.Context, k int) (*Matrix, error) {
	return d.scaled(ctx, k, func(sigma float64) (float64, float64) {
		root := math.Sqrt(sigma)
		return root, 1 / root
	})
}

// Vectors returns the first k singular vectors as the columns of B (M×k) and A (N×k) of a matrix.
func (d *Decomposition) Vectors(ctx context.Context, k int) (*Matrix, error) {
	return d.scaled(ctx, k, func(sigma float64) (float64, float64) { return 1, 1 / sigma })
}

// scaled returns the first k columns of U and V·Σ, multiplied by what by says for each singular
// value.
func (d *Decomposition) scaled(
	ctx context.Context, k int, by func(sigma float64) (u, v float64),
) (*Matrix, error) {
	x := d.matrix
	s := &Matrix{M: x.M, N: x.N, R: k, Exponent: d.Exponent}
	p := len(d.left) / max(1, x.M)
	toB, toA := make([]float64, p*k), make([]float64, x.R*k)
	for j := range k {
		if d.Sigma[j] <= 0 {
			break
		}
		u, v := by(d.Sigma[j])
		for i := range p {
			toB[i*k+j] = u * d.by[i*d.cols+j]
		}
		for i := range x.R {
			toA[i*k+j] = v * d.turned[i*d.cols+j]
		}
	}
	var err error
	if s.B, err = product(ctx, d.left, toB, x.M, p, k); err != nil {
		return nil, err
	}
	s.A, err = product(ctx, x.A, toA, x.N, x.R, k)
	return s, err
}

// product returns X·Y, for X (rows×a) and Y (a×b).
func product(ctx context.Context, x, y []float64, rows, a, b int) ([]float64, error) {
	z := make([]float64, rows*b)
	if a == 0 || b == 0 {
		return z, nil
	}
	step := max(1, pieceFlops/max(1, a*b))
	for i := 0; i < rows; i += step {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		k := min(step, rows-i)
		dense.AddProduct(z[i*b:(i+k)*b], x[i*a:(i+k)*a], y, k, a, b)
	}
	return z, nil
}

// core is a matrix of at most R×R with the singular values of B·Aᵀ: the product of two triangles
// R_b·R_aᵀ, with B = Q_b·R_b and A = Q_a·R_a.
type core struct {
	values     []float64 // rows×cols
	rows, cols int

	triangleB []float64 // rows×R
	basisB    []float64 // Q_b, M×rows; nil if it is B·R_b⁻¹
}

// core computes a core, and may overwrite the factors.
//
// If both Gram matrices are well conditioned, the triangles are their Cholesky factors, BᵀB =
// R_bᵀ·R_b. The products of float32 values are exact in float64, so an eigenvalue of a Gram matrix
// has an absolute error of a few units of λ₁·2⁻⁵³, and its root a relative one of 2⁻⁵³·λ₁/λ: below
// 1e-6 for a condition λ₁/λ below gramLimit. Otherwise Householder's decomposition makes the
// triangles. This costs several times more but does not square the condition.
func (x *Matrix) core(ctx context.Context) (*core, error) {
	c, err := x.gramCore(ctx)
	if c != nil || err != nil {
		return c, err
	}
	return x.householderCore(ctx)
}

// coreAndBasis computes a core with the basis of B, and leaves the factors as they are.
func (x *Matrix) coreAndBasis(ctx context.Context) (*core, error) {
	c, err := x.gramCore(ctx)
	if c != nil || err != nil {
		return c, err
	}
	c = new(core)
	if c.basisB, c.triangleB, c.rows, err = basis(ctx, x.B, x.M, x.R); err != nil {
		return nil, err
	}
	triangleA, rowsA, err := householder(ctx, slices.Clone(x.A), x.N, x.R)
	if err != nil {
		return nil, err
	}
	return c, c.multiply(ctx, triangleA, rowsA, x.R)
}

// gramCore returns nil if a Gram matrix is ill-conditioned.
func (x *Matrix) gramCore(ctx context.Context) (*core, error) {
	if min(x.M, x.N) < x.R {
		return nil, nil
	}
	if err := x.grams(ctx); err != nil {
		return nil, err
	}
	rb, ok, err := root(ctx, x.gramB, x.R)
	if !ok || err != nil {
		return nil, err
	}
	ra, ok, err := root(ctx, x.gramA, x.R)
	if !ok || err != nil {
		return nil, err
	}
	c := &core{triangleB: rb, rows: x.R}
	return c, c.multiply(ctx, ra, x.R, x.R)
}

func (x *Matrix) householderCore(ctx context.Context) (c *core, err error) {
	c = new(core)
	if c.triangleB, c.rows, err = householder(ctx, x.B, x.M, x.R); err != nil {
		return nil, err
	}
	triangleA, rowsA, err := householder(ctx, x.A, x.N, x.R)
	if err != nil {
		return nil, err
	}
	return c, c.multiply(ctx, triangleA, rowsA, x.R)
}

// multiply computes the core from its triangles.
func (c *core) multiply(ctx context.Context, triangleA []float64, rowsA, r int) error {
	c.cols = rowsA
	c.values = make([]float64, c.rows*c.cols)
	step := max(1, pieceFlops/max(1, c.cols*r))
	for i := 0; i < c.rows && c.cols > 0; i += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(step, c.rows-i)
		dense.AddProductTransposed(c.values[i*c.cols:(i+k)*c.cols], c.triangleB[i*r:(i+k)*r], triangleA, k, c.cols, r)
	}
	return nil
}

// gramLimit is the largest condition of a Gram matrix for Cholesky factors.
const gramLimit = 1e9

// root returns the Cholesky factor (r×r) of a Gram matrix. ok is false if it does not exist or
// would be inaccurate.
func root(ctx context.Context, gram []float64, r int) (factor []float64, ok bool, err error) {
	factor, condition, err := dense.Cholesky(ctx, slices.Clone(gram), r)
	return factor, err == nil && condition < gramLimit, err
}

// householder returns the triangle of x (rows×r), or x itself if it has fewer rows than columns.
func householder(ctx context.Context, x []float64, rows, r int) ([]float64, int, error) {
	if rows < r {
		return x, rows, nil
	}
	t, err := dense.Triangle(ctx, x, rows, r)
	return t, r, err
}

// basis returns Q (rows×p) and R (p×r) with X = Q·R, for X (rows×r) and p the smaller side.
func basis(ctx context.Context, x []float64, rows, r int) (q, t []float64, p int, err error) {
	if rows < r {
		q = make([]float64, rows*rows)
		for i := range rows {
			q[i*rows+i] = 1
		}
		return q, slices.Clone(x), rows, nil
	}
	q, t, err = dense.Orthogonal(ctx, slices.Clone(x), rows, r)
	return q, t, r, err
}
