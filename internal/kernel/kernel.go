// Package kernel does the arithmetic of a merge on rows of a matrix, and nothing else. Its promise,
// for every element of a matrix of dtype D:
//
//	out = RN_D( w + Σ_t S_t · Σ_k l_ik·r_kj )      over the reals, rounded once to nearest even
//
// It is kept by Ziv's strategy: a fast pass in float32 or float64 with a bound on its error decides
// nearly all elements; the rest is computed in float64, then double-double, then exactly. The proof
// of the bounds is in merge/doc.go.
//
// The fast pass is layered as in BLIS. Prepare turns the factors of a tensor into an Update, once:
// all terms side by side, S multiplied into L, R packed in panels. Update.Merge walks over a block
// of rows and owns everything irregular: edges, rows that nothing changes, undecided elements. A
// micro-kernel knows whole tiles of a fixed size and nothing else; there is one per dtype and
// instruction set, and a portable one. The choice changes the time, never the bytes.
package kernel

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/loratool/loratool/format/dtype"
)

// Float is an arithmetic in which a fast pass runs.
type Float interface{ float32 | float64 }

// Kernel is one implementation of the fast pass. What it leaves out is done by the portable one.
type Kernel struct {
	name string
	bf16 micro[float32]
	f16  micro[float32]
	f32  micro[float64]
}

func (k *Kernel) String() string { return k.name }

// Variable is the environment variable that forces a kernel by name; empty or unset, the fastest
// one runs.
const Variable = "LORATOOL_KERNEL"

// Available lists the kernels that this processor can run, the fastest first; "portable" is always
// the last.
func Available() []*Kernel { return append(available(), &Kernel{name: "portable"}) }

// Selected returns the kernel to use: the one that Variable names, or the fastest. A name that this
// processor does not have is an error, so that a test which forces a kernel cannot run another one.
// The variable is read once.
var Selected = sync.OnceValues(func() (*Kernel, error) { return choose(os.Getenv(Variable)) })

func choose(name string) (*Kernel, error) {
	all := Available()
	if name == "" {
		return all[0], nil
	}
	names := make([]string, len(all))
	for i, k := range all {
		if k.name == name {
			return k, nil
		}
		names[i] = k.name
	}
	return nil, fmt.Errorf("%s is %q, which this processor does not have; it has %s", Variable,
		name, strings.Join(names, ", "))
}

// micro is a micro-kernel with the sizes that it wants. The zero value says that there is none.
//
// For every panel p < panels, row i < rows and column j < cols of it,
//
//	δ = Σ_k l_ik·r_kj      t = w + scale·δ      e = lBound_i·rNorm_j + 2u·|t| + floor
//
// with products summed in chunks of 16, each in ascending order of k (with or without fused
// multiply-add), and the chunks in order: see roundings. An element is decided if no value within e
// of t, t itself included, rounds to another value of D than t does, and that value is finite; t
// with a sign that e leaves open is not decided. (What computing e and t ± e rounds may be missing
// from e: u·(|t|+e) and four units at the bottom of T. Who makes the bound adds it.) The
// micro-kernel stores the value, adds w², δ², d² and (d−δ)² to the sums, with d = (out−w)·inverse,
// and counts out = w. It leaves an element that it does not decide as it is, out of the sums, and
// sets bit j of undecided[p·rows+i]; it clears the others. NaN and infinity anywhere in w, l, r or
// a bound make an element undecided. It may leave any element undecided.
type micro[T Float] struct {
	rows int // of a tile
	cols int // of a tile, and of the panels in which R is packed; at most 64
	// the most that it takes in one call, so that float32 sums of squares keep a relative error
	// below 2⁻¹⁷
	panels int
	run    func(*block[T])
}

// block is the argument of a micro-kernel: a row of tiles.
type block[T Float] struct {
	// rows lines, stride bytes apart, of panels·cols elements each; any alignment
	w         []byte
	stride    int      // in bytes, at least panels·cols elements
	l         []T      // rows×rank, row-major, S included
	r         []T      // panels × rank × cols
	rank      int      // at least 1
	panels    int      // 1 … micro.panels
	lBound    []T      // rows
	rNorm     []T      // panels×cols
	floor     T        // what underflow can cost
	scale     T        // a power of two, or 0: then δ is in the bound
	inverse   T        // 1/scale, or 1
	sums      sums     // added to
	undecided []uint64 // panels×rows

	room [4][64]T // of the portable kernel
}

// sums is the part of Stats that a micro-kernel gathers.
type sums struct {
	unchanged int64
	squares   [4]float64 // of w, and in units of the scale of δ, out−w, out−w−δ
}

func (s *sums) add(w, delta, moved float64) {
	if moved == 0 {
		s.unchanged++
	}
	s.squares[0] += w * w
	s.squares[1] += delta * delta
	s.squares[2] += moved * moved
	s.squares[3] += (moved - delta) * (moved - delta)
}

// addTo adds the sums to st. The unit of δ is 2^exp.
func (s *sums) addTo(st *Stats, exp int) {
	st.Unchanged += s.unchanged
	st.NormW.mid += s.squares[0]
	if exp == 0 { // as it nearly always is, some nanoseconds for each tile
		st.NormDelta.mid += s.squares[1]
		st.NormStored.mid += s.squares[2]
		st.NormError.mid += s.squares[3]
		return
	}
	st.NormDelta.addSum(s.squares[1], exp)
	st.NormStored.addSum(s.squares[2], exp)
	st.NormError.addSum(s.squares[3], exp)
}

// microFor picks the micro-kernel for a base of dtype d whose factors have type T. There is none
// for a float64 result, which no float64 pass can decide.
func microFor[T Float](k *Kernel, d dtype.Type) micro[T] {
	if d == dtype.F64 {
		return micro[T]{rows: 1, cols: 1}
	}
	var m any
	switch d {
	case dtype.BF16:
		m = k.bf16
	case dtype.F16:
		m = k.f16
	case dtype.F32:
		m = k.f32
	}
	if m, ok := m.(micro[T]); ok && m.run != nil {
		return m
	}
	return any(portable(d, any(T(0)) == any(float32(0)))).(micro[T])
}
