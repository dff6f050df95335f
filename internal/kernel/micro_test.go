package kernel

import (
	"bytes"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// These tests call micro-kernels with blocks of their own and check the contract of type micro, as
// far as exact arithmetic can. It cannot know δ, only that δ lies within spread of Δ, the exact
// sum. So a stored result must be right for every value within e of t, for every possible t.

// everyMicro calls the test for each micro-kernel that this processor can run.
func everyMicro(t *testing.T, narrow func(*testing.T, dtype.Type, tested[float32]),
	wide func(*testing.T, dtype.Type, tested[float64])) {
	for _, k := range Available() {
		for _, widened := range []bool{false, true} {
			name := map[bool]string{true: ", widened"}[widened]
			for _, d := range []dtype.Type{dtype.BF16, dtype.F16} {
				m := tested[float32]{microFor[float32](k, d, widened), widened}
				if k.String() == "portable" || m.rows > 1 {
					t.Run(fmt.Sprintf("%v/%v%s", k, d, name), func(t *testing.T) { narrow(t, d, m) })
				}
			}
			for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
				m := tested[float64]{microFor[float64](k, d, widened), widened}
				if k.String() == "portable" || m.rows > 1 {
					t.Run(fmt.Sprintf("%v/%v in float64%s", k, d, name), func(t *testing.T) { wide(t, d, m) })
				}
			}
		}
	}
}

// tested is a micro-kernel under test.
type tested[T Float] struct {
	micro[T]
	isWidened bool
}

// source returns the dtype of W.
func (m *tested[T]) source(d dtype.Type) dtype.Type {
	if m.isWidened {
		return dtypeOf[T]()
	}
	return d
}

// field is a block whose memory lies between fences that a micro-kernel must not touch.
type field[T Float] struct {
	block[T]
	d      dtype.Type
	source dtype.Type // of W
	m      tested[T]
	exactT bool // t is w + Δ without rounding

	fences  [4]fence[T] // of l, r, lBound, rNorm
	masks   fence[uint64]
	outside []byte // the buffer around w
	at      int    // position of w in outside
	before  []byte // outside, before the run
}

type fence[E any] struct{ inner, outer, before []E }

func fenced[E any](n, band int, wall E) (f fence[E]) {
	f.outer = slices.Repeat([]E{wall}, n+2*band)
	f.inner = f.outer[band : band+n : band+n]
	return f
}

// newField returns a block with rows pad bytes apart. Its parts begin at odd addresses, by shift.
func newField[T Float](d dtype.Type, m tested[T], rank, panels, pad, shift int) *field[T] {
	f := &field[T]{d: d, source: m.source(d), m: m}
	f.rank, f.panels, f.scale, f.inverse = rank, panels, 1, 1
	for i, n := range []int{m.rows * rank, panels * rank * m.cols, m.rows, panels * m.cols} {
		f.fences[i] = fenced(n, 130+shift%17+i, T(math.NaN()))
	}
	f.l, f.r, f.lBound, f.rNorm = f.fences[0].inner, f.fences[1].inner, f.fences[2].inner,
		f.fences[3].inner
	f.masks = fenced(panels*m.rows, 9, uint64(0xfeedfacefeedface))
	f.undecided = f.masks.inner
	line := panels * m.cols * f.source.Size()
	f.stride = line + pad
	f.at = 4096 + shift
	f.outside = bytes.Repeat([]byte{0xa5}, f.at+m.rows*f.stride+4096)
	f.w = f.outside[f.at:][: (m.rows-1)*f.stride+line : (m.rows-1)*f.stride+line]
	for i := range f.undecided {
		f.undecided[i] = math.MaxUint64
	}
	return f
}

// element is the position of row i, column j of panel p.
type element struct{ p, i, j int }

func (f *field[T]) elements(yield func(element) bool) {
	for p := range f.panels {
		for i := range f.m.rows {
			for j := range f.m.cols {
				if !yield(element{p, i, j}) {
					return
				}
			}
		}
	}
}

// line is the part of a row of W from e on, in w, which is f.w or a copy.
func (f *field[T]) line(w []byte, e element) []byte {
	return w[e.i*f.stride+(e.p*f.m.cols+e.j)*f.source.Size():]
}

func (f *field[T]) set(e element, x float64) { dtype.Store(f.source, f.line(f.w, e), 0, x) }

