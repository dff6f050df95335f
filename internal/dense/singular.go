package dense

import (
	"context"
	"errors"
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"
)

var errNoSingular = errors.New("the singular values of a small matrix did not converge")

// SingularValues returns the singular values of an m×n matrix, descending. It may overwrite a.
func SingularValues(ctx context.Context, a []float64, m, n int) ([]float64, error) {
	switch {
	case m == 0 || n == 0:
		return nil, nil
	case m < n:
		return SingularValues(ctx, Flip(a, m, n), n, m)
	case n <= atOnce:
		var svd mat.SVD
		if !svd.Factorize(mat.NewDense(m, n, a), mat.SVDNone) {
			return nil, errNoSingular
		}
		return svd.Values(nil), nil
	}
	d, e, _, err := bidiagonalise(ctx, a, m, n)
	if err != nil {
		return nil, err
	}
	if !lap.Dbdsqr(blas.Upper, n, 0, 0, 0, d, e, nil, 1, nil, 1, nil, 1, make([]float64, 4*n)) {
		return nil, errNoSingular
	}
	return d, nil
}

// LeftVectors returns the singular values of an m×n matrix, m ≤ n, descending, and the left
// singular vectors as columns. It may overwrite a. The vectors of singular values that are zero
// but for rounding need not be orthonormal.
func LeftVectors(
	ctx context.Context, a []float64, m, n int,
) (values, vectors []float64, err error) {
	if m > n {
		panic("dense: more rows than columns")
	}
	if m <= atOnce && m*n <= atOnce*atOnce {
		var svd mat.SVD
		if !svd.Factorize(mat.NewDense(m, n, a), mat.SVDThinU) {
			return nil, nil, errNoSingular
		}
		var u mat.Dense
		svd.UTo(&u)
		return svd.Values(nil), u.RawMatrix().Data, nil
	}
	// With Aᵀ = Q·R, the left vectors of A are the right vectors of R.
	r, err := Triangle(ctx, Flip(a, m, n), n, m)
	if err != nil {
		return nil, nil, err
	}
	if m <= atOnce {
		return LeftVectors(ctx, Flip(r, m, m), m, m)
	}
	return rightVectors(ctx, r, m)
}

// rightVectors returns the singular values and right singular vectors of an n×n matrix. The
// symmetric tridiagonal matrix of Golub and Kahan, with a diagonal of zeros and the elements of the
// bidiagonal B in turn beside it, has the eigenvalues ±σ; the even elements of its eigenvectors
// are the right vectors of B, divided by √2.
func rightVectors(
	ctx context.Context, a []float64, n int,
) (values, vectors []float64, err error) {
	d, e, tau, err := bidiagonalise(ctx, a, n, n)
	if err != nil {
		return nil, nil, err
	}
	p, err := reflected(ctx, Flip(a, n, n), tau, n)
	if err != nil {
		return nil, nil, err
	}
	beside := make([]float64, 0, 2*n)
	z := make([][]float64, 0, 2*n)
	for i, row := range split(Flip(p, n, n), n) {
		beside = append(beside, d[i], e[i])
		z = append(z, row, make([]float64, n))
	}
	values, rows, err := diagonalise(ctx, make([]float64, 2*n), beside[:2*n-1], z)
	if err != nil {
		return nil, nil, err
	}
	for j, row := range rows[:n] {
		for i, x := range row {
			p[i*n+j] = math.Sqrt2 * x
		}
	}
	return values[:n], p, nil
}

// bidiagonalise reduces an m×n matrix, m ≥ n, to the diagonal d and the superdiagonal e of
// Qᵀ·A·P, as Dgebrd does. It leaves the reflectors of P right of the superdiagonal, and returns
// their factors in tau. The last element of e is spare.
func bidiagonalise(
	ctx context.Context, a []float64, m, n int,
) (d, e, tau []float64, err error) {
	d, e, tau = make([]float64, n), make([]float64, n), make([]float64, n)
	tauQ := make([]float64, n)
	x, y := make([]float64, m*panel), make([]float64, n*panel)
	i := 0
	for ; n-i > atOnce; i += panel {
		if err := ctx.Err(); err != nil {
			return nil, nil, nil, err
		}
		lap.Dlabrd(m-i, n-i, panel, a[i*n+i:], n, d[i:], e[i:], tauQ[i:], tau[i:], x, panel, y,
			panel)
		k := i + panel
		rest := blas64.General{Rows: m - k, Cols: n - k, Stride: n, Data: a[k*n+k:]}
		part := func(data []float64, rows, stride int) blas64.General {
			return blas64.General{Rows: rows, Cols: panel, Stride: stride, Data: data}
		}
		blas64.Gemm(blas.NoTrans, blas.Trans, -1, part(a[k*n+i:], m-k, n),
			part(y[panel*panel:], n-k, panel), 1, rest)
		u := blas64.General{Rows: panel, Cols: n - k, Stride: n, Data: a[i*n+k:]}
		blas64.Gemm(blas.NoTrans, blas.NoTrans, -1, part(x[panel*panel:], m-k, panel), u, 1, rest)
	}
	lap.Dgebd2(m-i, n-i, a[i*n+i:], n, d[i:], e[i:], tauQ[i:], tau[i:], make([]float64, m))
	return d, e, tau, nil
}
