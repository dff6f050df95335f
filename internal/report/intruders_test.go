package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/krylov"
	"github.com/loratool/loratool/internal/thin"
)

// TestBoundsCountAsDecompositionsDo: W is random, with columns of several sizes or with some large
// singular values, and ΔW has a rank of 6. Its directions are random ones, or mixtures of those of
// W. It is from much smaller than W to much larger.
func TestBoundsCountAsDecompositionsDo(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	gaussian := func(n int) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = rng.NormFloat64()
		}
		return x
	}
	const r = 6
	counts := make(map[int]int)
	for _, shape := range [][2]int{{70, 70}, {50, 90}, {90, 50}, {100, 30}} {
		m, n := shape[0], shape[1]
		for kind := range 3 {
			w := make([]float32, m*n)
			for i, x := range gaussian(m * n) {
				w[i] = float32(x)
				if kind == 1 { // a slope of sizes
					w[i] /= float32(1 + i%n)
				}
			}
			if kind == 2 { // three large values
				left, right := gaussian(3*m), gaussian(3*n)
				for i := range m {
					for j := range n {
						for k := range 3 {
							w[i*n+j] += float32(math.Ldexp(left[i*3+k]*right[j*3+k], -k))
						}
					}
				}
			}
			for _, scale := range []float64{1e-3, 0.1, 0.5, 1, 4} {
				delta := &thin.Matrix{M: m, N: n, R: r, B: gaussian(m * r), A: gaussian(n * r), Exponent: -2}
				for i := range delta.B {
					if delta.B[i] *= scale; i%r == 0 && kind < 2 { // a direction that W has, in part
						delta.B[i] += scale * float64(w[i/r*n])
					}
				}
				want, err := intrudersOfSmall(t.Context(), w, m, n, delta)
				if err != nil {
					t.Fatal(err)
				}
				got, estimated, err := intrudersOfLarge(t.Context(), &krylov.Float32{M: m, N: n, Data: w, Workers: 1}, delta)
				if err != nil {
					t.Fatal(err)
				}
				counts[want]++
				if got != want || estimated > 0 {
					t.Errorf("%d×%d, kind %d, scale %v: %d intruders, of which %d are estimated; want %d", m, n, kind, scale, got, estimated, want)
				}
			}
		}
	}
	if len(counts) < 5 {
		t.Errorf("the numbers of intruders are too much alike: %v", counts)
	}
}

// TestEnergyOfASum compares ‖W + ΔW‖² with its definition, and finds the two vectors of a ΔW on a W
// of zeros, which both are intruders.
func TestEnergyOfASum(t *testing.T) {
	w := &krylov.Float32{M: 2, N: 3, Data: []float32{1, 2, 3, 4, 5, 6}, Workers: 1}
	delta := &thin.Matrix{M: 2, N: 3, R: 2, B: []float64{1, 0, 2, 1}, A: []float64{1, 1, 0, 2, 0, 0}, Exponent: 1}
	got, err := (&updated{w, delta}).addedEnergy(t.Context())
	// ΔW is [2 0 0; 6 4 0].
	if want := 9.0 + 4 + 9 + 100 + 81 + 36 - 91; err != nil || got != want {
		t.Errorf("got %v, error %v, want %v", got, err, want)
	}
	zero := &krylov.Float32{M: 30, N: 30, Data: make([]float32, 900), Workers: 1}
	two := &thin.Matrix{M: 30, N: 30, R: 2, B: make([]float64, 60), A: make([]float64, 60)}
	two.B[0], two.A[0], two.B[3], two.A[3] = 1, 1, 1, 2
	if n, _, err := intrudersOfLarge(t.Context(), zero, two); n != 2 || err != nil {
		t.Errorf("on zeros there are %d intruders, error %v, want 2", n, err)
	}
}

// TestLikenessOfKnownShares: W is diagonal, so that the elements of y are its shares. It resembles
// a vector with 0.26 of its square, and none with 0.24, wherever the others are.
func TestLikenessOfKnownShares(t *testing.T) {
	const n = 200
	w := &krylov.Float32{M: n, N: n, Data: make([]float32, n*n), Workers: 1}
	for i := range n {
		w.Data[i*n+i] = float32(2 + math.Cos(float64(i))) // in no order
	}
	for _, at := range []int{0, 22, 133} {
		for _, share := range []float64{0.24, 0.26, 0.9} {
			y := slices.Repeat([]float64{math.Sqrt((1 - share) / (n - 1))}, n)
			y[at] = math.Sqrt(share)
			l := &likeness{basis: krylov.Basis{Dim: n, Vectors: [][]float64{y}, Workers: 1}}
			isCertain, isIntruder := false, false
			for !isCertain && !l.isClosed {
				if err := growAll(t.Context(), w, []*likeness{l}); err != nil {
					t.Fatal(err)
				}
				if len(l.diagonal)%likenessEvery > 0 {
					continue
				}
				var err error
				if isIntruder, isCertain, err = l.decide(t.Context(), 1e-6, -1); err != nil {
					t.Fatal(err)
				}
			}
			if want := share < 0.25; isIntruder != want || !isCertain {
				t.Errorf("%s: resembles none: %t, certain: %t after %d steps", fmt.Sprint("share ", share, " at ", at), isIntruder, isCertain, len(l.diagonal))
			}
		}
	}
}