// setRight sets r_k of e's column.
func (f *field[T]) setRight(e element, k int, x T) { f.r[(e.p*f.rank+k)*f.m.cols+e.j] = x }

// truth holds the exact values of an element.
type truth struct {
	open   bool       // a factor or w is not finite
	x      *big.Float // w + Δ
	w      float64
	inner  float64 // Δ in units of the scale, rounded to float64
	delta  float64 // Δ, rounded to float64
	spread float64 // largest distance of scale·δ from Δ
	bound  float64 // lBound·rNorm + floor, rounded to float64
}

// exactPrec loses nothing: a product of two float64 numbers lies between 2⁻²¹⁴⁸ and 2²⁰⁴⁸.
const exactPrec = 8192

func (f *field[T]) truth(e element) (v truth) {
	v.w = dtype.Load(f.source, f.line(f.before[f.at:], e), 0)
	v.bound = float64(f.lBound[e.i])*float64(f.rNorm[e.p*f.m.cols+e.j]) + float64(f.floor)
	v.open = !isFinite(v.w) || !isFinite(float64(f.lBound[e.i])) ||
		!isFinite(float64(f.rNorm[e.p*f.m.cols+e.j])) || !isFinite(float64(f.floor))
	sum := new(big.Float).SetPrec(exactPrec)
	a, b := new(big.Float).SetPrec(exactPrec), new(big.Float).SetPrec(exactPrec)
	u := unit[T]()
	nChunks := (f.rank + 15) / 16
	for k := range f.rank {
		l, r := float64(f.l[e.i*f.rank+k]), float64(f.r[(e.p*f.rank+k)*f.m.cols+e.j])
		if !isFinite(l) || !isFinite(r) {
			v.open = true
			continue
		}
		sum.Add(sum, a.Mul(a.SetFloat64(l), b.SetFloat64(r)))
		// A product is rounded once, and its chunk once per later addition, except the first, which
		// adds to zero; the chunks likewise.
		inChunk := min(f.rank-k/16*16, 16)
		n := 1 + inChunk - max(k%16, 1) + nChunks - max(k/16, 1)
		v.spread += float64(n)*u*math.Abs(l*r)*(1+300*u) + smallest[T]()
	}
	v.inner, _ = sum.Float64()
	sum.Mul(sum, b.SetFloat64(float64(f.scale)))
	v.delta, _ = sum.Float64()
	v.spread = v.spread*float64(f.scale) + smallest[T]()
	if f.exactT {
		v.spread = 0
	}
	if !v.open {
		v.x = sum.Add(sum, b.SetFloat64(v.w))
	}
	return v
}

// mostCertain returns a distance: every value this near to x must round to the result of a decided
// element. It is e, minus the roundings of e and t ± e, u·(|t|+e) and a few of the smallest units,
// minus the distance of t from x. If it is negative, the result need only be right for some value
// within −mostCertain.
func (f *field[T]) mostCertain(v *truth) float64 {
	u := unit[T]()
	x, _ := v.x.Float64()
	x = math.Abs(x)
	e := v.bound*(1-4*u) - 4*smallest[T]()
	if f.m.isWidened && u == 0x1p-24 {
		e += u * x * (1 - 4*u)
	}
	if f.exactT {
		return e + u*x*(1-4*u)
	}
	return e - v.spread*(1+4*u) - 8*u*u*x
}

