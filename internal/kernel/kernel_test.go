package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// problem is a matrix and its update as float64 values, from which updates in either arithmetic are
// made.
type problem struct {
	d          dtype.Type
	rows, cols int
	w          []float64
	terms      []plainTerm
	right      []byte // a result found correct, shared by all kernels
}

type plainTerm struct {
	s    float64
	rank int
	l, r []float64
}

func prepare[T Float](k *Kernel, p *problem) *Update[T] {
	return packTerms(k, p.d, p.rows, p.cols, termsOf[T](p))
}

func prepareWidened[T Float](t *testing.T, k *Kernel, p *problem) *Update[T] {
	u, err := PrepareWidened(t.Context(), k, p.d, p.rows, p.cols, termsOf[T](p))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func termsOf[T Float](p *problem) []Term[T] {
	terms := make([]Term[T], len(p.terms))
	for i, t := range p.terms {
		terms[i] = Term[T]{S: t.s, Rank: t.rank, L: convert[T](t.l), R: convert[T](t.r)}
	}
	return terms
}

// packTerms is Prepare under a context that never ends.
func packTerms[T Float](k *Kernel, d dtype.Type, rows, cols int, terms []Term[T]) *Update[T] {
	u, err := Prepare(context.Background(), k, d, rows, cols, terms)
	if err != nil {
		panic(err)
	}
	return u
}

func (p *problem) bytes() []byte {
	w := make([]byte, p.rows*p.cols*p.d.Size())
	for i, x := range p.w {
		dtype.Store(p.d, w, i, x)
	}
	return w
}

func convert[T Float](x []float64) []T {
	y := make([]T, len(x))
	for i := range x {
		y[i] = T(x[i])
	}
	return y
}

// exact is the oracle: w + Δ as a rational number. It shares no arithmetic with the kernels.
func (p *problem) exact(i, j int) (sum, delta *big.Rat) {
	delta = new(big.Rat)
	for _, term := range p.terms {
		for k := range term.rank {
			q := new(big.Rat).Mul(new(big.Rat).SetFloat64(term.l[i*term.rank+k]),
				new(big.Rat).SetFloat64(term.r[k*p.cols+j]))
			delta.Add(delta, q.Mul(q, new(big.Rat).SetFloat64(term.s)))
		}
	}
	return new(big.Rat).Add(delta, new(big.Rat).SetFloat64(p.w[i*p.cols+j])), delta
}

// isNearest reports whether got holds the bits of RN_D(x): no other value is nearer, and in a tie
// got is even.
func isNearest(d dtype.Type, got uint64, x *big.Rat) bool {
	return isNearestTo(d, got, x.Sign(), new(big.Rat).Abs(x).Cmp)
}

// isNearestTo is isNearest for a number given by its sign and by comparisons of its magnitude.
func isNearestTo(d dtype.Type, got uint64, xSign int, compare func(*big.Rat) int) bool {
	sign := uint64(1) << (d.Bits() - 1)
	mag := got &^ sign
	if xSign != 0 && (got&sign != 0) != (xSign < 0) {
		return false
	}
	inf := map[dtype.Type]uint64{dtype.BF16: 0x7f80, dtype.F16: 0x7c00, dtype.F32: 0x7f800000,
		dtype.F64: 0x7ff << 52}[d]
	value := func(bits uint64) *big.Rat {
		if bits == inf { // the number after the largest one
			return new(big.Rat).Sub(new(big.Rat).Mul(big.NewRat(2, 1), value(d, inf-1)),
				value(d, inf-2))
		}
		return value(d, bits)
	}
	if mag > inf {
		return false
	}
	odd := mag&1 == 1
	half := func(a, b uint64) *big.Rat {
		m := new(big.Rat).Add(value(a), value(b))
		return m.Mul(m, big.NewRat(1, 2))
	}
	if mag > 0 {
		if c := compare(half(mag-1, mag)); c < 0 || c == 0 && odd {
			return false
		}
	}
	if mag < inf {
		if c := compare(half(mag, mag+1)); c > 0 || c == 0 && odd {
			return false
		}
	}
	return true
}

// value returns the number with the given bits. Infinity stands for a number larger than all
// others.
func value(d dtype.Type, bits uint64) *big.Rat {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], bits)
	x := dtype.Load(d, b[:], 0)
	if math.IsInf(x, 0) {
		return new(big.Rat).SetFrac(new(big.Int).Lsh(big.NewInt(int64(math.Copysign(1, x))), 2000),
			big.NewInt(1))
	}
	return new(big.Rat).SetFloat64(x)
}

