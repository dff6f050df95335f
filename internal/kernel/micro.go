package kernel

// Float is the arithmetic of a fast pass.
type Float interface{ float32 | float64 }

// Kernel is an implementation of the fast pass. The portable kernel takes over whatever it lacks.
type Kernel struct {
	name string
	bf16 micro[float32]
	f16  micro[float32]
	f32  micro[float64]

	bf16Widened micro[float32]
	f16Widened  micro[float32]
	f32Widened  micro[float64]

	bf16Recording micro[float32] // with the same tiles as bf16

	dot func(l, r []float32, stride int) float64 // nil for the one in Go
}

func (k *Kernel) String() string { return k.name }

// micro is a micro-kernel with its sizes. The zero value means that there is none.
//
// For every panel p < panels, row i < rows and column j < cols of the panel,
//
//	δ = Σ_k l_ik·r_kj      t = w + scale·δ      e = lBound_i·rNorm_j + 2u·|t| + floor
//
// Products are summed in chunks of 16, each in ascending order of k (with or without fused
// multiply-add), and then the chunks in order: see roundings. An element is decided if t and every
// value within e of it round to the same finite value of D. If e leaves the sign of t open, the
// element is not decided. (e need not include the roundings of e and t ± e: u·(|t|+e) and four of
// T's smallest units. The packed bounds pay for them.) For a decided element the micro-kernel
// stores the value, adds w², δ², d² and (d−δ)² to the sums, with d = (out−w)·inverse, and counts
// out = w. It leaves an undecided element unchanged and out of the sums, and sets bit j of
// undecided[p·rows+i]; it clears the other bits. NaN or infinity in w, l, r or a bound makes an
// element undecided. A micro-kernel may leave any element undecided.
//
// A widened micro-kernel has W in numbers of T, which D may not hold, and stores results of D as
// such numbers. In float32 a number of W may be a rounded one, so e has 3u·|t| in place of 2u·|t|:
// see merge/proof.go.
//
// A recording micro-kernel, with the scale 1, also predicts w from the result of a decided element:
// it decides p = out − δ as t. Bit 32+j of undecided[p·rows+i] says that p is undecided; then the
// bits of w are in z. Otherwise z is the residual of w against p, and bit p·cols+j of differs[i]
// says that it is not zero. Of elements that are undecided themselves, z and the other two bits may
// be anything.
type micro[T Float] struct {
	rows int // of a tile
	cols int // of a tile and of R's panels; at most 64
	// largest number of panels per call, so that float32 sums of squares keep a relative error
	// below 2⁻¹⁷
	panels int
	fuses  bool // multiply-add rounds once
	run    func(*block[T])
}

// block holds the arguments of a micro-kernel: a row of tiles.
type block[T Float] struct {
	// rows lines, stride bytes apart, of panels·cols elements each; any alignment; results too
	w         []byte
	stride    int      // in bytes, at least panels·cols elements
	l         []T      // rows×rank, row-major, S included
	r         []T      // panels × rank × cols
	rank      int      // at least 1
	panels    int      // 1 … micro.panels
	lBound    []T      // rows
	rNorm     []T      // panels×cols
	floor     T        // cost of underflow
	scale     T        // a power of two, or 0 if the bound includes δ
	inverse   T        // 1/scale, or 1
	sums      sums     // the kernel adds to them
	undecided []uint64 // panels×rows

	// for recording only
	z       []byte              // two bytes an element, in lines as w
	differs [][lineWords]uint64 // rows

	room [4][64]T // for the portable kernel
}

// lineWords is how many words hold a bit for each column of a recording micro-kernel's call.
const lineWords = 4

// sums are the statistics that a micro-kernel gathers.
type sums struct {
	unchanged int64
	squares   [4]float64 // of w; then, in units of the scale of δ, of δ, out−w and out−w−δ
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
	if exp == 0 { // the usual case, a few nanoseconds per tile
		st.NormDelta.mid += s.squares[1]
		st.NormStored.mid += s.squares[2]
		st.NormError.mid += s.squares[3]
		return
	}
	st.NormDelta.addSum(s.squares[1], exp)
	st.NormStored.addSum(s.squares[2], exp)
	st.NormError.addSum(s.squares[3], exp)
}

// chunk is the number of products in a partial sum: see micro.
const chunk = 16