// check runs the micro-kernel and checks its results against the contract. It returns the number of
// undecided elements.
func (f *field[T]) check(t *testing.T, name string) (nOpen int) {
	t.Helper()
	f.before = bytes.Clone(f.outside)
	for i := range f.fences {
		f.fences[i].before = slices.Clone(f.fences[i].outer)
	}
	f.sums = sums{unchanged: 7, squares: [4]float64{0x1p-40, 0x1p-41, 0x1p-42, 0x1p-43}} // the kernel must add to these
	f.m.run(&f.block)
	f.checkFences(t, name)

	var want, slack [4]float64
	unchanged := int64(7)
	for e := range f.elements {
		v := f.truth(e)
		got := bitsAt(f.source, f.line(f.w, e), 0)
		if f.undecided[e.p*f.m.rows+e.i]>>e.j&1 == 1 {
			nOpen++
			if was := bitsAt(f.source, f.line(f.before[f.at:], e), 0); got != was {
				t.Fatalf("%s: %v is undecided and %#x became %#x", name, e, was, got)
			}
			if f.isClear(&v) {
				t.Fatalf("%s: %v is undecided: w = %v, Δ = %v, bound %v", name, e, v.w, v.delta,
					v.bound)
			}
			continue
		}
		out := dtype.Load(f.source, f.line(f.w, e), 0)
		var stored [8]byte
		if dtype.Store(f.d, stored[:], 0, out); dtype.Load(f.d, stored[:], 0) != out {
			t.Fatalf("%s: %v is %v, which %v does not have", name, e, out, f.d)
		}
		f.checkDecided(t, name, e, &v, bitsAt(f.d, stored[:], 0))
		if out == v.w {
			unchanged++
		}
		// δ is within spread of Δ, and differences round once.
		moved := (out - v.w) * float64(f.inverse)
		lost := moved - v.inner
		spread := v.spread * float64(f.inverse)
		off := spread + 2*unit[T]()*(math.Abs(moved)+math.Abs(v.inner))
		for n, x := range [4][2]float64{{v.w, 0}, {v.inner, spread},
			{moved, unit[T]() * math.Abs(moved)}, {lost, off}} {
			want[n] += x[0] * x[0]
			slack[n] += 2*math.Abs(x[0])*x[1] + x[1]*x[1] + normal[T]()
		}
	}
	if f.sums.unchanged != unchanged {
		t.Fatalf("%s: %d unchanged, want %d", name, f.sums.unchanged-7, unchanged-7)
	}
	for n, x := range f.sums.squares {
		want[n] += math.Ldexp(1, -40-n)
		if !(math.Abs(x-want[n]) <= 0x1p-17*want[n]+2*slack[n]) {
			t.Fatalf("%s: sum of squares %d is %v, want %v within %v", name, n, x, want[n],
				0x1p-17*want[n]+2*slack[n])
		}
	}
	return nOpen
}

// checkFences looks for writes outside the block.
func (f *field[T]) checkFences(t *testing.T, name string) {
	t.Helper()
	for n, x := range f.fences {
		for i := range x.outer {
			if a, b := x.outer[i], x.before[i]; a != b && (a == a || b == b) {
				t.Fatalf("%s: wrote into or beside argument %d", name, n)
			}
		}
	}
	for i, x := range f.masks.outer {
		in := i >= 9 && i < len(f.masks.outer)-9
		if in && x>>f.m.cols != 0 {
			t.Fatalf("%s: undecided[%d] is %#x, with bits beyond %d columns", name, i-9, x,
				f.m.cols)
		}
		if !in && x != 0xfeedfacefeedface {
			t.Fatalf("%s: wrote beside undecided", name)
		}
	}
	line := f.panels * f.m.cols * f.source.Size()
	for i := range f.outside {
		row, col := (i-f.at)/f.stride, (i-f.at)%f.stride
		if i >= f.at && row < f.m.rows && col < line {
			continue
		}
		if f.outside[i] != f.before[i] {
			t.Fatalf("%s: wrote beside w, at byte %d of row %d", name, col, row)
		}
	}
}

func (f *field[T]) checkDecided(t *testing.T, name string, e element, v *truth, got uint64) {
	t.Helper()
	if v.open {
		t.Fatalf("%s: %v is decided, and something in it is not finite: w = %v, bound %v", name, e,
			v.w, v.bound)
	}
	radius := f.mostCertain(v)
	c := cellOf(f.d, got)
	r := new(big.Float).SetPrec(exactPrec).SetFloat64(math.Abs(radius))
	low, high := new(big.Float).SetPrec(exactPrec), new(big.Float).SetPrec(exactPrec)
	low.Sub(v.x, r)
	high.Add(v.x, r)
	if ok := c.contains(low) && c.contains(high); radius >= 0 && !ok {
		t.Fatalf("%s: %v: w = %v, Δ = %v: stored %#x, which is not the result for all values within %v of %v", name, e, v.w, v.delta, got, radius, v.x.Text('p', 0))
	}
	if radius < 0 && (c.isAbove(high) || c.isBelow(low)) {
		t.Fatalf("%s: %v: w = %v, Δ = %v: stored %#x, which is not the result for any value within %v of %v", name, e, v.w, v.delta, got, -radius, v.x.Text('p', 0))
	}
}

