package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// problem is a tile in plain float64 values, from which tiles of either arithmetic are made.
type problem struct {
	d          dtype.Type
	rows, cols int
	w          []float64
	terms      []plainTerm
}

type plainTerm struct {
	s    float64
	rank int
	l, r []float64
}

func makeTile[T Float](p *problem) *Tile[T] {
	t := &Tile[T]{D: p.d, Rows: p.rows, Cols: p.cols, W: make([]byte, p.rows*p.cols*p.d.Size())}
	for i, x := range p.w {
		dtype.Store(p.d, t.W, i, x)
	}
	for _, term := range p.terms {
		l, r := convert[T](term.l), convert[T](term.r)
		k := Term[T]{S: term.s, Rank: term.rank, L: l, R: r, Stride: p.cols, LNorm: make([]T, p.rows), RNorm: make([]T, p.cols), RFinite: true}
		for _, x := range r {
			k.RFinite = k.RFinite && x-x == 0
		}
		RowNorms(k.LNorm, l, term.rank)
		ColumnNorms(k.RNorm, r)
		t.Terms = append(t.Terms, k)
	}
	return t
}

func convert[T Float](x []float64) []T {
	y := make([]T, len(x))
	for i := range x {
		y[i] = T(x[i])
	}
	return y
}

// exact is the oracle: w + Δ as a rational number, in arithmetic that shares nothing with the kernels.
func (p *problem) exact(i, j int) (sum, delta *big.Rat) {
	delta = new(big.Rat)
	for _, term := range p.terms {
		for k := range term.rank {
			q := new(big.Rat).Mul(new(big.Rat).SetFloat64(term.l[i*term.rank+k]), new(big.Rat).SetFloat64(term.r[k*p.cols+j]))
			delta.Add(delta, q.Mul(q, new(big.Rat).SetFloat64(term.s)))
		}
	}
	return new(big.Rat).Add(delta, new(big.Rat).SetFloat64(p.w[i*p.cols+j])), delta
}

// isNearest reports whether the bits of a value of D are RN_D(x): no other value is nearer, and none as near is even.
func isNearest(d dtype.Type, got uint64, x *big.Rat) bool {
	sign := uint64(1) << (d.Bits() - 1)
	mag := got &^ sign
	if x.Sign() != 0 && (got&sign != 0) != (x.Sign() < 0) {
		return false
	}
	abs := new(big.Rat).Abs(x)
	inf := map[dtype.Type]uint64{dtype.BF16: 0x7f80, dtype.F16: 0x7c00, dtype.F32: 0x7f800000, dtype.F64: 0x7ff << 52}[d]
	value := func(bits uint64) *big.Rat {
		if bits == inf { // the number that would follow the largest one
			return new(big.Rat).Sub(new(big.Rat).Mul(big.NewRat(2, 1), value(d, inf-1)), value(d, inf-2))
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
		if c := abs.Cmp(half(mag-1, mag)); c < 0 || c == 0 && odd {
			return false
		}
	}
	if mag < inf {
		if c := abs.Cmp(half(mag, mag+1)); c > 0 || c == 0 && odd {
			return false
		}
	}
	return true
}

// value is the number with the given bits; infinity stands for a number larger than all others.
func value(d dtype.Type, bits uint64) *big.Rat {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], bits)
	x := dtype.Load(d, b[:], 0)
	if math.IsInf(x, 0) {
		return new(big.Rat).SetFrac(new(big.Int).Lsh(big.NewInt(int64(math.Copysign(1, x))), 2000), big.NewInt(1))
	}
	return new(big.Rat).SetFloat64(x)
}

func bitsAt(d dtype.Type, b []byte, i int) uint64 {
	var x [8]byte
	copy(x[:], b[i*d.Size():(i+1)*d.Size()])
	return binary.LittleEndian.Uint64(x[:])
}