func bitsAt(d dtype.Type, b []byte, i int) uint64 {
	var x [8]byte
	copy(x[:], b[i*d.Size():(i+1)*d.Size()])
	return binary.LittleEndian.Uint64(x[:])
}

// check merges a problem and compares every element with the oracle.
func check[T Float](t *testing.T, name string, k *Kernel, p *problem) Stats {
	t.Helper()
	name = fmt.Sprintf("%s/%v/%v", name, k, 8*sizeOf[T]())
	u := prepare[T](k, p)
	before := p.bytes()
	w := bytes.Clone(before)
	guard := guarded(&w)
	checkFactors := guardFactors(u)
	st, scratch := Stats{}, new(Scratch[T])
	for i := range scratch.block.room {
		for j := range scratch.block.room[i] {
			scratch.block.room[i][j] = T(math.NaN())
		}
	}
	u.Merge(t.Context(), w, 0, &st, scratch)
	guard(t, name)
	checkFactors(t, name)
	p.checkResult(t, name, before, w)
	var unchanged int64
	for n := range p.rows * p.cols {
		x, y := dtype.Load(p.d, before, n), dtype.Load(p.d, w, n)
		if x == y || x != x && y != y {
			unchanged++
		}
	}
	if st.Elements != int64(p.rows*p.cols) || st.Unchanged != unchanged {
		t.Errorf("%s: stats say %d elements, %d unchanged, want %d and %d", name, st.Elements,
			st.Unchanged, p.rows*p.cols, unchanged)
	}
	return st
}

// checkResult compares every element with exact arithmetic, or with a result checked before.
func (p *problem) checkResult(t *testing.T, name string, before, w []byte) {
	t.Helper()
	if p.right != nil && bytes.Equal(w, p.right) {
		return
	}
	for i := range p.rows {
		for j := range p.cols {
			n := i*p.cols + j
			got, was := bitsAt(p.d, w, n), bitsAt(p.d, before, n)
			x, delta := p.exact(i, j)
			if delta.Sign() == 0 {
				if got != was {
					t.Fatalf("%s: (%d,%d): Δ is 0 and %#x became %#x", name, i, j, was, got)
				}
				continue
			}
			if x.Sign() == 0 && got != 0 {
				t.Fatalf("%s: (%d,%d): w + Δ cancels to 0 and gave %#x, want +0", name, i, j, got)
			}
			if !isNearest(p.d, got, x) {
				f, _ := x.Float64()
				t.Fatalf("%s: (%d,%d): %v + Δ = %v gave %#x, which is not the nearest %v", name, i,
					j, p.w[n], f, got, p.d)
			}
		}
	}
	if p.right != nil {
		t.Fatalf("%s: right, and not the bytes of another kernel", name)
	}
	p.right = bytes.Clone(w)
}

// guarded moves a buffer to an odd address in a larger one, and returns a check that the
// surroundings stay the same.
func guarded(buf *[]byte) func(*testing.T, string) {
	const band = 4097
	outer := bytes.Repeat([]byte{0xa5}, len(*buf)+2*band)
	copy(outer[band:], *buf)
	*buf = outer[band : band+len(*buf) : band+len(*buf)]
	return func(t *testing.T, name string) {
		t.Helper()
		want := bytes.Repeat([]byte{0xa5}, band)
		if !bytes.Equal(outer[:band], want) || !bytes.Equal(outer[len(outer)-band:], want) {
			t.Fatalf("%s: the kernel wrote outside its rows", name)
		}
	}
}

// guardFactors moves all inputs of a micro-kernel between bands of NaNs, so that reading beyond an
// end spoils the result. It returns a check that nothing was written.
func guardFactors[T Float](u *Update[T]) func(*testing.T, string) {
	const band = 200
	var inner, outer [][]T
	for _, p := range []*[]T{&u.l, &u.r, &u.lBound, &u.rNorm} {
		b := make([]T, len(*p)+2*band)
		for i := range b {
			b[i] = T(math.NaN())
		}
		copy(b[band:], *p)
		inner = append(inner, *p)
		outer = append(outer, b)
		*p = b[band : band+len(*p) : band+len(*p)]
	}
	return func(t *testing.T, name string) {
		t.Helper()
		for n, b := range outer {
			for i, x := range b {
				if i < band || i >= len(b)-band {
					if x == x {
						t.Fatalf("%s: the kernel wrote beside its factors", name)
					}
				} else if y := inner[n][i-band]; x != y && (x == x || y == y) {
					t.Fatalf("%s: the kernel wrote into its factors", name)
				}
			}
		}
	}
}

