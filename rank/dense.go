package rank

import (
	"errors"

	"gonum.org/v1/gonum/mat"
)

// This file is the only one that uses gonum: for matrices whose sides are a few ranks long.

// symmetricEigen returns the eigenvalues of a symmetric n×n matrix, descending, and the eigenvectors as columns of a row-major
// matrix.
func symmetricEigen(g []float64, n int) (values, vectors []float64, err error) {
	var e mat.EigenSym
	if !e.Factorize(mat.NewSymDense(n, g), true) {
		return nil, nil, errors.New("the eigenvalues of a symmetric matrix did not converge")
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