// check merges a problem and compares every element with the oracle.
func check[T Float](t *testing.T, name string, fast Fast[T], p *problem) Stats {
	t.Helper()
	tile := makeTile[T](p)
	before := bytes.Clone(tile.W)
	guard := guarded(&tile.W)
	var st Stats
	Merge(fast, tile, &st, new(Scratch[T]))
	guard(t)
	var unchanged int64
	for i := range p.rows {
		for j := range p.cols {
			n := i*p.cols + j
			got, was := bitsAt(p.d, tile.W, n), bitsAt(p.d, before, n)
			if value(p.d, got).Cmp(value(p.d, was)) == 0 {
				unchanged++
			}
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
				t.Fatalf("%s: (%d,%d): %v + Δ = %v gave %#x, which is not the nearest %v", name, i, j, p.w[n], f, got, p.d)
			}
		}
	}
	if st.Elements != int64(p.rows*p.cols) || st.Unchanged != unchanged {
		t.Errorf("%s: stats say %d elements, %d unchanged, want %d and %d", name, st.Elements, st.Unchanged, p.rows*p.cols, unchanged)
	}
	return st
}

// guarded moves a buffer into a larger one and returns a check that nothing around it was written.
func guarded(buf *[]byte) func(*testing.T) {
	const band = 64
	outer := bytes.Repeat([]byte{0xa5}, len(*buf)+2*band)
	copy(outer[band:], *buf)
	*buf = outer[band : band+len(*buf) : band+len(*buf)]
	return func(t *testing.T) {
		t.Helper()
		want := bytes.Repeat([]byte{0xa5}, band)
		if !bytes.Equal(outer[:band], want) || !bytes.Equal(outer[len(outer)-band:], want) {
			t.Fatal("the kernel wrote outside its tile")
		}
	}
}

// rounded makes a value of d, so that the oracle and the tile see the same base.
func rounded(d dtype.Type, x float64) float64 {
	var b [8]byte
	dtype.Store(d, b[:], 0, x)
	return dtype.Load(d, b[:], 0)
}

func randomProblem(rng *rand.Rand, d dtype.Type, rows, cols int, sigmaW float64, ranks []int, ratio, s float64) *problem {
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

// both checks a problem in the arithmetics that its dtype allows.
func both(t *testing.T, name string, p *problem) (st Stats) {
	t.Helper()
	if p.d == dtype.BF16 || p.d == dtype.F16 {
		st = check(t, name+"/float32", Portable[float32], p)
		check(t, name+"/float64", Portable[float64], p)
		return st
	}
	return check(t, name, Portable[float64], p)
}

var floats = []dtype.Type{dtype.BF16, dtype.F16, dtype.F32, dtype.F64}

func TestEveryElementIsTheNearest(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, d := range floats {
		for i, shape := range [][2]int{{1, 1}, {3, 5}, {1, chunk - 1}, {1, chunk}, {2, chunk + 1}, {9, 17}} {
			for k, ranks := range [][]int{{1}, {3}, {4}, {16}, {37}, {2, 5}, {1, 1, 1}} {
				for l, ratio := range []float64{0.001, 0.05, 1, 30} {
					if (i+k+l)%3 != 0 {
						continue // a third of the combinations, each value with each other
					}
					p := randomProblem(rng, d, shape[0], shape[1], 0.02, ranks, ratio, 2.0/3)
					both(t, fmt.Sprintf("%v/%v/ranks %v/ratio %v", d, shape, ranks, ratio), p)
				}
			}
		}
	}
}

// TestFewElementsNeedTheSlowPass holds the fast pass to the shares that NUMERICS §1 states for one accumulator, with a
// margin of two for the coarser bound; without it a bound that is always infinite would pass every other test.
func TestFewElementsNeedTheSlowPass(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, c := range []struct {
		d     dtype.Type
		rank  int
		share float64
	}{{dtype.BF16, 16, 0.0007}, {dtype.F16, 16, 0.0038}, {dtype.BF16, 64, 0.004}, {dtype.F16, 64, 0.024}} {
		p := randomProblem(rng, c.d, 256, 512, 0.02, []int{c.rank}, 0.05, 2)
		tile, st := makeTile[float32](p), Stats{}
		Merge(Portable[float32], tile, &st, new(Scratch[float32]))
		if share := float64(st.Slow) / float64(st.Elements); share > 2*c.share || st.Slow == 0 {
			t.Errorf("%v rank %d: %.4f %% of the elements need the slow pass, want about %.4f %%", c.d, c.rank, 100*share, 100*c.share)
		}
	}
}

// TestAdversarialElements puts Δ on, and one unit beside, the midpoints of neighbouring values of D, where roundings differ.
func TestAdversarialElements(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, d := range floats {
		n := 400
		p := &problem{d: d, rows: 1, cols: n, w: make([]float64, n)}
		// One row, rank 3: Δ_j = 1·r0j + 1·r1j + 2⁻¹·r2j, so that Δ can be any sum of three numbers.
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
			set := func(a, b, c float64) { term.r[j], term.r[n+j], term.r[2*n+j] = narrow(a), narrow(b), narrow(c) }
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
		both(t, d.String(), p)
	}
}

func ulp(d dtype.Type, x float64) float64 {
	var b [8]byte
	dtype.Store(d, b[:], 0, math.Abs(x))
	binary.LittleEndian.PutUint64(b[:], bitsAt(d, b[:], 0)+1)
	return dtype.Load(d, b[:], 0) - math.Abs(x)
}

// TestExtremeMagnitudes covers subnormal results, results beyond the largest number, factors whose products vanish or
// overflow in float32, and scales at both ends.
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
			name := fmt.Sprintf("%v/%v", d, c)
			if (d == dtype.BF16 || d == dtype.F16) && c.s >= MinScale32 && c.s <= MaxScale32 {
				check(t, name, Portable[float32], p)
			}
			check(t, name, Portable[float64], p)
		}
	}
}

