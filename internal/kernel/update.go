package kernel

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// Term is one update of a matrix: S · L · R with L rows×Rank and R Rank×cols, both row-major.
type Term[T Float] struct {
	S    float64 // finite
	Rank int
	L, R []T
}

// Update is Σ_t S_t·L_t·R_t for one matrix, made ready for a kernel. It can be used by any number of goroutines at a time.
type Update[T Float] struct {
	d          dtype.Type
	rows, cols int
	rank       int // of all terms together
	terms      []Term[T]
	micro      micro[T]
	panels     int // of micro.cols columns each, the last one padded with zeros
	group      int // how many of them are worked on together, by their size

	l       []T // rows×rank and rows of zeros to the end of a tile: S·l, rounded once, terms side by side
	r       []T // panels × rank × micro.cols
	lBound  []T // per row: 1.01·u·(Σ n_k·l_k²)^½ + normal, n_k from roundings; 0 says that the row is zero
	rNorm   []T // per column: (Σ n_k·r_k²)^½ or a little more
	floor   T
	bound64 float64 // times lBound·rNorm, the bound of a sum in float64; floor64 as for the fast pass
	floor64 float64
	rFinite bool // no element of R is NaN or infinite: then a zero row of L changes nothing
}

// chunk is the length of the sums of products that are then summed up: see micro.
const chunk = 16

// roundings is how many roundings the product of index k, of rank products, passes on its way into δ: one of S·l, one of
// its own (none with fused multiply-add), the additions of its chunk from there on, and of the chunks from there on.
func roundings(k, rank int) int {
	nChunks := (rank + chunk - 1) / chunk
	return 2 + chunk - k%chunk + nChunks - max(1, k/chunk)
}

// groupBytes is how much of R is worked on at a time: it stays in the first-level cache beside tiles of W and rows of L.
const groupBytes = 20 << 10

// Prepare makes an Update of a rows×cols matrix of dtype d: F64, F32, F16 or BF16, for T = float32 one of the last two. It
// keeps L and copies R.
func Prepare[T Float](k *Kernel, d dtype.Type, rows, cols int, terms []Term[T]) *Update[T] {
	u := &Update[T]{d: d, rows: rows, cols: cols, terms: make([]Term[T], len(terms)), micro: microFor[T](k, d), rFinite: true}
	copy(u.terms, terms)
	for i := range terms {
		t := &terms[i]
		if len(t.L) != rows*t.Rank || len(t.R) != t.Rank*cols {
			panic(fmt.Sprintf("kernel: a term of rank %d of a %d×%d matrix has factors of %d and %d elements", t.Rank, rows, cols, len(t.L), len(t.R)))
		}
		u.rank += t.Rank
	}
	nr := u.micro.cols
	u.panels = (cols + nr - 1) / nr
	u.l = make([]T, (rows+u.micro.rows-1)*u.rank)
	u.r = make([]T, u.panels*u.rank*nr)
	u.lBound = make([]T, rows+u.micro.rows-1)
	u.rNorm = make([]T, u.panels*nr)
	u.group = max(1, min(u.micro.panels, u.panels, groupBytes/(max(1, u.rank)*nr*sizeOf[T]())))
	u.floor = T(float64(u.rank+4) * smallest[T]())
	// A sum in float64, in any order, rounds a product at most r+K+3 times for K terms; in the norms every product counts
	// at least three times.
	u.bound64 = float64(u.rank+len(terms)+3) / 3 * 0x1p-53 / unit[T]()
	u.floor64 = 4 * math.SmallestNonzeroFloat64
	for i := range terms {
		u.floor64 += float64(terms[i].Rank) * math.Abs(terms[i].S) * math.SmallestNonzeroFloat64
	}
	u.packLeft()
	u.packRight()
	for i := range u.terms {
		u.terms[i].R = nil
	}
	return u
}

// Negative returns −u, the update that takes u out again. The two share R.
func (u *Update[T]) Negative() *Update[T] {
	n := *u
	n.terms = make([]Term[T], len(u.terms))
	for i, t := range u.terms {
		t.S = -t.S
		n.terms[i] = t
	}
	n.l = make([]T, len(u.l))
	for i, x := range u.l {
		n.l[i] = -x
	}
	return &n
}

func (u *Update[T]) packLeft() {
	for i := range u.rows {
		dst := u.l[i*u.rank : (i+1)*u.rank]
		var sum float64
		k, zero := 0, true
		for t := range u.terms {
			term := &u.terms[t]
			for _, x := range term.L[i*term.Rank : (i+1)*term.Rank] {
				p := term.S * float64(x)
				dst[k] = T(p)
				sum += float64(roundings(k, u.rank)) * p * p
				zero = zero && p == 0 && (x == 0 || term.S == 0)
				k++
			}
		}
		if !zero {
			u.lBound[i] = T(1.01*unit[T]()*normAbove[T](sum) + normal[T]())
		}
	}
}

func (u *Update[T]) packRight() {
	nr := u.micro.cols
	sums := make([]float64, u.panels*nr)
	var bad T
	k := 0
	for t := range u.terms {
		term := &u.terms[t]
		for i := range term.Rank {
			row := term.R[i*u.cols : (i+1)*u.cols]
			n := float64(roundings(k, u.rank))
			for p := range u.panels {
				src := row[p*nr : min((p+1)*nr, u.cols)]
				copy(u.r[(p*u.rank+k)*nr:], src)
				for j, x := range src {
					bad += x - x
					sums[p*nr+j] += n * float64(x) * float64(x)
				}
			}
			k++
		}
	}
	u.rFinite = bad == 0
	for j := range u.rNorm {
		u.rNorm[j] = T(normAbove[T](sums[j]))
	}
}

// column says where in u.r column j of R is, all terms one below the other: its first element and the distance to the next.
func (u *Update[T]) column(j int) (at, stride int) {
	nr := u.micro.cols
	return j/nr*u.rank*nr + j%nr, nr
}

// normAbove turns a sum of squares into a norm, rounded up: the factor covers the roundings of the sum (up to 2^26 terms)
// and of the square root, the addend squares that vanished below the smallest number and a result that is subnormal in T.
func normAbove[T Float](sum float64) float64 { return math.Sqrt(sum)*(1+0x1p-20) + tiny[T]() }

// isNarrow reports whether T is float32.
func isNarrow[T Float]() bool { return any(T(0)) == any(float32(0)) }

// unit is the unit roundoff u of T.
func unit[T Float]() float64 {
	if isNarrow[T]() {
		return 0x1p-24
	}
	return 0x1p-53
}

// tiny is a power of two near the bottom of T's range: for float32 2^20 times its smallest number; for float64 2^20 times
// the edge beyond which squares vanish.
func tiny[T Float]() float64 {
	if isNarrow[T]() {
		return 0x1p-129
	}
	return 0x1p-528
}

// smallest is the smallest positive number of T.
func smallest[T Float]() float64 {
	if isNarrow[T]() {
		return math.SmallestNonzeroFloat32
	}
	return math.SmallestNonzeroFloat64
}

// sizeOf is the size of a T in bytes.
func sizeOf[T Float]() int {
	if isNarrow[T]() {
		return 4
	}
	return 8
}

// normal is the smallest normal number of T.
func normal[T Float]() float64 {
	if isNarrow[T]() {
		return 0x1p-126
	}
	return 0x1p-1022
}
