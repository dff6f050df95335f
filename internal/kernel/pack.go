package kernel

import "math"

// The fast pass works on factors that are packed so that no number in it is subnormal on ordinary
// data: processors take an assist of some 150 cycles for every vector with one. L and R are divided
// by powers of two where they are far from 1, which changes no digit, and elements that are then
// too small for their products are packed as zeros, which the bound pays for. The passes that
// follow see neither.

// arithmetic are the numbers that describe a T.
type arithmetic struct {
	unit     float64 // the unit roundoff u
	smallest float64 // positive number
	normal   float64 // the smallest normal number

	least float64 // the smallest element of a packed factor but 0: its square is normal
	// A factor whose largest element is between 2^low and 2^high is packed as it is; others are
	// brought to 1, or to 2^top. The scale is between 2^deepest and 2^highest.
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

// scaled says by which powers of two packed factors are divided.
type scaled[T Float] struct {
	a, b int
	// c = 2^(a+b), or 0: then Δ is below 2^deepest, and the whole of it is part of the bound
	scale   T
	inverse T // 1/c, or 1
}

// packed are the factors of all terms, packed for a micro-kernel, and what bounds the error of
// their product.
type packed[T Float] struct {
	rows, cols int
	rank       int // of all terms together
	terms      []Term[T]
	micro      micro[T]
	panels     int // of micro.cols columns each, the last one padded with zeros

	// rows×rank and rows of zeros to the end of a tile: S·l / 2^a, rounded once, terms side by side
	l         []T
	r         []T // panels × rank × micro.cols: R / 2^b
	scaled[T]     // the two powers of two, and what follows from them
	// per row, times rNorm the bound but for floor; 0 says that the row is zero
	lBound []T
	rNorm  []T // per column; 0 says that the column is zero
	floor  T
	// times lBound·rNorm, the bound of a sum in float64; floor64 as for the fast pass
	bound64 float64
	floor64 float64
	// R as it was given, packed as r is, for the passes that follow: r itself where that has all of
	// it
	right   []T
	rFinite bool // no element of R is NaN or infinite: then a zero row of L changes nothing
}

func (u *packed[T]) pack() {
	x := arithmeticOf[T]()
	var left, right float64
	u.rFinite = true
	for i := range u.terms {
		t := &u.terms[i]
		l, _ := largest(t.L)
		r, finite := largest(t.R)
		left, right = max(left, min(l*math.Abs(t.S), math.MaxFloat64)), max(right, r)
		u.rFinite = u.rFinite && finite
	}
	// The inverse of a power of two has to be a number: of S·L in float64, of R in T.
	u.b = max(x.exponent(right), x.deepest)
	u.a = min(max(x.exponent(left), arithmetic64.deepest), x.highest-u.b)
	u.scale, u.inverse = 0, 1
	if e := u.a + u.b; e >= x.deepest {
		u.scale, u.inverse = T(math.Ldexp(1, e)), T(math.Ldexp(1, -e))
	}
	u.floor = T(max(x.normal, float64(u.rank+5)*x.smallest*max(1, float64(u.scale))))
	// A sum in float64, in any order, rounds a product at most r+K+3 times for K terms; in the
	// norms every product counts at least three times.
	u.bound64 = float64(u.rank+len(u.terms)+3) / 3 * 0x1p-53 / x.unit
	u.floor64 = arithmetic64.normal
	for i := range u.terms {
		u.floor64 += float64(u.terms[i].Rank) * math.Abs(u.terms[i].S) * math.SmallestNonzeroFloat64
	}
	u.packLeft(x)
	u.packRight(x)
}

// largest is the largest magnitude among the finite elements; finite says that there are no others.
func largest[T Float](xs []T) (most float64, finite bool) {
	var bad, top T
	for _, x := range xs {
		bad += x - x
		if x < 0 {
			x = -x
		}
		if x > top && x-x == 0 {
			top = x
		}
	}
	return float64(top), bad == 0
}

// exponent is the power of two by which a factor with that largest element is divided.
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

// packLeft packs S·L/2^a and makes lBound: 1.01·c·(u·(Σ n_k·l_k²)^½ + lost), with n_k from
// roundings and lost what a row has in elements that are packed as zero. The last addend is what
// S·l can lose to underflow, and keeps the bound normal.
func (u *packed[T]) packLeft(x *arithmetic) {
	u.l = make([]T, (u.rows+u.micro.rows-1)*u.rank)
	u.lBound = make([]T, u.rows+u.micro.rows-1)
	relative := x.unit
	if u.scale == 0 {
		relative = 1 // δ itself, as the kernel takes none of it
	}
	unscale := math.Ldexp(1, -u.a)
	vanished := x.normal + math.Ldexp(math.Sqrt(float64(u.rank))*math.SmallestNonzeroFloat64, u.b)
	for i := range u.rows {
		dst := u.l[i*u.rank : (i+1)*u.rank]
		var sum float64
		k, isZero, nLost := 0, true, 0
		for t := range u.terms {
			term := &u.terms[t]
			for _, v := range term.L[i*term.Rank : (i+1)*term.Rank] {
				p := term.S * float64(v)
				isZero = isZero && p == 0 && (v == 0 || term.S == 0)
				p = p * unscale
				if math.Abs(p) < x.least {
					if p != 0 {
						nLost++
					}
					p = 0
				}
				dst[k] = T(p)
				sum += float64(roundings(k, u.rank)) * p * p
				k++
			}
		}
		if !isZero {
			bound := 1.01 * (relative*normAbove(sum) + math.Sqrt(float64(nLost))*x.least)
			u.lBound[i] = T(math.Ldexp(bound, u.a+u.b) + vanished)
		}
	}
}

// packRight packs R/2^b, keeps R where that is not the same, and makes rNorm: (Σ n_k·r_k²)^½ +
// lost/u, where lost is what a column has in elements that are packed as zero.
func (u *packed[T]) packRight(x *arithmetic) {
	nr := u.micro.cols
	u.r = make([]T, u.panels*u.rank*nr)
	u.right = u.r
	u.rNorm = make([]T, u.panels*nr)
	sums := make([]float64, u.panels*nr)
	lost := make([]float64, u.panels*nr)
	unscale := T(math.Ldexp(1, -u.b))
	u.eachRight(func(k, p int, src []T) {
		n := float64(roundings(k, u.rank))
		dst := u.r[(p*u.rank+k)*nr:][:len(src)]
		for j, v := range src {
			if v *= unscale; v < T(x.least) && v > -T(x.least) {
				if src[j] != 0 {
					lost[p*nr+j]++
				}
				v = 0
			}
			dst[j] = v
			sums[p*nr+j] += n * float64(v) * float64(v)
		}
	})
	isSame := u.b == 0
	for j := range u.rNorm {
		isSame = isSame && lost[j] == 0
		u.rNorm[j] = T(normAbove(sums[j]) + 1.01*math.Sqrt(lost[j])*x.least/x.unit)
	}
	if !isSame {
		u.right = make([]T, len(u.r))
		u.eachRight(func(k, p int, src []T) { copy(u.right[(p*u.rank+k)*nr:], src) })
	}
}

// eachRight calls f for every part of a row of the R of all terms that lies in a panel.
func (u *packed[T]) eachRight(f func(k, p int, src []T)) {
	nr, k := u.micro.cols, 0
	for t := range u.terms {
		term := &u.terms[t]
		for i := range term.Rank {
			row := term.R[i*u.cols : (i+1)*u.cols]
			for p := range u.panels {
				f(k, p, row[p*nr:min((p+1)*nr, u.cols)])
			}
			k++
		}
	}
}

// column says where in u.right column j of R is, all terms one below the other: its first element
// and the distance to the next.
func (u *packed[T]) column(j int) (at, stride int) {
	nr := u.micro.cols
	return j/nr*u.rank*nr + j%nr, nr
}

// isZero reports that no term changes n rows.
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

// isStill reports that no term changes an element: it has a row of zeros, or a column of zeros and
// a row that is finite, as the row's bound then is.
func (u *packed[T]) isStill(i, j int) bool {
	return u.lBound[i] == 0 && u.rFinite || u.rNorm[j] == 0 && isFinite(float64(u.lBound[i]))
}

// normAbove turns a sum of squares into a norm, rounded up: the factor covers the roundings of the
// sum (up to 2^26 terms), of the square root, and to T.
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
