package kernel

import (
	"fmt"
	"math"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestRoundingsThatAllGoOneWay compares the bound with sums whose error nearly reaches it. The
// first product lies a little below or above a midpoint M of D, and rounding loses all others: in
// the first chunk each one is less than half a unit of the first, and in later chunks the chunk's
// sum is; w and the tail of S·l are lost too. So t stays 2j units before M, while the exact value
// lies beyond M for small j. l and r have the same direction, so the inequality of Cauchy and
// Schwarz is an equality.
//
// In the second problem of each rank the products of later chunks are as large as those of the
// first. Summed as the contract says, they are not lost; a longer chain would lose more than the
// bound allows.
func TestRoundingsThatAllGoOneWay(t *testing.T) {
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
		for _, rank := range []int{1, 2, 15, 16, 17, 32, 64, 70, 256} {
			p, lost := oneWay(d, rank, false)
			all(t, fmt.Sprintf("%v/rank %d", d, rank), p)
			for _, k := range Available() {
				share := 0.0
				if d == dtype.F32 {
					share = lost / relativeBound(prepare[float64](k, p))
				} else {
					share = lost / relativeBound(prepare[float32](k, p))
				}
				if rank >= 15 && share < 0.7 {
					t.Errorf("%v %v rank %d: roundings reach %.2f of the bound: the test has lost its edge", k, d, rank, share)
				}
			}
			p, _ = oneWay(d, rank, true)
			all(t, fmt.Sprintf("%v/rank %d, all products", d, rank), p)
		}
	}
}

// relativeBound returns e/|t| of oneWay's first element, which is barely above 1.
func relativeBound[T Float](u *Update[T]) float64 {
	return float64(u.lBound[0])*float64(u.rNorm[0]) + float64(u.floor) + 2*unit[T]()
}

// oneWay builds the problem. lost is the distance of |t| from the exact value, in units of the
// first product.
func oneWay(d dtype.Type, rank int, allProducts bool) (p *problem, lost float64) {
	const rows, far = 5, 17
	const cols = 2 * far
	unit := 0x1p-24
	m := 1 + map[dtype.Type]float64{dtype.BF16: 0x1p-8, dtype.F16: 0x1p-11, dtype.F32: 0x1p-24}[d]
	left, right, s := 0x1p-12*(1-0x1p-9), 0x1p-12*(1-0x1p-9), 1+0x1p-24*(1-0x1p-9)
	if d == dtype.F32 {
		unit = 0x1p-53
		left, right, s = 0x1p-26*(1-0x1p-12), 0x1p-27*(1-0x1p-12), 1
	}
	term := plainTerm{s: s, rank: rank, l: make([]float64, rows*rank),
		r: make([]float64, rank*cols)}
	p = &problem{d: d, rows: rows, cols: cols, w: make([]float64, rows*cols),
		terms: []plainTerm{term}}
	isThere := func(k int) bool { return allProducts || k < 16 || k%16 == 0 }
	lost = unit // of w
	if s != 1 {
		lost += unit
	}
	kept := 0.0 // of the products, in t
	for k := 1; k < rank; k++ {
		switch {
		case isThere(k) && k >= 16 && allProducts:
			kept += unit
		case isThere(k):
			lost += unit
		}
	}
	kept = 2 * unit * math.Round(kept/(2*unit))
	for i := range rows {
		scale := math.Ldexp(1, i)
		if i%2 == 1 {
			scale = -scale
		}
		term.l[i*rank] = scale
		for k := 1; k < rank; k++ {
			if isThere(k) {
				term.l[i*rank+k] = scale * left
			}
		}
		for j := range cols {
			// Columns of the second half lie above M and subtract everything; there S·l errs the
			// other way.
			up, from := 1.0, m-kept-2*unit*float64(j)
			if j >= far {
				up, from = -1, m+kept+2*unit*float64(j-far)
			}
			p.w[i*cols+j] = rounded(d, scale*up*rounded(d, unit*(1-0x1p-6)))
			term.r[j] = from
			for k := 1; k < rank; k++ {
				term.r[k*cols+j] = up * right
			}
		}
	}
	return p, lost
}
