package kernel

import (
	"context"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// The fast pass uses packed factors without subnormal numbers on ordinary data, since many
// processors take an assist of some 150 cycles for a vector with one. If L or R is far from 1, it
// is divided by a power of two, which changes no digit. Elements too small for their products are
// packed as zeros, and the bound pays for them. Later passes use the original factors.

// arithmetic describes the numbers of T.
type arithmetic struct {
	unit     float64 // unit roundoff u
	smallest float64 // smallest positive number
	normal   float64 // smallest normal number

	least float64 // smallest nonzero element of a packed factor; its square is normal
	// A factor with its largest element between 2^low and 2^high is packed as it is; others are
	// scaled to 1, or to 2^top. The scale is between 2^deepest and 2^highest.
	low, high, top, deepest, highest int
}

var (
	arithmetic32 = arithmetic{
		unit: 0x1p-24, smallest: math.SmallestNonzeroFloat32, normal: 0x1p-126,
		least: 0x1p-63, low: -20, high: 24, top: 20, deepest: -120, highest: 100,
	}
	arithmetic64 = arithmetic{
		unit: 0x1p-53, smallest: math.SmallestNonzeroFloat64, normal: 0x1p-1022,
		least: 0x1p-511, low: -160, high: 192, top: 160, deepest: -1000, highest: 800,
	}
)

func arithmeticOf[T Float]() *arithmetic {
	if isNarrow[T]() {
		return &arithmetic32
	}
	return &arithmetic64
}

func unit[T Float]() float64     { return arithmeticOf[T]().unit }
func smallest[T Float]() float64 { return arithmeticOf[T]().smallest }
func normal[T Float]() float64   { return arithmeticOf[T]().normal }

// scaled holds the powers of two that divide packed factors.
type scaled[T Float] struct {
	a, b int
	// c = 2^(a+b), or 0 if Δ is below 2^deepest and the bound includes all of it
	scale   T
	inverse T // 1/c, or 1
}

// packed holds the factors of all terms, packed for a micro-kernel, and the bound on the error of
// their product.
type packed[T Float] struct {
	rows, cols int
	rank       int // total rank of the terms
	extra      int // roundings of every product: see roundings
	terms      []Term[T]
	micro      micro[T]
	dot        func(l, r []T, stride int) float64
	panels     int // of micro.cols columns each, the last one padded with zeros

	// rows×rank, and rows of zeros to the end of a tile: S·l / 2^a, rounded once, terms side by
	// side
	l         []T
	r         []T  // panels × rank × micro.cols: R / 2^b
	scaled[T]      // the scales
	isWidened bool // the base's values are numbers of T, which D may not hold
	// per row: times rNorm, the bound without floor; 0 for a row of zeros
	lBound []T
	rNorm  []T // per column; 0 for a column of zeros
	floor  T
	// times lBound·rNorm, the bound of a sum in float64; floor64 is its floor
	bound64 float64
	floor64 float64
	// l and r times scale64 are the products without any rounding
	lossless bool
	scale64  float64
	// the original R in the layout of r, for later passes; r itself if packing lost nothing
	right   []T
	rFinite bool // all elements of R are finite, so a zero row of L changes nothing
}

// pack chooses the scales from the largest elements of all terms, computes the parts of the bound
// that do not depend on rows and columns, and packs L and R.
func (u *packed[T]) pack(ctx context.Context) error {
	x := arithmeticOf[T]()
	var left, right float64
	u.rFinite = true
	for i := range u.terms {
		t := &u.terms[i]
		if err := ctx.Err(); err != nil {
			return err
		}
		l, _ := largest(t.L)
		r, finite := largest(t.R)
		left, right = max(left, min(l*math.Abs(t.S), math.MaxFloat64)), max(right, r)
		u.rFinite = u.rFinite && finite
	}
	// The inverse of a power of two must be a number: for S·L in float64, for R in T.
	u.b = max(x.exponent(right), x.deepest)
	u.a = min(max(x.exponent(left), arithmetic64.deepest), x.highest-u.b)
	u.scale, u.inverse = 0, 1
	if e := u.a + u.b; e >= x.deepest {
		u.scale, u.inverse = T(math.Ldexp(1, e)), T(math.Ldexp(1, -e))
	}
	u.floor = T(max(x.normal, float64(u.rank+6)*x.smallest*max(1, float64(u.scale))))
	isExact := u.isExact()
	u.extra = u.extraRoundings(isExact)
	u.scale64 = math.Ldexp(1, u.a+u.b)
	u.lossless = isExact && isMiddle(u.scale64)
	// A sum in float64, in any order, rounds a product at most r+K+3 times for K terms; in the
	// norms every product counts at least once.
	u.bound64 = float64(u.rank+len(u.terms)+3) * 0x1p-53 / x.unit
	u.floor64 = arithmetic64.normal
	for i := range u.terms {
		u.floor64 += float64(u.terms[i].Rank) * math.Abs(u.terms[i].S) * math.SmallestNonzeroFloat64
	}
	if err := u.packLeft(ctx, x); err != nil {
		return err
	}
	return u.packRight(ctx, x)
}

// isExact reports whether S·L rounds nothing, since each S is a power of two.
func (u *packed[T]) isExact() bool {
	for i := range u.terms {
		if f, _ := math.Frexp(math.Abs(u.terms[i].S)); f != 0.5 {
			return false
		}
	}
	return true
}

// largest returns the largest magnitude among the finite elements. finite reports whether all are
// finite. No branch depends on a sign, which no processor predicts.
func largest[T Float](xs []T) (most float64, finite bool) {
	finite = true
	for _, x := range xs {
		switch v := math.Abs(float64(x)); {
		case v > math.MaxFloat64 || v != v:
			finite = false
		case v > most:
			most = v
		}
	}
	return most, finite
}

// exponent returns the power of two that divides a factor with the given largest element.
func (x *arithmetic) exponent(largest float64) int {
	if largest == 0 {
		return 0
	}
	switch e := math.Ilogb(largest); {
	case e < x.low:
		return e
	case e > x.high:
		return e - x.top
	}
	return 0
}

// askRows is the number of rows of L between two looks at the context. A row can be one number,
// and a look at each would take longer than the row.
const askRows = 256

// askElements is the number of elements between two looks, in loops over a whole factor.
const askElements = 1 << 20

// packLeft packs S·L/2^a and computes lBound: 1.01·c·(u·(Σ n_k·l_k²)^½ + lost), with n_k from
// roundings. lost covers the elements of a row that are packed as zeros. The last addend pays for
// underflow of S·l and keeps the bound normal.
func (u *packed[T]) packLeft(ctx context.Context, x *arithmetic) error {
	u.l = make([]T, (u.rows+u.micro.rows-1)*u.rank)
	u.lBound = make([]T, u.rows+u.micro.rows-1)
	relative := x.unit
	if u.scale == 0 {
		relative = 1 // the bound covers δ itself, which the kernel omits
	}
	unscale := math.Ldexp(1, -u.a)
	vanished := x.normal + math.Ldexp(math.Sqrt(float64(u.rank))*math.SmallestNonzeroFloat64, u.b)
	for i := range u.rows {
		if i%askRows == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		dst := u.l[i*u.rank : (i+1)*u.rank]
		var sum float64
		k, isZero, nLost := 0, true, 0
		for t := range u.terms {
			term := &u.terms[t]
			for _, v := range term.L[i*term.Rank : (i+1)*term.Rank] {
				p := term.S * float64(v)
				if math.Abs(p) < arithmetic64.normal && v != 0 {
					u.lossless = false
				}
				isZero = isZero && p == 0 && (v == 0 || term.S == 0)
				p = p * unscale
				if math.Abs(p) < x.least {
					if p != 0 {
						nLost++
						u.lossless = false
					}
					p = 0
				}
				dst[k] = T(p)
				sum += float64(u.roundings(k)) * p * p
				k++
			}
		}
		if !isZero {
			bound := 1.01 * (relative*normAbove(sum) + math.Sqrt(float64(nLost))*x.least)
			u.lBound[i] = T(math.Ldexp(bound, u.a+u.b) + vanished)
		}
	}
	return nil
}

// packRight packs R/2^b, keeps R if that loses digits, and computes rNorm: (Σ n_k·r_k²)^½ + lost/u.
// lost covers the elements of a column that are packed as zeros.
func (u *packed[T]) packRight(ctx context.Context, x *arithmetic) error {
	nr := u.micro.cols
	u.r = make([]T, u.panels*u.rank*nr)
	u.right = u.r
	u.rNorm = make([]T, u.panels*nr)
	sums := make([]float64, u.panels*nr)
	var lost []float64 // nil if no element is
	unscale := T(math.Ldexp(1, -u.b))
	err := u.eachRight(ctx, func(k, p int, src []T) {
		n := float64(u.roundings(k))
		dst, sums := u.r[(p*u.rank+k)*nr:][:len(src)], sums[p*nr:][:len(src)]
		for j, v := range src {
			v *= unscale
			if math.Abs(float64(v)) < x.least {
				if src[j] != 0 && lost == nil {
					lost = make([]float64, u.panels*nr)
				}
				if src[j] != 0 {
					lost[p*nr+j]++
				}
				v = 0
			}
			dst[j] = v
			sums[j] += n * float64(v) * float64(v)
		}
	})
	if err != nil {
		return err
	}
	for j := range u.rNorm {
		u.rNorm[j] = T(normAbove(sums[j]))
	}
	for j, n := range lost {
		u.rNorm[j] = T(normAbove(sums[j]) + 1.01*math.Sqrt(n)*x.least/x.unit)
	}
	u.lossless = u.lossless && lost == nil
	isSame := u.b == 0 && lost == nil
	if !isSame {
		u.right = make([]T, len(u.r))
		return u.eachRight(ctx, func(k, p int, src []T) { copy(u.right[(p*u.rank+k)*nr:], src) })
	}
	return nil
}

// eachRight calls f for the part of every row of R, over all terms, that lies in a panel. It
// asks the context before each row.
func (u *packed[T]) eachRight(ctx context.Context, f func(k, p int, src []T)) error {
	nr, k := u.micro.cols, 0
	for t := range u.terms {
		term := &u.terms[t]
		for i := range term.Rank {
			if err := ctx.Err(); err != nil {
				return err
			}
			row := term.R[i*u.cols : (i+1)*u.cols]
			for p := range u.panels {
				f(k, p, row[p*nr:min((p+1)*nr, u.cols)])
			}
			k++
		}
	}
	return nil
}

// column locates column j of R in u.right, all terms below each other: its first element and the
// distance between elements.
func (u *packed[T]) column(j int) (at, stride int) {
	nr := u.micro.cols // a power of two
	first := j &^ (nr - 1)
	return first*u.rank + j - first, nr
}

// isZero reports whether all terms leave n rows unchanged.
func (u *packed[T]) isZero(row, n int) bool {
	if !u.rFinite {
		return false
	}
	for _, x := range u.lBound[row : row+n] {
		if x != 0 {
			return false
		}
	}
	return true
}

// isStill reports whether all terms leave an element unchanged: its row is zero, or its column is
// zero and its row finite, which shows in a finite bound.
func (u *packed[T]) isStill(i, j int) bool {
	return u.lBound[i] == 0 && u.rFinite || u.rNorm[j] == 0 && isFinite(float64(u.lBound[i]))
}

// dtypeOf returns the dtype of T.
func dtypeOf[T Float]() dtype.Type {
	if isNarrow[T]() {
		return dtype.F32
	}
	return dtype.F64
}

// normAbove returns the square root of a sum of squares, rounded up. The factor covers the
// roundings of the sum (up to 2^26 terms), of the square root, and to T.
func normAbove(sum float64) float64 { return math.Sqrt(sum) * (1 + 0x1p-20) }

// isNarrow reports whether T is float32.
func isNarrow[T Float]() bool { return any(T(0)) == any(float32(0)) }

// sizeOf is the size of a T in bytes.
func sizeOf[T Float]() int {
	if isNarrow[T]() {
		return 4
	}
	return 8
}