// rounded rounds x to d, so that the oracle and the tile see the same base.
func rounded(d dtype.Type, x float64) float64 {
	var b [8]byte
	dtype.Store(d, b[:], 0, x)
	return dtype.Load(d, b[:], 0)
}

func randomProblem(rng *rand.Rand, d dtype.Type, rows, cols int, sigmaW float64, ranks []int, ratio,
	s float64) *problem {
	p := &problem{d: d, rows: rows, cols: cols, w: make([]float64, rows*cols)}
	for i := range p.w {
		p.w[i] = rounded(d, sigmaW*rng.NormFloat64())
	}
	for _, r := range ranks {
		term := plainTerm{s: s, rank: r, l: make([]float64, rows*r), r: make([]float64, r*cols)}
		size := math.Sqrt(ratio * sigmaW / s / math.Sqrt(float64(r)))
		for _, f := range [][]float64{term.l, term.r} {
			for i := range f {
				f[i] = float64(float32(size * rng.NormFloat64()))
			}
		}
		p.terms = append(p.terms, term)
	}
	return p
}

// all checks a problem with every kernel in every arithmetic that its dtype allows. It returns the
// stats of the first kernel in the narrowest arithmetic.
func all(t *testing.T, name string, p *problem) (st Stats) {
	t.Helper()
	for i, k := range Available() {
		var s Stats
		if p.d == dtype.BF16 || p.d == dtype.F16 {
			s = check[float32](t, name, k, p)
		}
		if p.d == dtype.F32 || i == 0 {
			wide := check[float64](t, name, k, p)
			if p.d != dtype.BF16 && p.d != dtype.F16 {
				s = wide
			}
		}
		if i == 0 {
			st = s
		}
	}
	return st
}

var floats = []dtype.Type{dtype.BF16, dtype.F16, dtype.F32, dtype.F64}

func TestEveryElementIsTheNearest(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, d := range floats {
		for i, shape := range [][2]int{{1, 1}, {3, 5}, {1, 63}, {2, 64}, {9, 65}, {17, 33}} {
			for k, ranks := range [][]int{{1}, {3}, {4}, {16}, {37}, {2, 5}, {1, 1, 1}} {
				for l, ratio := range []float64{0.001, 0.05, 1, 30} {
					if (i+k+l)%3 != 0 {
						continue // test a third of the combinations, each value with each other
					}
					p := randomProblem(rng, d, shape[0], shape[1], 0.02, ranks, ratio, 2.0/3)
					all(t, fmt.Sprintf("%v/%v/ranks %v/ratio %v", d, shape, ranks, ratio), p)
				}
			}
		}
	}
}

// TestFewElementsNeedTheSlowPass limits the share of undecided elements to the share that the bound
// implies. Without this test, a bound that is always infinite would pass all others. An element is
// undecided with probability 2e/ulp, e about u·(2|t| + c·|S|·‖l‖·‖r‖) with c the mean of
// roundings(k).
func TestFewElementsNeedTheSlowPass(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, c := range []struct {
		d    dtype.Type
		rank int
	}{{dtype.BF16, 16}, {dtype.F16, 16}, {dtype.BF16, 64}, {dtype.F16, 64}, {dtype.F16, 256}} {
		p := randomProblem(rng, c.d, 512, 512, 0.02, []int{c.rank}, 0.05, 2)
		for _, k := range Available() {
			u, st := prepare[float32](k, p), Stats{}
			want := p.expectedShare(u)
			u.Merge(t.Context(), p.bytes(), 0, &st, new(Scratch[float32]))
			if share := float64(st.Slow) / float64(st.Elements); share > 1.3*want ||
				share < 0.5*want {
				t.Errorf("%v %v rank %d: %.4f %% of the elements need the slow pass, want about %.4f %%", k, c.d, c.rank, 100*share, 100*want)
			}
		}
	}
}

