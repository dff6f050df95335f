package rank_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// handMade is a source in memory.
type handMade struct {
	manifest format.Manifest
	data     [][]byte
}

func (s *handMade) Manifest() *format.Manifest { return &s.manifest }
func (s *handMade) ReadBlobAt(p []byte, i int, off int64) error {
	copy(p, s.data[i][off:])
	return nil
}
func (s *handMade) Close() error { return nil }

// add adds a linear layer with A r×n and B m×r.
func (s *handMade) add(d dtype.Type, alpha float64, m, n, r int, a, b []float64) {
	if len(s.manifest.Adapters) == 0 {
		s.manifest.Adapters = []format.Adapter{{Method: "lora"}}
	}
	at := len(s.data)
	for i, x := range []testkit.Tensor{
		testkit.Values(fmt.Sprint(at), d, []uint64{uint64(r), uint64(n)}, a...),
		testkit.Values(fmt.Sprint(at+1), d, []uint64{uint64(m), uint64(r)}, b...),
	} {
		s.manifest.Tensors = append(s.manifest.Tensors, format.Tensor{Name: fmt.Sprint(at + i), DType: d, Shape: x.Shape})
		s.data = append(s.data, x.Data)
	}
	adapter := &s.manifest.Adapters[0]
	adapter.Layers = append(adapter.Layers, format.Layer{
		Module: fmt.Sprint("m", at/2), Kind: format.Linear, Rank: r, Alpha: alpha, Scaling: format.AlphaOverR,
		Roles: map[format.Role]int{format.RoleA: at, format.RoleB: at + 1},
	})
}

// TestSpectraOfTheWholeRangeOfFloat64: scaling factors by a power of two scales the spectrum by it
// exactly, even where squares leave the range of float64.
func TestSpectraOfTheWholeRangeOfFloat64(t *testing.T) {
	const m, n, r = 12, 9, 3
	rng := rand.New(rand.NewPCG(95, 96))
	a, b := make([]float64, r*n), make([]float64, m*r)
	for i := range a {
		a[i] = rng.NormFloat64()
	}
	for i := range b {
		b[i] = rng.NormFloat64()
	}
	times := func(x []float64, e int) []float64 {
		y := make([]float64, len(x))
		for i := range x {
			y[i] = math.Ldexp(x[i], e)
		}
		return y
	}
	exponents := [][2]int{{0, 0}, {500, 500}, {-500, -500}, {1000, -1000}, {-1000, 1000}, {510, 0}, {0, -900}, {1010, 0}, {-600, 0}, {900, 900}, {-900, -900}}
	s := new(handMade)
	for _, e := range exponents {
		s.add(dtype.F64, 2, m, n, r, times(a, e[0]), times(b, e[1]))
	}
	// Columns far apart in each factor but not in the product.
	far, near := times(a, 0), times(b, 0)
	for k := range r {
		e := []int{0, 600, -700}[k]
		for j := range n {
			far[k*n+j] = math.Ldexp(far[k*n+j], e)
		}
		for i := range m {
			near[i*r+k] = math.Ldexp(near[i*r+k], -e)
		}
	}
	s.add(dtype.F64, 2, m, n, r, far, near)
	exponents = append(exponents, [2]int{})
	spectra, err := rank.Spectra(t.Context(), s, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := spectra[0]
	for i, got := range spectra {
		e := exponents[i][0] + exponents[i][1]
		if e > 1500 || e < -1500 {
			if !strings.Contains(got.Missing, "beyond float64") || len(got.SingularValues) > 0 {
				t.Errorf("2^%d: %+v, want none", e, got)
			}
			continue
		}
		if got.Missing != "" || got.StableRank != want.StableRank || got.EntropyRank != want.EntropyRank || got.NumericalRank != want.NumericalRank || got.Frobenius != math.Ldexp(want.Frobenius, e) {
			t.Errorf("2^%d: %+v, want ranks of %+v", e, got, want)
			continue
		}
		for k, sigma := range got.SingularValues {
			if sigma != math.Ldexp(want.SingularValues[k], e) || got.Energy[k] != want.Energy[k] {
				t.Errorf("2^%d: σ_%d = %v with %v, want %v with %v", e, k+1, sigma, got.Energy[k], math.Ldexp(want.SingularValues[k], e), want.Energy[k])
			}
		}
	}
}

func TestALayerWithoutASpectrumDoesNotStopTheOthers(t *testing.T) {
	s := new(handMade)
	s.add(dtype.F32, 1, 2, 2, 1, []float64{3, 4}, []float64{0, 1})
	s.add(dtype.F32, 1, 2, 2, 1, []float64{math.NaN(), 4}, []float64{math.Inf(1), 1})
	s.add(dtype.F32, 1, 0, 2, 1, []float64{1, 2}, nil)
	s.add(dtype.F32, 1, 2, 0, 1, nil, []float64{1, 2})
	s.add(dtype.F32, 0, 2, 2, 1, []float64{3, 4}, []float64{0, 1})
	s.add(dtype.BF16, 1, 2, 2, 1, []float64{3, 4}, []float64{0, 2})
	spectra, err := rank.Spectra(t.Context(), s, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		frobenius float64
		values    int
		nonFinite int64
	}{{5, 1, 0}, {0, 0, 2}, {0, 0, 0}, {0, 0, 0}, {0, 1, 0}, {10, 1, 0}} {
		got := spectra[i]
		if got.Module != fmt.Sprint("m", i) || math.Abs(got.Frobenius-want.frobenius) > 1e-15*want.frobenius || len(got.SingularValues) != want.values || got.NonFinite != want.nonFinite {
			t.Errorf("layer %d: %+v, want %+v", i, got, want)
		}
		if (got.Missing != "") != (want.nonFinite > 0) {
			t.Errorf("layer %d is said to have no spectrum: %q", i, got.Missing)
		}
	}
}