// TestFloat64Factors: factors that no float32 holds.
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
			check(t, fmt.Sprintf("%v/%v", d, scale), Portable[float64], p)
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
			p := &problem{d: d, rows: 1, cols: 1, w: []float64{c.w}, terms: []plainTerm{{s: c.s, rank: 1, l: []float64{c.l}, r: []float64{c.r}}}}
			tile, st := makeTile[float64](p), Stats{}
			Merge(Portable[float64], tile, &st, new(Scratch[float64]))
			got := dtype.Load(d, tile.W, 0)
			if got != c.want && !(got != got && c.want != c.want) {
				t.Errorf("%v: %v + %v·%v·%v = %v, want %v", d, c.w, c.s, c.l, c.r, got, c.want)
			}
			if wantAfter := c.want-c.want != 0; (st.NaNAfter == 1) != wantAfter || (st.NaNBefore == 1) != (c.w-c.w != 0) {
				t.Errorf("%v: %+v: stats %+v", d, c, st)
			}
		}
	}
}

// TestBitsStayWhereNothingIsAdded: −0 and the payload of a NaN survive a Δ of zero, by a zero row and by zero columns.
func TestBitsStayWhereNothingIsAdded(t *testing.T) {
	w := []uint16{0x8000, 0x7fa5, 0x0001, 0x3f80}
	for name, l := range map[string]float32{"zero row": 0, "zero columns": 1} {
		tile := &Tile[float32]{D: dtype.BF16, Rows: 1, Cols: 4, W: make([]byte, 8)}
		for i, h := range w {
			binary.LittleEndian.PutUint16(tile.W[2*i:], h)
		}
		want := bytes.Clone(tile.W)
		term := Term[float32]{S: 1, Rank: 1, L: []float32{l}, R: make([]float32, 4), LNorm: make([]float32, 1), RNorm: make([]float32, 4), Stride: 4, RFinite: true}
		RowNorms(term.LNorm, term.L, 1)
		ColumnNorms(term.RNorm, term.R)
		tile.Terms = []Term[float32]{term}
		Merge(Portable[float32], tile, new(Stats), new(Scratch[float32]))
		if !bytes.Equal(tile.W, want) {
			t.Errorf("%s: % x became % x", name, want, tile.W)
		}
	}
}

func BenchmarkPortable(b *testing.B) {
	rng := rand.New(rand.NewPCG(13, 14))
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16} {
		for _, r := range []int{8, 16, 64} {
			p := randomProblem(rng, d, 256, 2048, 0.02, []int{r}, 0.05, 2)
			tile, st := makeTile[float32](p), Stats{}
			w, scratch := bytes.Clone(tile.W), new(Scratch[float32])
			b.Run(fmt.Sprintf("m=256/n=2048/r=%d/dtype=%v", r, d), func(b *testing.B) {
				b.SetBytes(int64(len(w)))
				for b.Loop() {
					copy(tile.W, w)
					Merge(Portable[float32], tile, &st, scratch)
				}
			})
		}
	}
}
