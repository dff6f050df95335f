package dense

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack"
)

// Triangle returns the upper triangular factor R (r×r) of the QR decomposition of an m×r matrix, m
// ≥ r, and overwrites the matrix.
func Triangle(ctx context.Context, a []float64, m, r int) ([]float64, error) {
	if _, err := reflect(ctx, a, m, r); err != nil {
		return nil, err
	}
	return upper(a, r), nil
}

// Orthogonal returns the QR decomposition of an m×r matrix, m ≥ r: Q (m×r), with orthonormal
// columns, and the upper triangular R (r×r). It overwrites the matrix.
func Orthogonal(ctx context.Context, a []float64, m, r int) (q, triangle []float64, err error) {
	tau, err := reflect(ctx, a, m, r)
	if err != nil {
		return nil, nil, err
	}
	q = make([]float64, m*r)
	for i := range r {
		q[i*r+i] = 1
	}
	t, work := make([]float64, panel*panel), make([]float64, max(r, panel)*panel)
	for i := (r - 1) / panel * panel; i >= 0; i -= panel {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		b, v := min(panel, r-i), a[i*r+i:]
		lap.Dlarft(lapack.Forward, lapack.ColumnWise, m-i, b, v, r, tau[i:], t, panel)
		lap.Dlarfb(blas.Left, blas.NoTrans, lapack.Forward, lapack.ColumnWise, m-i, r-i, b, v, r,
			t, panel, q[i*r+i:], r, work, panel)
	}
	return q, upper(a, r), nil
}

// reflect reduces an m×r matrix, m ≥ r, to R, panel by panel. It leaves the reflectors of Q below
// the diagonal, and returns their factors.
func reflect(ctx context.Context, a []float64, m, r int) (tau []float64, err error) {
	tau, t, work := make([]float64, r), make([]float64, panel*panel),
		make([]float64, max(r, panel)*panel)
	for i := 0; i < r; i += panel {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := min(panel, r-i)
		v := a[i*r+i:]
		lap.Dgeqr2(m-i, b, v, r, tau[i:i+b], work)
		if rest := r - i - b; rest > 0 {
			lap.Dlarft(lapack.Forward, lapack.ColumnWise, m-i, b, v, r, tau[i:], t, panel)
			lap.Dlarfb(blas.Left, blas.Trans, lapack.Forward, lapack.ColumnWise, m-i, rest, b, v, r,
				t, panel, a[i*r+i+b:], r, work, panel)
		}
	}
	return tau, nil
}

// upper returns the upper triangle of the first r rows of a matrix with r columns.
func upper(a []float64, r int) []float64 {
	out := make([]float64, r*r)
	for i := range r {
		copy(out[i*r+i:], a[i*r+i:(i+1)*r])
	}
	return out
}

// SolveUpper replaces X (r×cols) by R⁻¹·X, for an upper triangular R (r×r).
func SolveUpper(triangle, x []float64, r, cols int) {
	blas64.Trsm(blas.Left, blas.NoTrans, 1,
		blas64.Triangular{Uplo: blas.Upper, Diag: blas.NonUnit, N: r, Stride: r, Data: triangle},
		general(x, r, cols))
}

// Cholesky returns the upper triangular R with RᵀR = G for a symmetric n×n matrix, and an estimate
// of G's condition, the ratio of its largest to its smallest eigenvalue. If G is not positive
// definite, it returns no R and infinity. It overwrites g.
func Cholesky(ctx context.Context, g []float64, n int) (r []float64, condition float64, err error) {
	const width = 2 * panel
	work := make([]float64, 3*n)
	size := lap.Dlansy(lapack.MaxColumnSum, blas.Upper, n, g, n, work)
	for i := 0; i < n; i += width {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		b := min(width, n-i)
		if !lap.Dpotf2(blas.Upper, b, g[i*n+i:], n) {
			return nil, math.Inf(1), nil
		}
		rest := n - i - b
		if rest == 0 {
			break
		}
		above := blas64.General{Rows: b, Cols: rest, Stride: n, Data: g[i*n+i+b:]}
		blas64.Trsm(blas.Left, blas.Trans, 1,
			blas64.Triangular{Uplo: blas.Upper, Diag: blas.NonUnit, N: b, Stride: n,
				Data: g[i*n+i:]}, above)
		// Update the whole rest, not just its upper Triangle: a product of full matrices is faster.
		blas64.Gemm(blas.Trans, blas.NoTrans, -1, above, above, 1,
			blas64.General{Rows: rest, Cols: rest, Stride: n, Data: g[(i+b)*n+i+b:]})
	}
	reciprocal := lap.Dpocon(blas.Upper, n, g, n, size, work, make([]int, n))
	for i := range n {
		clear(g[i*n : i*n+i])
	}
	return g, 1 / reciprocal, nil
}
