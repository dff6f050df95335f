package dtype

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
)

func TestParseAndStringAreInverse(t *testing.T) {
	for _, want := range All() {
		got, ok := Parse(want.String())
		if !ok || got != want {
			t.Errorf("Parse(%q) = %v, %v, want %v", want.String(), got, ok, want)
		}
		if want.Bits() == 0 {
			t.Errorf("%v has no width", want)
		}
	}
	if _, ok := Parse("invalid"); ok {
		t.Error("Parse(invalid) is accepted")
	}
}

func TestNElementsChecksTheProductInAnyOrder(t *testing.T) {
	for _, c := range []struct {
		shape []uint64
		n     uint64
		ok    bool
	}{
		{nil, 1, true},
		{[]uint64{0}, 0, true},
		{[]uint64{3, 4}, 12, true},
		{[]uint64{1 << 32, 1 << 32}, 0, false},
		{[]uint64{0, math.MaxUint64}, 0, false},
		{[]uint64{math.MaxUint64, 0}, 0, false},
		{[]uint64{1 << 62, 2}, 0, false},
		{[]uint64{1 << 31, 1 << 31}, 1 << 62, true},
	} {
		n, ok := NElements(c.shape)
		if n != c.n || ok != c.ok {
			t.Errorf("NElements(%v) = %d, %v, want %d, %v", c.shape, n, ok, c.n, c.ok)
		}
	}
	if _, ok := F4.NBytes(3); ok {
		t.Error("three F4 elements make whole bytes")
	}
	if n, ok := F6E2M3.NBytes(4); n != 3 || !ok {
		t.Errorf("F6_E2M3.NBytes(4) = %d, %v, want 3, true", n, ok)
	}
}

// TestEvery16BitPatternSurvives widens and rounds back all values of both 16-bit types.
func TestEvery16BitPatternSurvives(t *testing.T) {
	for _, typ := range []Type{BF16, F16} {
		src, dst := make([]byte, 2), make([]byte, 2)
		for h := range 1 << 16 {
			binary.LittleEndian.PutUint16(src, uint16(h))
			x := Load(typ, src, 0)
			var f [1]float32
			Widen(f[:], typ, src)
			if float64(f[0]) != x && x == x {
				t.Fatalf("Widen(%v %04x) = %v, Load says %v", typ, h, f[0], x)
			}
			Store(typ, dst, 0, x)
			got := binary.LittleEndian.Uint16(dst)
			if x != x {
				if y := Load(typ, dst, 0); y == y {
					t.Fatalf("Store(%v, NaN %04x) = %04x, not a NaN", typ, h, got)
				}
				continue
			}
			if got != uint16(h) {
				t.Fatalf("Store(Load(%v %04x)) = %04x", typ, h, got)
			}
		}
	}
}

// nearest16 is the oracle: it searches the ordered finite values of a 16-bit type, extended by the
// value that would follow the largest one, for the one nearest to x, ties to the even pattern.
func nearest16(typ Type, x float64) uint16 {
	inf := map[Type]int{BF16: 0x7f80, F16: 0x7c00}[typ]
	after := map[Type]float64{BF16: 0x1p128, F16: 65536}[typ]
	value := func(h int) float64 {
		if h == inf {
			return after
		}
		return Load(typ, []byte{byte(h), byte(h >> 8)}, 0)
	}
	sign, a := 0, math.Abs(x)
	if math.Signbit(x) {
		sign = 0x8000
	}
	if a >= after {
		return uint16(sign | inf)
	}
	lo, hi := 0, inf // value(lo) <= a < value(hi)
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		if value(mid) <= a {
			lo = mid
		} else {
			hi = mid
		}
	}
	// Both differences are exact: a and the values lie within a factor of two, or are multiples of
	// the smallest step.
	below, above := a-value(lo), value(hi)-a
	if below > above || below == above && lo&1 == 1 {
		lo = hi
	}
	return uint16(sign | lo)
}

func TestStoreRoundsOnceToNearestEven(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	dst := make([]byte, 2)
	check := func(typ Type, x float64) {
		t.Helper()
		Store(typ, dst, 0, x)
		if got, want := binary.LittleEndian.Uint16(dst), nearest16(typ, x); got != want {
			t.Fatalf("Store(%v, %x) = %04x, want %04x", typ, x, got, want)
		}
	}
	for _, typ := range []Type{BF16, F16} {
		for h := range 0x7fff {
			lo := Load(typ, []byte{byte(h), byte(h >> 8)}, 0)
			hi := Load(typ, []byte{byte(h + 1), byte((h + 1) >> 8)}, 0)
			if math.IsInf(hi, 0) || hi != hi || math.IsInf(lo, 0) {
				continue
			}
			mid := (lo + hi) / 2
			for _, x := range []float64{mid, math.Nextafter(mid, 0), math.Nextafter(mid, math.Inf(1)), lo + (hi-lo)*rng.Float64()} {
				check(typ, x)
				check(typ, -x)
			}
		}
		for _, x := range []float64{0, 65519.99, 65520, 65536, 0x1.fep127, 0x1.fefffffffffffp127, 0x1.ffp127, math.MaxFloat64, 0x1p-1074, 0x1p-149, 0x1p-25, 0x1.0000001p-25, 0x1p-134, 0x1.0000001p-134} {
			check(typ, x)
			check(typ, -x)
		}
	}
}

// TestLayoutIsThatOfTheBits asks the functions that load and store: the bits of 1 are the bias, the
// next number is two units above it, and the numbers end where the exponents do.
func TestLayoutIsThatOfTheBits(t *testing.T) {
	for _, typ := range All() {
		l, ok := typ.Layout()
		if ok != typ.IsFloat() {
			t.Errorf("%v.Layout() = %v, %v, want %v as IsFloat has it", typ, l, ok, typ.IsFloat())
		}
		if !ok {
			continue
		}
		if got := 1 + l.Exponent + l.Fraction; got != typ.Bits() {
			t.Errorf("the layout of %v has %d bits, want %d", typ, got, typ.Bits())
		}
		at := func(bits uint64) float64 {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], bits)
			return Load(typ, b[:typ.Size()], 0)
		}
		one := uint64(l.Bias()) << l.Fraction
		if got := at(one); got != 1 {
			t.Errorf("%v: the exponent %d is %v, want 1", typ, l.Bias(), got)
		}
		if got, want := at(one+1), 1+2*l.Unit(); got != want {
			t.Errorf("%v: the number after 1 is %v, want %v", typ, got, want)
		}
		if got := at(uint64(1<<l.Exponent-1) << l.Fraction); !math.IsInf(got, 1) {
			t.Errorf("%v: the last exponent is %v, want +Inf", typ, got)
		}
	}
}
