package rank

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// whole describes a spectrum from all singular values, and bounds its entropy rank by the first of
// them.
func whole(sigma []float64) (entropyRank, least, stableRank float64, rank90 int) {
	all := sumSquares(sigma)
	var entropy, sum float64
	for i, s := range sigma {
		if p := s * s / all; p > 0 {
			entropy -= p * math.Log(p)
		}
		if sum += s * s; rank90 == 0 && sum >= 0.9*all {
			rank90 = i + 1
		}
	}
	first := min(max(rank90, 1), ChangeRank)
	var head, kept float64
	for _, s := range sigma[:first] {
		p := s * s / all
		head, kept = head-p*math.Log(p), kept+p
	}
	last := sigma[first-1] * sigma[first-1] / all
	return math.Exp(entropy), math.Exp(head - (1-kept)*math.Log(last)), all / (sigma[0] * sigma[0]), rank90
}

// TestSpectrumOfAChange compares the spectrum of a change with a full decomposition by LAPACK's
// method: the entropy rank within 2 %, and inside its bounds. Of a matrix of few columns it is
// exact.
func TestSpectrumOfAChange(t *testing.T) {
	rng := rand.New(rand.NewPCG(61, 62))
	all := maps.Clone(spectra)
	all["i^-0.25"] = func(i int) float64 { return math.Pow(float64(i+1), -0.25) }
	for name, s := range all {
		for _, shape := range [][2]int{{300, 300}, {400, 120}, {90, 500}, {1, 50}, {50, 1}} {
			d := withSpectrum(rng, shape[0], shape[1], s)
			for i := range d.Data {
				d.Data[i] *= 0x1p-80 // far below the range in which products are safe
			}
			sigma := trueSingularValues(d)
			entropyRank, leastRank, stableRank, rank90 := whole(sigma)
			energy, err := d.SumSquares(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, err := spectrumOfChange(t.Context(), &update{dense: d, energy: energy}, 2)
			if err != nil {
				t.Fatal(err)
			}
			where := fmt.Sprintf("%s, %v", name, shape)
			if rank90 > ChangeRank {
				rank90 = 0
			}
			if got.Rank90 != rank90 {
				t.Errorf("%s: %d singular values have 90 %% of the energy, want %d", where, got.Rank90, rank90)
			}
			if math.Abs(got.StableRank-stableRank) > 1e-3*stableRank {
				t.Errorf("%s: the stable rank is %v, want %v", where, got.StableRank, stableRank)
			}
			within := 0.02
			if min(shape[0], shape[1]) <= 90 && rank90 == 0 {
				within = 1e-4
			}
			if math.Abs(got.EffectiveRank-entropyRank) > within*entropyRank {
				t.Errorf("%s: the effective rank is %v, want %v", where, got.EffectiveRank, entropyRank)
			}
			if least, most := got.EffectiveLeast, got.EffectiveMost; least > entropyRank*1.001 || least < leastRank*0.999 || most < entropyRank*0.999 {
				t.Errorf("%s: the effective rank is from %v to %v, and it is %v", where, least, most, entropyRank)
			}
			for i, v := range got.SingularValues {
				if math.Abs(v-sigma[i]) > 3e-3*sigma[i] {
					t.Errorf("%s: σ_%d = %v, want %v", where, i+1, v, sigma[i])
				}
			}
		}
	}
}

// TestSpectrumOfNoise: of a square matrix of white noise the squares of the singular values follow
// the law of Marchenko and Pastur, whose entropy rank is n/√e.
func TestSpectrumOfNoise(t *testing.T) {
	const n = 700
	rng := rand.New(rand.NewPCG(63, 64))
	d := &Dense{M: n, N: n, Data: make([]float32, n*n)}
	for i := range d.Data {
		d.Data[i] = float32(rng.NormFloat64())
	}
	energy, err := d.SumSquares(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := spectrumOfChange(t.Context(), &update{dense: d, energy: energy}, 2)
	if want := n / math.Sqrt(math.E); err != nil || math.Abs(got.EffectiveRank-want) > 0.02*want || got.Rank90 != 0 {
		t.Errorf("the effective rank of noise is %+v, %v, want %v", got, err, want)
	}
}

// TestSpectraOfCheckpoints: changed matrices have a spectrum, other tensors have none, and of
// stacked experts the one that changed most counts.
func TestSpectraOfCheckpoints(t *testing.T) {
	rng := rand.New(rand.NewPCG(65, 66))
	product := func(m, n, r int) []float64 {
		return Planted(rng, m, n, func(i int) float64 {
			if i < r {
				return 1
			}
			return 0
		})
	}
	inf := product(8, 6, 1)
	inf[5] = math.Inf(1)
	experts := append(product(8, 6, 2), product(8, 6, 3)...)
	for i := range experts[48:] {
		experts[48+i] *= 2
	}
	const stack = "model.layers.0.mlp.experts.gate_up_proj"
	conv, linear := product(8, 12, 4), product(8, 6, 5)
	tensors := func(add float64) []testkit.Tensor {
		sum := func(x []float64) []float64 {
			y := make([]float64, len(x))
			for i, v := range x {
				y[i] = add * v
			}
			return y
		}
		return []testkit.Tensor{
			testkit.Values("linear.weight", dtype.F64, []uint64{8, 6}, sum(linear)...),
			testkit.Values("conv.weight", dtype.F32, []uint64{8, 3, 2, 2}, sum(conv)...),
			testkit.Values("same.weight", dtype.F32, []uint64{8, 6}, linear...),
			testkit.Values("inf.weight", dtype.F32, []uint64{8, 6}, sum(inf)...),
			testkit.Values("bias", dtype.F32, []uint64{2}, add, add),
			testkit.Values("tiny.weight", dtype.F64, []uint64{1, 2}, add*1e-200, 0),
			testkit.Values("huge.weight", dtype.F64, []uint64{1, 2}, add*1e200, 0),
			testkit.Values(stack, dtype.F32, []uint64{2, 8, 6}, sum(experts)...),
			{Name: "codes.weight", DType: dtype.U8, Shape: []uint64{1, 2}, Data: []byte{1, byte(add)}},
		}
	}
	a, b := openTensors(t, tensors(0)...), openTensors(t, tensors(1)...)
	r, err := CompareCheckpoints(t.Context(), a, b, CompareOptions{Spectra: true})
	if err != nil {
		t.Fatal(err)
	}
	ranks := map[string]float64{"linear.weight": 5, "conv.weight": 4, stack: 3}
	for _, x := range r.Tensors {
		want := ranks[x.Tensor]
		if has := x.ChangeSpectrum != nil; has != (want > 0) || has && math.Abs(x.EffectiveRank-want) > 1e-3 {
			t.Errorf("%s: %+v, want the effective rank %v", x.Tensor, x.ChangeSpectrum, want)
		}
		is := x.Tensor == "inf.weight" || x.Tensor == "tiny.weight" || x.Tensor == "huge.weight"
		if (x.NoSpectrum != "") != is {
			t.Errorf("%s: the reason is %q", x.Tensor, x.NoSpectrum)
		}
		if x.Tensor == stack && x.Experts != 2 {
			t.Errorf("%d experts, want 2", x.Experts)
		}
	}
	if r, err := CompareCheckpoints(t.Context(), a, b, CompareOptions{}); err != nil || r.Tensors[0].ChangeSpectrum != nil {
		t.Errorf("without Spectra: %+v, %v", r.Tensors[0], err)
	}
	if need, largest := ChangeBytes(a); need < 4*8*12 || largest != "conv.weight" {
		t.Errorf("the estimate is %d for %s", need, largest)
	}
}

func openTensors(t *testing.T, tensors ...testkit.Tensor) *checkpoint.Checkpoint {
	t.Helper()
	path := t.TempDir() + "/model.safetensors"
	testkit.Write(t, path, testkit.Encode(nil, tensors...))
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
