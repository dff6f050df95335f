package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// TestGram compares both products, of this processor's kernels and the portable ones, with float64,
// by rows and by columns. A sum of up to 64 float32 products has an error of at most γ_65 times the
// sum of magnitudes; that of y in z is half a unit more.
func TestGram(t *testing.T) {
	rng := rand.New(rand.NewPCG(75, 76))
	for _, kernels := range []string{"native", "portable"} {
		if kernels == "portable" {
			defer withoutThinKernels()()
		}
		for _, s := range [][3]int{{1, 1, 8}, {8, 8, 8}, {7, 9, 8}, {16, 64, 8}, {9, 65, 16}, {33, 130, 24}, {64, 200, 8}, {65, 72, 16}, {200, 9, 8}} {
			count, length, b := s[0], s[1], s[2]
			rows, columns := random32(rng, count*length), make([]float32, count*length)
			for i := range count {
				for k := range length {
					columns[k*count+i] = rows[i*length+k]
				}
			}
			x := random32(rng, length*b)
			for name, l := range map[string]Lines{
				"rows":    {Data: rows, Count: count, Length: length, Apart: length, Next: 1},
				"columns": {Data: columns, Count: count, Length: length, Apart: 1, Next: count},
			} {
				y, z := make([]float32, count*b), make([]float64, RoundUp(length)*b)
				for i := range z {
					z[i] = 3
				}
				var g Gram // with something left from another product
				g.Add(make([]float32, 70*b), make([]float64, 304*b),
					Lines{Data: random32(rng, 70*300), Count: 70, Length: 300, Apart: 300, Next: 1}, random32(rng, 300*b), b)
				g.Add(y, z, l, x, b)
				for c := range b {
					for i := range count {
						checkSum(t, fmt.Sprintf("%s %s L·X %v (%d,%d)", kernels, name, s, i, c), y[i*b+c], length,
							func(k int) (float32, float32) { return rows[i*length+k], x[k*b+c] })
					}
					for k := range RoundUp(length) {
						checkBack(t, fmt.Sprintf("%s %s Lᵀ·L·X %v (%d,%d)", kernels, name, s, k, c), z[k*b+c]-3, rows, y, count, length, b, k, c)
					}
				}
			}
		}
	}
}

// checkBack checks element (k, c) of Lᵀ·Y.
func checkBack(t *testing.T, name string, got float64, l, y []float32, count, length, b, k, c int) {
	t.Helper()
	var sum, size float64
	for i := 0; i < count && k < length; i++ {
		p := float64(l[i*length+k]) * float64(y[i*b+c])
		sum, size = sum+p, size+math.Abs(p)
	}
	if limit := 66*0x1p-24*size + 1e-14; math.Abs(got-sum) > limit {
		t.Fatalf("%s = %v, want %v within %v", name, got, sum, limit)
	}
}

func BenchmarkGram(b *testing.B) {
	rng := rand.New(rand.NewPCG(77, 78))
	for _, s := range [][2]int{{5632, 2048}, {2048, 5632}} {
		m, n := s[0], s[1]
		d := random32(rng, m*n)
		for _, w := range []int{8, 16, 32} {
			var g Gram
			for name, l := range map[string]Lines{
				"rows":    {Data: d, Count: m, Length: n, Apart: n, Next: 1},
				"columns": {Data: d, Count: n, Length: m, Apart: 1, Next: n},
			} {
				x, y, z := random32(rng, l.Length*w), make([]float32, l.Count*w), make([]float64, l.Length*w)
				b.Run(fmt.Sprintf("%s/m=%d/n=%d/b=%d", name, m, n, w), func(b *testing.B) {
					b.SetBytes(int64(4 * m * n))
					for b.Loop() {
						g.Add(y, z, l, x, w)
					}
				})
			}
		}
	}
}