func (p *problem) expectedShare(u *Update[float32]) float64 {
	var share, c float64
	term := &p.terms[0]
	for k := range term.rank {
		c += float64(u.roundings(k)) / float64(term.rank)
	}
	for i := range p.rows {
		for j := range p.cols {
			t, l2, r2 := p.w[i*p.cols+j], 0.0, 0.0
			for k, l := range term.l[i*term.rank : (i+1)*term.rank] {
				r := term.r[k*p.cols+j]
				t += term.s * l * r
				l2 += l * l
				r2 += r * r
			}
			e := 0x1p-24 * (2*math.Abs(t) + c*term.s*math.Sqrt(l2)*math.Sqrt(r2))
			share += min(1, 2*e/ulp(p.d, rounded(p.d, t)))
		}
	}
	return share / float64(p.rows*p.cols)
}

// TestAdversarialElements puts Δ on the midpoints of neighbouring values of D, and one unit beside
// them, where roundings differ.
func TestAdversarialElements(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, d := range floats {
		n := 400
		p := &problem{d: d, rows: 1, cols: n, w: make([]float64, n)}
		// One row of rank 3 gives Δ_j = 1·r0j + 1·r1j + 2⁻¹·r2j, any sum of three numbers.
		term := plainTerm{s: 1, rank: 3, l: []float64{1, 1, 0.5}, r: make([]float64, 3*n)}
		narrow := func(x float64) float64 {
			if d == dtype.F64 {
				return x
			}
			return float64(float32(x))
		}
		for j := range n {
			w := rounded(d, math.Ldexp(rng.NormFloat64(), rng.IntN(8)-4))
			next := w + ulp(d, w)
			half := (next - w) / 2
			p.w[j] = w
			set := func(a, b, c float64) {
				term.r[j], term.r[n+j], term.r[2*n+j] = narrow(a), narrow(b), narrow(c)
			}
			switch j % 8 {
			case 0: // an exact tie
				set(half, 0, 0)
			case 1: // just above
				set(half, half*0x1p-60, 0)
			case 2: // just below
				set(half, -half*0x1p-60, 0)
			case 3: // cancellation to a rest
				set(-w, half*0x1p-10, 0)
			case 4: // complete cancellation
				set(-w, 0, 0)
			case 5: // large parts that cancel and leave a tie
				set(w*1024, half, -2048*w)
			case 6: // parts that cancel and leave a hair above the tie
				set(half+half*0x1p-20, -half*0x1p-20, half*0x1p-70)
			case 7: // Δ = 0 in three parts
				set(half, -half, 0)
			}
		}
		p.terms = []plainTerm{term}
		all(t, d.String(), p)
	}
}

func ulp(d dtype.Type, x float64) float64 {
	var b [8]byte
	dtype.Store(d, b[:], 0, math.Abs(x))
	binary.LittleEndian.PutUint64(b[:], bitsAt(d, b[:], 0)+1)
	return dtype.Load(d, b[:], 0) - math.Abs(x)
}

// TestExtremeMagnitudes covers subnormal results, results beyond the largest number, factors whose
// products vanish or overflow in float32, and extreme scales.
func TestExtremeMagnitudes(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for _, d := range floats {
		for _, c := range []struct{ w, l, r, s float64 }{
			{0x1p-149, 0x1p-75, 0x1p-75, 1},
			{0x1p-140, 0x1p-149, 0x1p10, 0.3},
			{0x1p-130, 0x1p-140, 0x1p120, 0x1p-110},
			{0x1p-24, 0x1p-12, 0x1p-13, 1.1},
			{0x1p-20, 0x1p-149, 0x1p100, 0x1p30},
			{60000, 200, 30, 1},
			{0x1p127, 0x1p60, 0x1p66, 0.7},
			{1, 0x1p100, 0x1p100, 0x1p-126},
			{1, 0x1p-100, 0x1p-100, 0x1p127},
			{0x1p-1070, 0x1p-149, 0x1p-149, 0x1p-770},
			{0x1p1020, 0x1p120, 0x1p120, 0x1p780},
		} {
			p := randomProblem(rng, d, 5, 40, 1, []int{6}, 1, 1)
			p.terms[0].s = c.s
			for i := range p.w {
				p.w[i] = rounded(d, c.w*(rng.Float64()*2-1))
				if math.IsInf(p.w[i], 0) {
					p.w[i] = 1
				}
			}
			for i := range p.terms[0].l {
				p.terms[0].l[i] = float64(float32(c.l * (rng.Float64()*2 - 1)))
			}
			for i := range p.terms[0].r {
				p.terms[0].r[i] = float64(float32(c.r * (rng.Float64()*2 - 1)))
			}
			all(t, fmt.Sprintf("%v/%v", d, c), p)
		}
	}
}

