// Package kernel does the arithmetic of a merge on a tile of rows and columns, and nothing else. Its promise, for every
// element of a tile of dtype D:
//
//	out = RN_D( w + Σ_t S_t · Σ_k l_ik·r_kj )      over the reals, rounded once to nearest even
//
// It is kept by Ziv's strategy: a fast pass in the narrow arithmetic T with a bound on its error decides nearly all
// elements; the rest is computed in float64, then double-double, then exactly. The proof of the bounds is in merge/doc.go.
package kernel

import (
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// Float is an arithmetic in which a fast pass runs.
type Float interface{ float32 | float64 }

// Term is one update of a tile: S · L · R with L rows×Rank and R Rank×cols.
type Term[T Float] struct {
	S     float64 // finite; for T = float32 within MinScale32 … MaxScale32 in magnitude, or 0
	Rank  int
	L     []T // rows×Rank, row-major
	R     []T // Rank×cols: row k begins at R[k*Stride]
	LNorm []T // per row of L, from RowNorms
	RNorm []T // per column of R, from ColumnNorms

	Stride  int
	RFinite bool // no element of R is NaN or infinite: then a zero row of L changes nothing
}

// The magnitudes of S that the float32 pass can represent with full relative precision.
const (
	MinScale32 = 0x1p-126
	MaxScale32 = 0x1p127
)

// Tile is a rectangle of a tensor, contiguous in memory, that is updated in place.
type Tile[T Float] struct {
	D     dtype.Type // F64, F32, F16 or BF16; for T = float32 one of the last two
	Rows  int
	Cols  int
	W     []byte // Rows×Cols elements of D: the base on entry, the merged values on return
	Terms []Term[T]
}

// Stats sums up what a merge did to elements. Sums are over elements whose w and Δ are finite.
type Stats struct {
	Elements   int64
	Unchanged  int64   // out equals w (−0 equals 0, a NaN any NaN)
	Slow       int64   // not decided by the fast pass
	Exact      int64   // decided in exact arithmetic
	NaNBefore  int64   // w is NaN or infinite
	NaNAfter   int64   // out is NaN or infinite
	NormW      float64 // Σ w²
	NormDelta  float64 // Σ Δ², the update wanted
	NormStored float64 // Σ (out − w)², the update stored
	NormError  float64 // Σ (out − w − Δ)²
}

// Add adds o to s.
func (s *Stats) Add(o *Stats) {
	s.Elements += o.Elements
	s.Unchanged += o.Unchanged
	s.Slow += o.Slow
	s.Exact += o.Exact
	s.NaNBefore += o.NaNBefore
	s.NaNAfter += o.NaNAfter
	s.NormW += o.NormW
	s.NormDelta += o.NormDelta
	s.NormStored += o.NormStored
	s.NormError += o.NormError
}

// Fast is the first pass over a tile. It writes every element that it can decide and returns the indices (row·Cols + column)
// of those that it cannot, appended to undecided; these keep the bits of w. It may not decide an element whose result
// could be NaN or infinite. Implementations differ in speed only: which elements they leave undecided is their own
// affair, the bytes after Merge are not.
type Fast[T Float] func(t *Tile[T], st *Stats, undecided []int32, scratch *Scratch[T]) []int32

// Scratch is the memory of one worker. The zero value is ready.
type Scratch[T Float] struct {
	w, acc, delta, bound [chunk]T
	undecided            []int32
}

// Merge updates a tile in place.
func Merge[T Float](fast Fast[T], t *Tile[T], st *Stats, scratch *Scratch[T]) {
	st.Elements += int64(t.Rows) * int64(t.Cols)
	scratch.undecided = fast(t, st, scratch.undecided[:0], scratch)
	st.Slow += int64(len(scratch.undecided))
	for _, index := range scratch.undecided {
		slow(t, int(index), st)
	}
}

// RowNorms writes, for every row of the rows×r matrix m, an upper bound of its Euclidean norm, close to it, and exactly 0
// for a row of zeros.
func RowNorms[T Float](dst []T, m []T, r int) {
	for i := range dst {
		var sum float64
		for _, x := range m[i*r : (i+1)*r] {
			sum += float64(x) * float64(x)
		}
		dst[i] = normAbove[T](sum, m[i*r:(i+1)*r])
	}
}

// ColumnNorms is RowNorms for the columns of an r×n matrix, without the promise of an exact 0.
func ColumnNorms[T Float](dst []T, m []T) {
	n := len(dst)
	sum := make([]float64, n)
	for k := 0; k < len(m); k += n {
		for j, x := range m[k : k+n] {
			sum[j] += float64(x) * float64(x)
		}
	}
	for j := range dst {
		dst[j] = normAbove[T](sum[j], nil)
	}
}

// normAbove turns a sum of squares into a norm, rounded up: the factor covers the roundings of the sum (up to 2^26 terms)
// and of the square root, the addend squares that vanished below the smallest number and a result that is subnormal in T.
func normAbove[T Float](sum float64, row []T) T {
	if sum == 0 && row != nil {
		zero := true
		for _, x := range row {
			zero = zero && x == 0
		}
		if zero {
			return 0
		}
	}
	return T(math.Sqrt(sum)*(1+0x1p-20)) + T(tiny[T]()*0x1p20)
}

// unit is the unit roundoff u of T.
func unit[T Float]() float64 {
	var x T
	if _, ok := any(x).(float32); ok {
		return 0x1p-24
	}
	return 0x1p-53
}

// tiny is a power of two near the bottom of T's range: for float32 its smallest number; for float64 2^-528, beyond
// which squares vanish.
func tiny[T Float]() float64 {
	var x T
	if _, ok := any(x).(float32); ok {
		return 0x1p-149
	}
	return 0x1p-548
}
