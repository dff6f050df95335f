package rank

import (
	"errors"
	"slices"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"
)

// This file is the only one that uses gonum: for matrices whose sides, or one of them, are a few ranks long.

var errNoConvergence = errors.New("the eigenvalues of a symmetric matrix did not converge")

// symmetricEigen returns the eigenvalues of a symmetric n×n matrix, descending, and the eigenvectors as columns of a row-major
// matrix.
func symmetricEigen(g []float64, n int) (values, vectors []float64, err error) {
	var e mat.EigenSym
	if !e.Factorize(mat.NewSymDense(n, g), true) {
		return nil, nil, errNoConvergence
	}
	up := e.Values(nil)
	var v mat.Dense
	e.VectorsTo(&v)
	values, vectors = make([]float64, n), make([]float64, n*n)
	for j := range n {
		values[j] = up[n-1-j]
		for i := range n {
			vectors[i*n+j] = v.At(i, n-1-j)
		}
	}
	return values, vectors, nil
}

// symmetricValues returns the eigenvalues of a symmetric n×n matrix, descending, for a fraction of what the vectors cost.
func symmetricValues(g []float64, n int) ([]float64, error) {
	var e mat.EigenSym
	if !e.Factorize(mat.NewSymDense(n, append([]float64(nil), g...)), false) {
		return nil, errNoConvergence
	}
	values := e.Values(nil)
	slices.Reverse(values)
	return values, nil
}

// singularValues returns the singular values of an m×n matrix, descending.
func singularValues(a []float64, m, n int) ([]float64, error) {
	var svd mat.SVD
	if !svd.Factorize(mat.NewDense(m, n, a), mat.SVDNone) {
		return nil, errors.New("the singular values of a small matrix did not converge")
	}
	return svd.Values(nil), nil
}

// triangle returns the upper triangular factor R (r×r) of the QR decomposition of an m×r matrix, m ≥ r.
func triangle(a []float64, m, r int) []float64 {
	var qr mat.QR
	qr.Factorize(mat.NewDense(m, r, a))
	var t mat.Dense
	qr.RTo(&t)
	out := make([]float64, r*r)
	for i := range r {
		for j := i; j < r; j++ {
			out[i*r+j] = t.At(i, j)
		}
	}
	return out
}

// addTransposedProduct adds XᵀY to dst (a×b), for X (rows×a) and Y (rows×b).
func addTransposedProduct(dst, x, y []float64, rows, a, b int) {
	blas64.Gemm(blas.Trans, blas.NoTrans, 1, general(x, rows, a), general(y, rows, b), 1, general(dst, a, b))
}

// subtractProduct subtracts X·C from dst (rows×b), for X (rows×a) and C (a×b).
func subtractProduct(dst, x, c []float64, rows, a, b int) {
	blas64.Gemm(blas.NoTrans, blas.NoTrans, -1, general(x, rows, a), general(c, a, b), 1, general(dst, rows, b))
}

func general(data []float64, rows, cols int) blas64.General {
	return blas64.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}