// isClear reports whether leaving an element undecided would make the kernel useless: ordinary
// numbers with the same result within twice e. The contract allows that, this test does not.
func (f *field[T]) isClear(v *truth) bool {
	if v.open {
		return false
	}
	x, _ := v.x.Float64()
	least := map[dtype.Type]float64{dtype.BF16: 0x1p-100, dtype.F16: 0x1p-14,
		dtype.F32: 0x1p-100}[f.d]
	e := 2*v.bound + 2*v.spread + 4*unit[T]()*math.Abs(x)
	if math.Abs(x) < least || math.Abs(x) > 0x1p15 || e > 0x1p-11*math.Abs(x) {
		return false
	}
	var b [8]byte
	dtype.Store(f.d, b[:], 0, x)
	c := cellOf(f.d, bitsAt(f.d, b[:], 0))
	return c.contains(big.NewFloat(x-e)) && c.contains(big.NewFloat(x+e))
}

// cell is the interval of numbers that round to a value of D. Its limits are exact in float64. They
// belong to the cell if the value is even, and zero belongs to +0.
type cell struct {
	low, high             float64
	lowWithin, highWithin bool
}

// cellOf returns the cell of the value with these bits, empty for infinity and NaN.
func cellOf(d dtype.Type, pattern uint64) cell {
	top := uint64(1) << (d.Bits() - 1)
	mag := pattern &^ top
	inf := map[dtype.Type]uint64{dtype.BF16: 0x7f80, dtype.F16: 0x7c00, dtype.F32: 0x7f800000}[d]
	if mag >= inf {
		return cell{low: math.Inf(1), high: math.Inf(-1)}
	}
	magnitude := func(bits uint64) float64 {
		if bits == inf { // the next number would follow
			x, _ := value(d, inf-1).Float64()
			y, _ := value(d, inf-2).Float64()
			return x + (x - y)
		}
		x, _ := value(d, bits).Float64()
		return x
	}
	even := mag&1 == 0
	c := cell{high: (magnitude(mag) + magnitude(mag+1)) / 2, lowWithin: even, highWithin: even}
	if mag > 0 {
		c.low = (magnitude(mag-1) + magnitude(mag)) / 2
	}
	if pattern&top != 0 {
		c = cell{-c.high, -c.low, c.highWithin, c.lowWithin && mag > 0}
	}
	return c
}

func (c *cell) isAbove(x *big.Float) bool {
	s := x.Cmp(new(big.Float).SetFloat64(c.low))
	return s < 0 || s == 0 && !c.lowWithin
}

func (c *cell) isBelow(x *big.Float) bool {
	s := x.Cmp(new(big.Float).SetFloat64(c.high))
	return s > 0 || s == 0 && !c.highWithin
}

func (c *cell) contains(x *big.Float) bool { return !c.isAbove(x) && !c.isBelow(x) }

// TestMicroKernels runs random blocks with every rank that has a loop count of its own, any number
// of panels, and bounds from zero to so large that hardly an element can be decided.
func TestMicroKernels(t *testing.T) {
	everyMicro(t, randomBlocks[float32], randomBlocks[float64])
}

func randomBlocks[T Float](t *testing.T, d dtype.Type, m tested[T]) {
	rng := rand.New(rand.NewPCG(21, 22))
	for rank := 1; rank <= 71; rank++ {
		if rank == 71 {
			rank = 256
		}
		f := newField(d, m, rank, 1+rank%m.panels, rank*7%131, rank%67)
		f.fill(rng, []float64{0.001, 0.05, 1, 30}[rank%4])
		f.rescale([]float64{1, 0x1p-30, 1, 0x1p40, 0}[rank%5])
		f.check(t, fmt.Sprintf("rank %d, %d panels", rank, f.panels))
	}
}

// fill sets random numbers of ordinary size, and bounds from zero to some 2²⁰ units.
func (f *field[T]) fill(rng *rand.Rand, ratio float64) {
	for e := range f.elements {
		f.set(e, math.Ldexp(rng.NormFloat64(), rng.IntN(7)-8))
	}
	size := math.Sqrt(0.02 * ratio / math.Sqrt(float64(f.rank)))
	for _, x := range [][]T{f.l, f.r} {
		for i := range x {
			x[i] = T(size * rng.NormFloat64())
		}
	}
	for i := range f.lBound {
		f.lBound[i] = 0
		if rng.IntN(8) > 0 {
			f.lBound[i] = T(unit[T]() * 0.02 * math.Ldexp(rng.Float64(), rng.IntN(22)))
		}
	}
	for j := range f.rNorm {
		f.rNorm[j] = T(math.Ldexp(1+rng.Float64(), j%5))
	}
	f.floor = T(unit[T]() * 0.001 * float64(rng.IntN(3)))
}

