package dense

import (
	"cmp"
	"context"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack"
	"gonum.org/v1/gonum/mat"
)

// Eigen returns the eigenvalues of a symmetric n×n matrix, descending, and the eigenvectors as
// columns.
func Eigen(ctx context.Context, g []float64, n int) (values, vectors []float64, err error) {
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

// Eigenvalues returns the eigenvalues of a symmetric n×n matrix, descending. It is several
// times faster than Eigen.
func Eigenvalues(ctx context.Context, g []float64, n int) ([]float64, error) {
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
// reads and overwrites the lower Triangle, leaves the reflectors of Q below the subdiagonal, and
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

// interruptibleEigen is Eigen in pieces. It overwrites g.
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
	values, rows, err := diagonalise(ctx, d, e, split(Flip(q, n, n), n))
	if err != nil {
		return nil, nil, err
	}
	vectors = q
	for j, row := range rows {
		for i, x := range row {
			vectors[i*n+j] = x
		}
	}
	return values, vectors, nil
}

// diagonalise returns the eigenvalues of a symmetric tridiagonal matrix with the given diagonal and
// subdiagonal, descending, and the product of its transposed eigenvectors and the rows of z. It
// overwrites its arguments.
func diagonalise(
	ctx context.Context, d, e []float64, z [][]float64,
) (values []float64, rows [][]float64, err error) {
	// QL steps converge when the large elements come last, but a matrix of nearly low rank has them
	// first here.
	if n := len(d); math.Abs(d[0])+math.Abs(e[0]) > math.Abs(e[n-2])+math.Abs(d[n-1]) {
		slices.Reverse(d)
		slices.Reverse(e)
		slices.Reverse(z)
	}
	if err := implicitQL(ctx, d, append(e, 0), z); err != nil {
		return nil, nil, err
	}
	order := make([]int, len(d))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(d[j], d[i]) })
	for _, i := range order {
		values, rows = append(values, d[i]), append(rows, z[i])
	}
	return values, rows, nil
}

// split returns the rows of a matrix.
func split(x []float64, cols int) [][]float64 { return slices.Collect(slices.Chunk(x, cols)) }

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
func implicitQL(ctx context.Context, d, e []float64, z [][]float64) error {
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
func chase(d, e []float64, z [][]float64, l, m int) {
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
		x, y := z[i], z[i+1][:len(z[i])]
		for k, u := range x {
			v := y[k]
			y[k], x[k] = s*u+c*v, c*u-s*v
		}
	}
	d[l] -= p
	e[l], e[m] = g, 0
}
