package audit

import (
	"context"
	"math"
	"slices"
	"sort"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/rectangle"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/thin"
)

// part is a thin product s·B·Aᵀ in some rows and columns of a tensor.
type part struct {
	rows, cols []int // of the tensor as a matrix, ascending
	scale      float64
	factors    [nVariants]*thin.Matrix
	// The Euclidean norms of the rows of B and of A, for the bound on the errors of a float32
	// product.
	normB, normA []float64
}

// update is the sum of the parts that one adapter adds to a tensor.
type update struct{ parts []part }

// readUpdates reads the updates of a change, one for each adapter. work is the dtype that the
// factors may have been rounded to.
func readUpdates(
	ctx context.Context, c *resolve.Change, nAdapters int, work dtype.Type,
) ([]update, error) {
	all := make([]update, nAdapters)
	read := make(map[resolve.Blob][]byte)
	nRows, _ := c.Matrix()
	for a := range all {
		only := *c
		only.Terms = slices.DeleteFunc(slices.Clone(c.Terms), func(x resolve.Term) bool { return x.Adapter != a })
		for _, r := range rectangle.Of(&only) {
			for i := range r.Terms {
				m, err := r.Term(ctx, i, read)
				if err != nil {
					return nil, err
				}
				first := r.Band * int(nRows) / r.NBands
				rows := slices.Clone(r.Rows)
				for k := range rows {
					rows[k] += first
				}
				all[a].parts = append(all[a].parts, newPart(m, rows, r.Cols, r.Terms[i].Scale, r.Terms[i].Transposed, work))
			}
		}
	}
	return all, nil
}

func newPart(m *thin.Matrix, rows, cols []int, scale float64, transposed bool, work dtype.Type) part {
	p := part{rows: rows, cols: cols, scale: scale, normB: norms(m.B, m.R), normA: norms(m.A, m.R)}
	p.factors[asStored] = m
	b, a := rounded(m.B, work, 1), rounded(m.A, work, 1)
	with := func(b, a []float64) *thin.Matrix { return &thin.Matrix{M: m.M, N: m.N, R: m.R, B: b, A: a} }
	p.factors[inDType] = with(b, a)
	// What the adapter calls B is the right factor where the base stores the weight transposed.
	if transposed {
		p.factors[scaledB], p.factors[scaledA] = with(b, rounded(a, work, scale)), with(rounded(m.B, work, scale), a)
	} else {
		p.factors[scaledB], p.factors[scaledA] = with(rounded(b, work, scale), a), with(b, rounded(m.A, work, scale))
	}
	return p
}

// scaleOf is the scale of the product of a variant of the factors.
func (p *part) scaleOf(v variant) float64 {
	if v == scaledA || v == scaledB {
		return 1 // it is in a factor
	}
	return p.scale
}

// rounded rounds the multiple of a factor.
func rounded(x []float64, t dtype.Type, by float64) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = round(t, v*by)
	}
	return y
}

func norms(x []float64, r int) []float64 {
	if r == 0 {
		return nil
	}
	all := make([]float64, len(x)/r)
	for i := range all {
		all[i] = dense.Norm(x[i*r : (i+1)*r])
	}
	return all
}

// hasDigits reports whether a variant of the factors differs from the stored ones.
func (u *update) hasDigits(v variant) bool {
	return slices.ContainsFunc(u.parts, func(p part) bool {
		return !slices.Equal(p.factors[v].B, p.factors[asStored].B) || !slices.Equal(p.factors[v].A, p.factors[asStored].A)
	})
}

// rank is the largest rank of a part.
func (u *update) rank() (n int) {
	for i := range u.parts {
		n = max(n, u.parts[i].factors[asStored].R)
	}
	return n
}

// add adds rows first to first + n of the update to dst (n×nCols), and bounds on the errors of a
// float32 product to bounds, unless that is nil.
func (u *update) add(dst, bounds []float64, v variant, first, n, nCols int) {
	for i := range u.parts {
		p := &u.parts[i]
		from, to := sort.SearchInts(p.rows, first), sort.SearchInts(p.rows, first+n)
		if from == to {
			continue
		}
		f := p.factors[v]
		product := make([]float64, (to-from)*f.N)
		dense.AddProductTransposed(product, f.B[from*f.R:to*f.R], f.A, to-from, f.N, f.R)
		s, c := p.scaleOf(v), p.errors()
		for k := from; k < to; k++ {
			row := (p.rows[k] - first) * nCols
			for j, x := range product[(k-from)*f.N : (k-from+1)*f.N] {
				at := row + p.cols[j]
				dst[at] += s * x
				if bounds != nil {
					bounds[at] += c*p.normB[k]*p.normA[j] + 2*unit32*math.Abs(s*x)
				}
			}
		}
	}
}

// errors bounds the error of a float32 product of rank r and of its scale, in any order of the sum:
// (r + 2)·2⁻²⁴ of the product of the norms (Cauchy–Schwarz).
func (p *part) errors() float64 {
	return float64(p.factors[asStored].R+2) * unit32 * math.Abs(p.scale)
}

// at returns one element of the update.
func (u *update) at(v variant, row, col int) (x float64) {
	for i := range u.parts {
		p := &u.parts[i]
		k, isRow := find(p.rows, row)
		j, isCol := find(p.cols, col)
		if !isRow || !isCol {
			continue
		}
		f := p.factors[v]
		x += p.scaleOf(v) * dot(f.B[k*f.R:(k+1)*f.R], f.A[j*f.R:(j+1)*f.R])
	}
	return x
}

// boundAt returns the bound on the errors of a float32 product for one element, which is x.
func (u *update) boundAt(row, col int, x float64) float64 {
	bound := 2 * unit32 * math.Abs(x)
	for i := range u.parts {
		p := &u.parts[i]
		k, isRow := find(p.rows, row)
		j, isCol := find(p.cols, col)
		if isRow && isCol {
			bound += p.errors() * p.normB[k] * p.normA[j]
		}
	}
	return bound
}

// find is a binary search that is fast for numbers that follow each other.
func find(ascending []int, x int) (i int, ok bool) {
	n := len(ascending)
	if n == 0 || x < ascending[0] || x > ascending[n-1] {
		return 0, false
	}
	if ascending[n-1]-ascending[0] == n-1 {
		return x - ascending[0], true
	}
	return slices.BinarySearch(ascending, x)
}

// dot is the inner product of two short vectors.
func dot(x, y []float64) (sum float64) {
	y = y[:len(x)]
	for i, v := range x {
		sum += v * y[i]
	}
	return sum
}
