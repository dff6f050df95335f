package rank

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack"
	lapacked "gonum.org/v1/gonum/lapack/gonum"
	"gonum.org/v1/gonum/mat"
)

// This file alone uses gonum, for matrices with at least one side of a few ranks. A gonum call
// cannot be interrupted, and one on a matrix of some thousand rows takes minutes. So above atOnce
// the factorizations go panel by panel, at most about a second each, and check the context in
// between.

var errNoConvergence = errors.New("the eigenvalues of a symmetric matrix did not converge")

const (
	atOnce = 512 // largest side for a single call of gonum
	panel  = 8   // columns of a panel
)

// lap provides the parts of LAPACK's blocked factorizations.
var lap lapacked.Implementation

// symmetricEigen returns the eigenvalues of a symmetric n×n matrix, descending, and the
// eigenvectors as columns of a row-major matrix.
func symmetricEigen(
	ctx context.Context, g []float64, n int,
) (values, vectors []float64, err error) {
	if n > atOnce {
		return interruptibleEigen(ctx, g, n)
	}
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

// symmetricValues returns the eigenvalues of a symmetric n×n matrix, descending. It is several
// times faster than symmetricEigen.
func symmetricValues(ctx context.Context, g []float64, n int) ([]float64, error) {
	g = slices.Clone(g)
	var values []float64
	if n > atOnce {
		d, e, _, err := tridiagonalise(ctx, g, n)
		if err != nil {
			return nil, err
		}
		if !lap.Dsterf(n, d, e) {
			return nil, errNoConvergence
		}
		values = d
	} else {
		var e mat.EigenSym
		if !e.Factorize(mat.NewSymDense(n, g), false) {
			return nil, errNoConvergence
		}
		values = e.Values(nil)
	}
	slices.Reverse(values)
	return values, nil
}

// tridiagonalise reduces a symmetric matrix to the diagonal d and the subdiagonal e of Qᵀ·G·Q. It
// reads and overwrites the lower triangle, leaves the reflectors of Q below the subdiagonal, and
// returns their factors in tau.
func tridiagonalise(ctx context.Context, g []float64, n int) (d, e, tau []float64, err error) {
	d, e, tau = make([]float64, n), make([]float64, n-1), make([]float64, n-1)
	w := make([]float64, n*panel)
	i := 0
	for ; n-i > atOnce; i += panel {
		if err := ctx.Err(); err != nil {
			return nil, nil, nil, err
		}
		lap.Dlatrd(blas.Lower, n-i, panel, g[i*n+i:], n, e[i:], tau[i:], w, panel)
		k := i + panel
		blas64.Implementation().Dsyr2k(blas.Lower, blas.NoTrans, n-k, panel, -1, g[k*n+i:], n,
			w[panel*panel:], panel, 1, g[k*n+k:], n)
		for j := i; j < k; j++ {
			g[(j+1)*n+j], d[j] = e[j], g[j*n+j]
		}
	}
	lap.Dsytd2(blas.Lower, n-i, g[i*n+i:], n, d[i:], e[i:], tau[i:])
	return d, e, tau, nil
}

// interruptibleEigen is symmetricEigen in pieces. It overwrites g.
func interruptibleEigen(
	ctx context.Context, g []float64, n int,
) (values, vectors []float64, err error) {
	d, e, tau, err := tridiagonalise(ctx, g, n)
	if err != nil {
		return nil, nil, err
	}
	q, err := reflected(ctx, g, tau, n)
	if err != nil {
		return nil, nil, err
	}
	// The rows of z become the eigenvectors, since rotations combine rows. QL steps converge when
	// the large elements come last, but a matrix of nearly low rank has them first here.
	z := flip(q, n, n)
	if math.Abs(d[0]) > math.Abs(d[n-1]) {
		slices.Reverse(d)
		slices.Reverse(e)
		for i := range n / 2 {
			x, y := z[i*n:(i+1)*n], z[(n-1-i)*n:(n-i)*n]
			for k := range x {
				x[k], y[k] = y[k], x[k]
			}
		}
	}
	if err := implicitQL(ctx, d, append(e, 0), z); err != nil {
		return nil, nil, err
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(d[j], d[i]) })
	values, vectors = make([]float64, n), q
	for j, from := range order {
		values[j] = d[from]
		for i, x := range z[from*n : (from+1)*n] {
			vectors[i*n+j] = x
		}
	}
	return values, vectors, nil
}

