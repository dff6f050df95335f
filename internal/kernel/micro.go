package kernel

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

// chunk is the length of the sums of products that are then summed up: see micro.
const chunk = 16
