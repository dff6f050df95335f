package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// TestThinProducts compares both products, of this processor's kernel and the portable one, with
// float64. Summing 64 float32 products gives an error of at most γ_65 times the sum of magnitudes;
// rounding the total adds half a unit.
func TestThinProducts(t *testing.T) {
	rng := rand.New(rand.NewPCG(61, 62))
	for _, name := range []string{"native", "portable"} {
		if name == "portable" {
			defer withoutThinKernels()()
		}
		for _, s := range [][3]int{{1, 1, 1}, {8, 8, 8}, {7, 9, 8}, {16, 64, 8}, {9, 65, 16},
			{33, 130, 17}, {40, 3, 32}, {64, 200, 24}} {
			m, n, b := s[0], s[1], s[2]
			stride := n + 3
			d, x, y := random32(rng, m*stride), random32(rng, n*b), random32(rng, m*b)
			dense := make([]float32, 0, m*n)
			for i := range m {
				dense = append(dense, d[i*stride:i*stride+n]...)
			}
			got, gotT := make([]float32, m*b), make([]float32, n*b)
			MulThin(got, dense, x, m, n, b)
			MulThinT(gotT, d, y, m, n, stride, b)
			for i := range m {
				for c := range b {
					checkSum(t, fmt.Sprintf("%s D·X %v (%d,%d)", name, s, i, c), got[i*b+c], n,
						func(j int) (float32, float32) { return dense[i*n+j], x[j*b+c] })
				}
			}
			for j := range n {
				for c := range b {
					checkSum(t, fmt.Sprintf("%s Dᵀ·Y %v (%d,%d)", name, s, j, c), gotT[j*b+c], m,
						func(i int) (float32, float32) { return d[i*stride+j], y[i*b+c] })
				}
			}
		}
	}
}

// withoutThinKernels replaces the kernels by the portable ones until the result is called.
func withoutThinKernels() (restore func()) {
	kernel, add, residual := thin8x8, addThin, addResidual
	thin8x8, addThin, addResidual = thin8x8Portable, addThinPortable, addResidualPortable
	return func() { thin8x8, addThin, addResidual = kernel, add, residual }
}

func checkSum(t *testing.T, name string, got float32, n int, term func(int) (float32, float32)) {
	t.Helper()
	var sum, size float64
	for k := range n {
		a, b := term(k)
		sum += float64(a) * float64(b)
		size += math.Abs(float64(a) * float64(b))
	}
	if limit := 66 * 0x1p-24 * size; math.Abs(float64(got)-sum) > limit {
		t.Fatalf("%s = %v, want %v within %v", name, got, sum, limit)
	}
}

// TestResidualSquares compares with differences in float64. The products of r terms and the
// subtraction each have an error of γ_{r+2} of their magnitudes, and a square has twice the
// relative error.
func TestResidualSquares(t *testing.T) {
	rng := rand.New(rand.NewPCG(65, 66))
	for i, s := range [][3]int{{1, 1, 1}, {8, 8, 1}, {9, 17, 5}, {24, 30, 16}, {8, 8, 0},
		{8, 8, 1}, {9, 17, 5}, {24, 30, 16}} {
		if i == 5 {
			defer withoutThinKernels()()
		}
		m, n, r := s[0], s[1], s[2]
		d, b, a := random32(rng, m*n), random32(rng, m*r), random32(rng, r*n)
		var want, size float64
		for i := range m {
			for j := range n {
				e, abs := float64(d[i*n+j]), math.Abs(float64(d[i*n+j]))
				for k := range r {
					p := float64(b[i*r+k]) * float64(a[k*n+j])
					e, abs = e-p, abs+math.Abs(p)
				}
				want += e * e
				size += abs * abs
			}
		}
		if got := ResidualSquares(d, b, a, n, m, n, r); math.Abs(got-want) > 4*float64(r+2)*0x1p-24*size {
			t.Errorf("%v: %v, want %v", s, got, want)
		}
	}
}

func random32(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

func BenchmarkThin(b *testing.B) {
	rng := rand.New(rand.NewPCG(63, 64))
	const m, n = 5632, 2048
	d := random32(rng, m*n)
	for _, w := range []int{8, 16, 32} {
		x, y := random32(rng, n*w), random32(rng, m*w)
		dst, dstT := make([]float32, m*w), make([]float32, n*w)
		b.Run(fmt.Sprintf("D·X/m=%d/n=%d/b=%d", m, n, w), func(b *testing.B) {
			b.SetBytes(4 * m * n)
			for b.Loop() {
				MulThin(dst, d, x, m, n, w)
			}
		})
		b.Run(fmt.Sprintf("DᵀY/m=%d/n=%d/b=%d", m, n, w), func(b *testing.B) {
			b.SetBytes(4 * m * n)
			for b.Loop() {
				MulThinT(dstT, d, y, m, n, n, w)
			}
		})
	}
}