// reflected computes Q, the product of tridiagonalise's reflectors in g. It applies them to the
// identity from the last panel to the first.
func reflected(ctx context.Context, g, tau []float64, n int) ([]float64, error) {
	q := make([]float64, n*n)
	for i := range n {
		q[i*n+i] = 1
	}
	t, work := make([]float64, panel*panel), make([]float64, n*panel)
	for i := (n - 2) / panel * panel; i >= 0; i -= panel {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, rows := min(panel, n-1-i), n-1-i
		v := g[(i+1)*n+i:]
		lap.Dlarft(lapack.Forward, lapack.ColumnWise, rows, b, v, n, tau[i:], t, panel)
		lap.Dlarfb(blas.Left, blas.NoTrans, lapack.Forward, lapack.ColumnWise, rows, rows, b, v, n,
			t, panel, q[(i+1)*n+i+1:], n, work, panel)
	}
	return q, nil
}

// implicitQL replaces the diagonal d of a symmetric tridiagonal matrix by its eigenvalues,
// unsorted, and applies every rotation to the rows of z (Dubrulle, Martin and Wilkinson, 1968;
// imtql2 of EISPACK). e is the subdiagonal, with one spare element. LAPACK's own routine cannot be
// interrupted.
func implicitQL(ctx context.Context, d, e, z []float64) error {
	n := len(d)
	var largest float64
	for i := range n {
		largest = max(largest, math.Abs(d[i]), math.Abs(e[i]))
	}
	// Elements below a few roundings of the largest one are zero, as in a matrix of low rank.
	small := 0x1p-56 * largest
	for l := range n {
		for turns := 0; ; turns++ {
			m := l
			for m+1 < n && math.Abs(e[m]) > max(small, 0x1p-53*(math.Abs(d[m])+math.Abs(d[m+1]))) {
				m++
			}
			if m == l {
				break
			}
			if turns == 60 {
				return errNoConvergence
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			chase(d, e, z, l, m)
		}
	}
	return nil
}

// chase performs one implicit QL step on the unreduced block from l to m.
func chase(d, e, z []float64, l, m int) {
	n := len(d)
	g := (d[l+1] - d[l]) / (2 * e[l])
	g = d[m] - d[l] + e[l]/(g+math.Copysign(math.Hypot(g, 1), g))
	s, c, p := 1.0, 1.0, 0.0
	for i := m - 1; i >= l; i-- {
		f, b := s*e[i], c*e[i]
		r := math.Hypot(f, g)
		e[i+1] = r
		if r == 0 { // the block has split
			d[i+1] -= p
			e[m] = 0
			return
		}
		s, c = f/r, g/r
		g = d[i+1] - p
		r = (d[i]-g)*s + 2*c*b
		p = s * r
		d[i+1] = g + p
		g = c*r - b
		x, y := z[i*n:(i+1)*n], z[(i+1)*n:(i+2)*n]
		for k, u := range x {
			v := y[k]
			y[k], x[k] = s*u+c*v, c*u-s*v
		}
	}
	d[l] -= p
	e[l], e[m] = g, 0
}

// singularValues returns the singular values of an m×n matrix, descending. It may overwrite a.
func singularValues(ctx context.Context, a []float64, m, n int) ([]float64, error) {
	switch {
	case m == 0 || n == 0:
		return nil, nil
	case m < n:
		return singularValues(ctx, flip(a, m, n), n, m)
	}
	failed := errors.New("the singular values of a small matrix did not converge")
	if n <= atOnce {
		var svd mat.SVD
		if !svd.Factorize(mat.NewDense(m, n, a), mat.SVDNone) {
			return nil, failed
		}
		return svd.Values(nil), nil
	}
	// Reduce to bidiagonal form as Dgebrd does.
	d, e, tauQ, tauP := make([]float64, n), make([]float64, n), make([]float64, n),
		make([]float64, n)
	x, y := make([]float64, m*panel), make([]float64, n*panel)
	i := 0
	for ; n-i > atOnce; i += panel {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		lap.Dlabrd(m-i, n-i, panel, a[i*n+i:], n, d[i:], e[i:], tauQ[i:], tauP[i:], x, panel, y,
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
	lap.Dgebd2(m-i, n-i, a[i*n+i:], n, d[i:], e[i:], tauQ[i:], tauP[i:], make([]float64, m))
	if !lap.Dbdsqr(blas.Upper, n, 0, 0, 0, d, e, nil, 1, nil, 1, nil, 1, make([]float64, 4*n)) {
		return nil, failed
	}
	return d, nil
}

// triangle returns the upper triangular factor R (r×r) of the QR decomposition of an m×r matrix, m
// ≥ r, and overwrites the matrix.
func triangle(ctx context.Context, a []float64, m, r int) ([]float64, error) {
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
	out := make([]float64, r*r)
	for i := range r {
		copy(out[i*r+i:], a[i*r+i:(i+1)*r])
	}
	return out, nil
}

// cholesky returns the upper triangular R with RᵀR = G for a symmetric n×n matrix, and an estimate
// of G's condition, the ratio of its largest to its smallest eigenvalue. If G is not positive
// definite, it returns no R and infinity. It overwrites g.
func cholesky(ctx context.Context, g []float64, n int) (r []float64, condition float64, err error) {
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
		// Update the whole rest, not just its upper triangle: a product of full matrices is faster.
		blas64.Gemm(blas.Trans, blas.NoTrans, -1, above, above, 1,
			blas64.General{Rows: rest, Cols: rest, Stride: n, Data: g[(i+b)*n+i+b:]})
	}
	reciprocal := lap.Dpocon(blas.Upper, n, g, n, size, work, make([]int, n))
	for i := range n {
		clear(g[i*n : i*n+i])
	}
	return g, 1 / reciprocal, nil
}

// addTransposedProduct adds XᵀY to dst (a×b), for X (rows×a) and Y (rows×b).
func addTransposedProduct(dst, x, y []float64, rows, a, b int) {
	blas64.Gemm(blas.Trans, blas.NoTrans, 1, general(x, rows, a), general(y, rows, b), 1,
		general(dst, a, b))
}

// addProduct adds X·C to dst (rows×b), for X (rows×a) and C (a×b).
func addProduct(dst, x, c []float64, rows, a, b int) {
	blas64.Gemm(blas.NoTrans, blas.NoTrans, 1, general(x, rows, a), general(c, a, b), 1,
		general(dst, rows, b))
}

// addProductTransposed adds X·Yᵀ to dst (a×b), for X (a×c) and Y (b×c).
func addProductTransposed(dst, x, y []float64, a, b, c int) {
	blas64.Gemm(blas.NoTrans, blas.Trans, 1, general(x, a, c), general(y, b, c), 1,
		general(dst, a, b))
}

// subtractProduct subtracts X·C from dst (rows×b), for X (rows×a) and C (a×b).
func subtractProduct(dst, x, c []float64, rows, a, b int) {
	blas64.Gemm(blas.NoTrans, blas.NoTrans, -1, general(x, rows, a), general(c, a, b), 1,
		general(dst, rows, b))
}

func general(data []float64, rows, cols int) blas64.General {
	return blas64.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}

// flip returns the transpose of a rows×cols matrix.
func flip[T float32 | float64](x []T, rows, cols int) []T {
	y := make([]T, len(x))
	for i := range rows {
		for j := range cols {
			y[j*rows+i] = x[i*cols+j]
		}
	}
	return y
}