// TestFloat64Factors uses factors that float32 cannot hold.
func TestFloat64Factors(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, d := range floats {
		for _, scale := range []float64{1, 0x1p-300, 0x1p-520} {
			p := randomProblem(rng, d, 4, 50, 1, []int{5}, 1, 1)
			for _, f := range [][]float64{p.terms[0].l, p.terms[0].r} {
				for i := range f {
					f[i] = scale * rng.NormFloat64()
				}
			}
			p.terms[0].s = 1 / scale
			for _, k := range Available() {
				check[float64](t, fmt.Sprintf("%v/%v", d, scale), k, p)
			}
			// Also with Δ no smaller than w, where products lost to underflow matter.
			p.right = nil
			for i := range p.w {
				p.w[i] = rounded(d, scale*p.w[i])
			}
			for _, k := range Available() {
				check[float64](t, fmt.Sprintf("%v/%v, small w", d, scale), k, p)
			}
		}
	}
}

func TestSpecialValuesGoThrough(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, d := range floats {
		for _, c := range []struct{ w, l, r, s, want float64 }{
			{nan, 1, 1, 1, nan},
			{inf, 1, 1, 1, inf},
			{-inf, 1, 1, 1, -inf},
			{1, inf, 1, 1, inf},
			{1, inf, -1, 1, -inf},
			{1, 1, inf, -1, -inf},
			{1, nan, 1, 1, nan},
			{1, inf, 0, 1, nan},
			{1, 0, inf, 1, nan},
			{inf, inf, -1, 1, nan},
			{1, inf, 1, 0, nan},
			{1, 0, 5, 1, 1},
		} {
			p := &problem{d: d, rows: 1, cols: 1, w: []float64{c.w},
				terms: []plainTerm{{s: c.s, rank: 1, l: []float64{c.l}, r: []float64{c.r}}}}
			for _, k := range Available() {
				specialValue[float64](t, k, p, c.want)
				if d == dtype.BF16 || d == dtype.F16 {
					specialValue[float32](t, k, p, c.want)
				}
			}
		}
	}
}

func specialValue[T Float](t *testing.T, k *Kernel, p *problem, want float64) {
	t.Helper()
	u, w, st := prepare[T](k, p), p.bytes(), Stats{}
	u.Merge(t.Context(), w, 0, &st, new(Scratch[T]))
	got := dtype.Load(p.d, w, 0)
	if got != want && !(got != got && want != want) {
		t.Errorf("%v: %v: %+v = %v, want %v", k, p.d, *p, got, want)
	}
	if wantAfter := want-want != 0; (st.NaNAfter == 1) != wantAfter ||
		(st.NaNBefore == 1) != (p.w[0]-p.w[0] != 0) {
		t.Errorf("%v: %v: %+v: stats %+v", k, p.d, *p, st)
	}
}

// TestBitsStayWhereNothingIsAdded: −0 and the payload of a NaN survive a Δ of zero, from a zero row
// and from zero columns.
func TestBitsStayWhereNothingIsAdded(t *testing.T) {
	w := []uint16{0x8000, 0x7fa5, 0x0001, 0x3f80}
	for name, l := range map[string]float32{"zero row": 0, "zero columns": 1} {
		for _, k := range Available() {
			got := make([]byte, 8)
			for i, h := range w {
				binary.LittleEndian.PutUint16(got[2*i:], h)
			}
			want := bytes.Clone(got)
			u := packTerms(k, dtype.BF16, 1, 4,
				[]Term[float32]{{S: 1, Rank: 1, L: []float32{l}, R: make([]float32, 4)}})
			u.Merge(t.Context(), got, 0, new(Stats), new(Scratch[float32]))
			if !bytes.Equal(got, want) {
				t.Errorf("%v: %s: % x became % x", k, name, want, got)
			}
		}
	}
}
