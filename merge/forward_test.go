package merge_test

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/merge"
)

// roundoff is u, the unit roundoff of a dtype, and tiny its smallest positive number.
func roundoff(d dtype.Type) (u, tiny float64) {
	switch d {
	case dtype.F64:
		return 0x1p-53, 0x1p-1074
	case dtype.F32:
		return 0x1p-24, 0x1p-149
	case dtype.F16:
		return 0x1p-11, 0x1p-24
	}
	return 0x1p-8, 0x1p-133 // for BF16
}

// TestTheMergedLayerComputesWhatBaseAndAdapterDo: h = W′x is W0·x + s·B·(A·x), Hu et al., equation
// 3, for random x.
//
// W′ = RN(W0 + s·B·A), so every element of W′ is within u·|w′| + tiny/2 of the exact sum, with u
// and tiny those of the base's dtype, and row i of W′x within
//
//	Σ_j (u·|w′_ij| + tiny/2)·|x_j|
//
// of the right-hand side. Both sides are evaluated here in float64, v = 2⁻⁵³, where a value that
// goes through k roundings is off by at most γ_k = k·v/(1 − k·v) of the sum of its terms'
// magnitudes: k = n for W′x and W0·x, at most n + r + 3 for s·B·(A·x), and one more for each of the
// two sums that follow. With k = n + r + 5 throughout, the bound grows by
//
//	γ_k·(Σ_j |w′_ij·x_j| + Σ_j |w_ij·x_j| + |s|·Σ_l |b_il|·Σ_j |a_lj·x_j|).
//
// The bound itself is a sum of positive numbers, computed to within γ_k of its value; the last
// factor is for that.
func TestTheMergedLayerComputesWhatBaseAndAdapterDo(t *testing.T) {
	for _, c := range []struct {
		base, adapter string
		conv1D        bool // the base stores n×m
	}{
		{"../testdata/demo/base", "../testdata/demo/adapter-r8", false},
		{fixtures + "/bases/llama-f32", fixtures + "/merge/f32/adapter", false},
		{fixtures + "/bases/llama-f64", fixtures + "/merge/f64/adapter", false},
		{fixtures + "/bases/llama-f16", fixtures + "/merge/f16/adapter", false},
		{fixtures + "/bases/llama-deep", fixtures + "/merge/bf16-all-linear/adapter", false},
		{fixtures + "/bases/llama-bf16", fixtures + "/merge/rslora/adapter", false},
		{fixtures + "/bases/llama-odd", fixtures + "/merge/odd-shapes/adapter", false},
		{fixtures + "/bases/llama-sharded", fixtures + "/merge/sharded/adapter", false},
		{fixtures + "/bases/gpt2", fixtures + "/merge/gpt2-conv1d/adapter", true},
	} {
		t.Run(filepath.Base(filepath.Dir(c.adapter)), func(t *testing.T) {
			src, err := convert.Open(t.Context(), c.adapter, convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			p, err := merge.Open(context.Background(), c.base, []merge.Adapter{{Source: src, Name: c.adapter, Weight: 1}}, merge.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			out := filepath.Join(t.TempDir(), "out")
			if _, err := p.Run(context.Background(), out); err != nil {
				t.Fatal(err)
			}
			base, merged := openCheckpoint(t, c.base), openCheckpoint(t, out)
			layers := src.Manifest().Adapters[0].Layers
			if len(layers) == 0 {
				t.Fatal("the adapter has no layer")
			}
			for i := range layers {
				l := &layers[i]
				ref, ok := base.Lookup(l.Module + ".weight")
				if !ok {
					t.Fatalf("the base has no %s.weight", l.Module)
				}
				d := ref.Tensor.DType
				m, n := int(ref.Tensor.Shape[0]), int(ref.Tensor.Shape[1])
				w, w2 := load(d, read(t, base, ref.Tensor.Name)), load(d, read(t, merged, ref.Tensor.Name))
				if c.conv1D {
					m, n = n, m
					w, w2 = transpose(w, n, m), transpose(w2, n, m)
				}
				checkForward(t, src, l, d, m, n, w, w2)
			}
		})
	}
}

// transpose returns the transpose of a rows×cols matrix.
func transpose(a []float64, rows, cols int) []float64 {
	b := make([]float64, len(a))
	for i := range rows {
		for j := range cols {
			b[j*rows+i] = a[i*cols+j]
		}
	}
	return b
}

func checkForward(t *testing.T, src format.Source, l *format.Layer, d dtype.Type, m, n int, w, w2 []float64) {
	t.Helper()
	a, shape := factors(t, src, l, format.RoleA)
	b, _ := factors(t, src, l, format.RoleB)
	r, s := int(shape[0]), l.Scale()
	if len(a) != r*n || len(b) != m*r {
		t.Fatalf("%s: A has %d elements and B %d, want %d×%d and %d×%d", l.Module, len(a), len(b), r, n, m, r)
	}
	u, tiny := roundoff(d)
	k := float64(n+r+5) * 0x1p-53
	gamma := k / (1 - k)
	rng := rand.New(rand.NewPCG(7, 8))
	x := make([]float64, n)
	for j := range x {
		x[j] = rng.NormFloat64()
	}
	ax, absAX := make([]float64, r), make([]float64, r)
	for q := range r {
		for j := range n {
			ax[q] += a[q*n+j] * x[j]
			absAX[q] += math.Abs(a[q*n+j] * x[j])
		}
	}
	var sumBound, sumUpdate float64
	for i := range m {
		var wx, w2x, rounding, evaluation float64
		for j := range n {
			wx += w[i*n+j] * x[j]
			w2x += w2[i*n+j] * x[j]
			rounding += (u*math.Abs(w2[i*n+j]) + tiny/2) * math.Abs(x[j])
			evaluation += math.Abs(w2[i*n+j]*x[j]) + math.Abs(w[i*n+j]*x[j])
		}
		var bax, absBAX float64
		for q := range r {
			bax += b[i*r+q] * ax[q]
			absBAX += math.Abs(b[i*r+q]) * absAX[q]
		}
		bound := (rounding + gamma*(evaluation+math.Abs(s)*absBAX)) * (1 + 2*gamma)
		if got, want := w2x, wx+s*bax; !(math.Abs(got-want) <= bound) {
			t.Errorf("%s, row %d: W′x = %g and W0·x + s·B·(A·x) = %g differ by %g, want at most %g", l.Module, i, got, want, math.Abs(got-want), bound)
		}
		sumBound += bound * bound
		sumUpdate += s * bax * s * bax
	}
	// In a wide dtype the bound must be small beside the adapter's update, or the test proves
	// nothing.
	if (d == dtype.F32 || d == dtype.F64) && !(sumBound < 1e-6*sumUpdate) {
		t.Errorf("%s: the norm of the bound is %g and that of the update %g: the test is void", l.Module, math.Sqrt(sumBound), math.Sqrt(sumUpdate))
	}
}