// rescale sets the scale of a block and keeps Δ.
func (f *field[T]) rescale(scale float64) {
	f.scale, f.inverse = T(scale), 1
	if scale == 0 {
		return
	}
	f.inverse = T(1 / scale)
	for i := range f.l {
		f.l[i] *= f.inverse
	}
}

// TestMicroKernelsBesideMidpoints sets t itself, as the only product beside w = 0, so no rounding
// hides the kernel's decision. t lies a few units beside a midpoint of D, a value or a power of
// two, at ordinary size, subnormal, and near the largest number. The bound is a hair more, or
// clearly less, than the distance.
func TestMicroKernelsBesideMidpoints(t *testing.T) {
	everyMicro(t, besideMidpoints[float32], besideMidpoints[float64])
}

func besideMidpoints[T Float](t *testing.T, d dtype.Type, m tested[T]) {
	rng := rand.New(rand.NewPCG(23, 24))
	inf := map[dtype.Type]uint64{dtype.BF16: 0x7f80, dtype.F16: 0x7c00, dtype.F32: 0x7f800000}[d]
	fraction := map[dtype.Type]uint64{dtype.BF16: 0x7f, dtype.F16: 0x3ff, dtype.F32: 0x7fffff}[d]
	u := unit[T]()
	nOpen, n := 0, 0
	for round := range 60 {
		f := newField(d, m, 1, m.panels, 0, round)
		f.exactT = true
		f.l[0] = 1
		for i := range m.rows {
			f.l[i] = T(math.Ldexp(1, -i%3))
			f.lBound[i] = f.l[i]
		}
		f.floor = T(smallest[T]() * float64(round%3))
		for e := range f.elements {
			if e.i > 0 {
				f.set(e, 0)
				continue // t is row 0's, times a power of two
			}
			f.set(e, 0)
			mag := []uint64{1, inf - 1, inf / 2, 1 + rng.Uint64N(inf-1),
				inf/2 + 1 + rng.Uint64N(64), inf/2 - rng.Uint64N(64),
				(1 + rng.Uint64N(inf-1)) &^ fraction}[rng.IntN(7)]
			c := cellOf(d, mag)
			itself, _ := value(d, mag).Float64()
			at := []float64{c.low, c.high, itself}[rng.IntN(3)]
			x := T(at)
			unitAt := float64(x) * 2 * u
			x = T(at + float64(rng.IntN(7)-3)*unitAt*float64(1+7*rng.IntN(2)))
			if rng.IntN(2) == 0 {
				x = -x
			}
			f.setRight(e, 0, x)
			abs := math.Abs(float64(x))
			distance := math.Abs(abs - at)
			// Below a power of two the midpoint is half as far away as above.
			f.rNorm[e.p*m.cols+e.j] = T([]float64{0, distance, distance * (1 + 4*u),
				distance - 2*u*abs, distance / 2.5, 3 * distance,
				1.3 * (abs - c.low), 0.7 * (abs - c.low), abs * abs}[rng.IntN(9)])
			if y := f.rNorm[e.p*m.cols+e.j]; y < 0 {
				f.rNorm[e.p*m.cols+e.j] = -y
			}
		}
		nOpen += f.check(t, fmt.Sprintf("round %d", round))
		n += f.panels * m.rows * m.cols
	}
	if nOpen < n/8 || nOpen > n*7/8 {
		t.Errorf("%d of %d elements are undecided: the test has lost its edge", nOpen, n)
	}
}

// TestMicroKernelsLeaveOpen puts one value that forbids a decision into a block of ordinary
// numbers, and checks its row, column or element.
func TestMicroKernelsLeaveOpen(t *testing.T) {
	everyMicro(t, leaveOpen[float32], leaveOpen[float64])
}

