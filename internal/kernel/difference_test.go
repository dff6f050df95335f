package kernel

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestDifference compares the kernels of this processor with the portable one, bit for bit, and the
// portable one with the definitions: an element rounded once, and sums in float64.
func TestDifference(t *testing.T) {
	fast := differences
	defer func() { differences = fast }()
	portable := func(*differenceSums, []float32, dtype.Type, []byte, []byte) int { return 0 }
	types := []dtype.Type{dtype.BF16, dtype.F16, dtype.F32}
	rng := rand.New(rand.NewPCG(71, 72))
	for _, tuned := range types {
		for _, base := range types {
			for _, n := range []int{1, 3, 4, 7, 8, 9, 16, 511, 512, 513, 1030} {
				w1, w0 := finiteBits(rng, tuned, n), finiteBits(rng, base, n)
				differences = portable
				want := make([]float32, n)
				sums := Difference(want, tuned, w1, base, w0)
				checkDifference(t, want, sums, tuned, w1, base, w0)
				differences = fast
				got := make([]float32, n+1)
				got[n] = 7
				if s := Difference(got[:n], tuned, w1, base, w0); s != sums {
					t.Errorf("%v − %v, %d elements: %+v, portable %+v", tuned, base, n, s, sums)
				}
				for i, x := range append(want, 7) {
					if math.Float32bits(got[i]) != math.Float32bits(x) {
						t.Fatalf("%v − %v, element %d of %d: %v, portable %v", tuned, base, i, n, got[i], x)
					}
				}
			}
		}
	}
}

// finiteBits returns n values of any bits, none of them infinite or NaN. A third is small, so that
// differences are too.
func finiteBits(rng *rand.Rand, d dtype.Type, n int) []byte {
	b := make([]byte, n*d.Size())
	for i := range n {
		x := math.Ldexp(rng.NormFloat64(), rng.IntN(30)-25)
		if rng.IntN(3) == 0 {
			x = math.Ldexp(rng.NormFloat64(), -60-rng.IntN(90))
		}
		dtype.Store(d, b, i, x)
	}
	return b
}

func checkDifference(t *testing.T, got []float32, s Differences, tuned dtype.Type, w1 []byte, base dtype.Type, w0 []byte) {
	t.Helper()
	var want Differences
	want.IsPlain = true
	l, _ := tuned.Layout()
	for i, x := range got {
		a, b := dtype.Load(tuned, w1, i), dtype.Load(base, w0, i)
		if x != float32(a-b) { // float64 holds it, or what it loses is far from a middle of float32
			t.Fatalf("%v − %v = %v, want %v", a, b, x, float32(a-b))
		}
		_, e := math.Frexp(a) // |a| from 2^(e−1) to 2^e
		unit := math.Ldexp(1, max(e-1, 1-l.Bias())-l.Fraction)
		if a == 0 {
			unit = math.Ldexp(1, 1-l.Bias()-l.Fraction)
		}
		if got := UnitSquares(tuned, []float64{a}); got != unit*unit {
			t.Fatalf("the unit of %v in %v is √%v, want √%v", a, tuned, got, unit*unit)
		}
		want.Energy += float64(x) * float64(x)
		want.Base += b * b
		want.Units += unit * unit
		want.IsPlain = want.IsPlain && (x == 0 || math.Abs(float64(x)) >= LeastElement)
	}
	close := func(a, b float64) bool { return math.Abs(a-b) <= 1e-12*b }
	if !close(s.Energy, want.Energy) || !close(s.Base, want.Base) || !close(s.Units, want.Units) || s.IsPlain != want.IsPlain {
		t.Errorf("%v − %v: %+v, want %+v", tuned, base, s, want)
	}
}

// TestTinyDifferencesAreFound: a difference tells of elements that normalise makes zero, and of no
// others, at every place.
func TestTinyDifferencesAreFound(t *testing.T) {
	for x, isPlain := range map[float32]bool{
		0: true, LeastElement: true, -LeastElement: true, 1: true, math.Float32frombits(0x80000000): true,
		LeastElement / 2: false, -LeastElement / 2: false, 0x1p-149: false, -0x1p-149: false, math.Nextafter32(LeastElement, 0): false,
		float32(math.Inf(1)): true, float32(math.NaN()): true,
	} {
		const n = 13
		for at := range n {
			tuned, dst := make([]byte, 4*n), make([]float32, n)
			binary.LittleEndian.PutUint32(tuned[4*at:], math.Float32bits(x))
			if s := Difference(dst, dtype.F32, tuned, dtype.F32, make([]byte, 4*n)); s.IsPlain != isPlain {
				t.Errorf("%g at %d: plain is %v, want %v", x, at, s.IsPlain, isPlain)
			}
		}
	}
}

// TestDifferenceOfNonFinite: infinities and NaN make the energy no finite number, from any lane.
func TestDifferenceOfNonFinite(t *testing.T) {
	const n = 21
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
		for _, x := range []float64{math.Inf(1), math.Inf(-1), math.NaN()} {
			for at := range n {
				for side := range 2 {
					var raw [2][]byte
					raw[0], raw[1] = make([]byte, n*d.Size()), make([]byte, n*d.Size())
					dtype.Store(d, raw[side], at, x)
					s := Difference(make([]float32, n), d, raw[0], d, raw[1])
					if s.Energy-s.Energy == 0 {
						t.Errorf("%v: %v at %d of side %d has the energy %v", d, x, at, side, s.Energy)
					}
				}
			}
		}
	}
}

func BenchmarkDifference(b *testing.B) {
	rng := rand.New(rand.NewPCG(73, 74))
	const n = 1 << 17
	dst := make([]float32, n)
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
		w1, w0 := finiteBits(rng, d, n), finiteBits(rng, d, n)
		b.Run(d.String(), func(b *testing.B) {
			b.SetBytes(int64(n * d.Size()))
			for b.Loop() {
				Difference(dst, d, w1, d, w0)
			}
		})
	}
}
