// Package dense factorizes and multiplies matrices in float64 that have at least one side of a few
// ranks. It alone uses gonum. All matrices are row-major.
//
// A gonum call cannot be interrupted, and one on a matrix of some thousand rows takes minutes. So
// large factorizations go panel by panel, at most about a second each, and ask the context in
// between.
package dense

import (
	"errors"

	lapacked "gonum.org/v1/gonum/lapack/gonum"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
)

// panel is the number of columns of a panel.
const panel = 8

// atOnce is the largest side for a single call of gonum. Tests lower it.
var atOnce = 512

var errNoConvergence = errors.New("the eigenvalues of a symmetric matrix did not converge")

// lap provides the parts of LAPACK's blocked factorizations.
var lap lapacked.Implementation

// AddTransposedProduct adds XᵀY to dst (a×b), for X (rows×a) and Y (rows×b).
func AddTransposedProduct(dst, x, y []float64, rows, a, b int) {
	blas64.Gemm(blas.Trans, blas.NoTrans, 1, general(x, rows, a), general(y, rows, b), 1,
		general(dst, a, b))
}

// AddProduct adds X·C to dst (rows×b), for X (rows×a) and C (a×b).
func AddProduct(dst, x, c []float64, rows, a, b int) {
	blas64.Gemm(blas.NoTrans, blas.NoTrans, 1, general(x, rows, a), general(c, a, b), 1,
		general(dst, rows, b))
}

// AddProductTransposed adds X·Yᵀ to dst (a×b), for X (a×c) and Y (b×c).
func AddProductTransposed(dst, x, y []float64, a, b, c int) {
	blas64.Gemm(blas.NoTrans, blas.Trans, 1, general(x, a, c), general(y, b, c), 1,
		general(dst, a, b))
}

// SubtractProduct subtracts X·C from dst (rows×b), for X (rows×a) and C (a×b).
func SubtractProduct(dst, x, c []float64, rows, a, b int) {
	blas64.Gemm(blas.NoTrans, blas.NoTrans, -1, general(x, rows, a), general(c, a, b), 1,
		general(dst, rows, b))
}

func general(data []float64, rows, cols int) blas64.General {
	return blas64.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}

// Dot returns the inner product of two vectors.
func Dot(x, y []float64) float64 { return blas64.Dot(vector(x), vector(y)) }

// AddScaled adds f·x to dst.
func AddScaled(dst []float64, f float64, x []float64) { blas64.Axpy(f, vector(x), vector(dst)) }

// Norm returns the Euclidean norm of a vector.
func Norm(x []float64) float64 { return blas64.Nrm2(vector(x)) }

func vector(x []float64) blas64.Vector { return blas64.Vector{N: len(x), Inc: 1, Data: x} }

// Flip returns the transpose of a rows×cols matrix.
func Flip[T float32 | float64](x []T, rows, cols int) []T {
	y := make([]T, len(x))
	for i := range rows {
		for j := range cols {
			y[j*rows+i] = x[i*cols+j]
		}
	}
	return y
}