func leaveOpen[T Float](t *testing.T, d dtype.Type, m tested[T]) {
	rng := rand.New(rand.NewPCG(25, 26))
	const rank = 19
	inf, nan := math.Inf(1), math.NaN()
	row := func(at element) func(element) bool { return func(e element) bool { return e.i == at.i } }
	column := func(at element) func(element) bool {
		return func(e element) bool { return e.p == at.p && e.j == at.j }
	}
	one := func(at element) func(element) bool { return func(e element) bool { return e == at } }
	huge := map[dtype.Type]float64{dtype.BF16: maxBF16, dtype.F16: maxF16, dtype.F32: maxF32}[d]
	// alone zeroes the products of a column and a row, except number 0, which is x in this element.
	alone := func(f *field[T], at element, w, x float64) {
		f.set(at, w)
		for k := range rank {
			f.setRight(at, k, 0)
		}
		f.setRight(at, 0, T(x))
		f.l[at.i*rank] = 1
		f.lBound[at.i], f.rNorm[at.p*m.cols+at.j] = 0, 0
	}
	for name, c := range map[string]struct {
		set   func(f *field[T], at element, x float64)
		where func(element) func(element) bool
		with  []float64
	}{
		"w": {func(f *field[T], at element, x float64) { f.set(at, x) }, one,
			[]float64{nan, inf, -inf}},
		"l": {func(f *field[T], at element, x float64) { f.l[at.i*rank+at.j%rank] = T(x) }, row,
			[]float64{nan, inf, -inf}},
		"r": {func(f *field[T], at element, x float64) { f.setRight(at, at.i%rank, T(x)) }, column,
			[]float64{nan, inf, -inf}},
		"l = 0 and r": {func(f *field[T], at element, x float64) {
			f.setRight(at, rank-1, T(x))
			for i := range m.rows {
				f.l[i*rank+rank-1] = 0
			}
		}, column, []float64{nan, inf, -inf}},
		"lBound": {func(f *field[T], at element, x float64) { f.lBound[at.i] = T(x) }, row,
			[]float64{nan, inf}},
		"rNorm": {func(f *field[T], at element, x float64) { f.rNorm[at.p*m.cols+at.j] = T(x) },
			column, []float64{nan, inf}},
		"floor": {func(f *field[T], at element, x float64) { f.floor = T(x) },
			func(element) func(element) bool { return func(element) bool { return true } },
			[]float64{nan, inf}},
		"overflow": {func(f *field[T], at element, x float64) { alone(f, at, x*huge, x*huge) }, one,
			[]float64{1, -1}},
		"no overflow but for e": {func(f *field[T], at element, x float64) {
			alone(f, at, x*huge, 0)
			f.floor = T(huge)
		}, one, []float64{1, -1}},
		"sign open": {func(f *field[T], at element, x float64) {
			alone(f, at, x, -x)
			f.floor = T(normal[T]())
		}, one, []float64{0.5, -0.5}},
		"tiny, sign open": {func(f *field[T], at element, x float64) {
			alone(f, at, 0, x)
			f.lBound[at.i], f.rNorm[at.p*m.cols+at.j] = 1, T(math.Abs(x))
			f.rNorm[at.p*m.cols+at.j] *= 2
		}, one, []float64{0x1p-60, -0x1p-60, 0x1p-120, -0x1p-120}},
		"sums that overflow": {func(f *field[T], at element, x float64) {
			for k := range rank {
				f.setRight(at, k, T(x))
			}
			for i := range m.rows {
				for k := range rank {
					f.l[i*rank+k] = T([]float64{x, -x}[k%2])
				}
			}
		}, column, []float64{float64(T(1e30)) * 1e8, 3e38}},
	} {
		for _, x := range c.with {
			if name == "sums that overflow" && sizeOf[T]() == 8 {
				x = 1e200
			}
			for range 3 {
				f := newField(d, m, rank, 2, 5, rng.IntN(64))
				f.fill(rng, 0.05)
				at := element{rng.IntN(2), rng.IntN(m.rows), rng.IntN(m.cols)}
				c.set(f, at, x)
				f.check(t, fmt.Sprintf("%s = %v at %v", name, x, at))
				where := c.where(at)
				for e := range f.elements {
					if where(e) && f.undecided[e.p*m.rows+e.i]>>e.j&1 == 0 {
						t.Fatalf("%s = %v at %v: %v is decided", name, x, at, e)
					}
				}
			}
		}
	}
}
