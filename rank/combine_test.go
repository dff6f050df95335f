package rank_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/rank"
	"gonum.org/v1/gonum/mat"
)

// sample is an adapter made for a test.
type sample struct {
	*format.Builder
	rng *rand.Rand
}

func newSample(seed uint64) sample {
	return sample{format.NewBuilder(""), rand.New(rand.NewPCG(seed, 19))}
}

// values returns a tensor of random numbers that the dtype holds exactly.
func (s sample) values(d dtype.Type, shape ...uint64) format.Data {
	n := uint64(1)
	for _, x := range shape {
		n *= x
	}
	raw := make([]byte, int(n)*d.Size())
	for i := range int(n) {
		dtype.Store(d, raw, i, s.rng.NormFloat64())
	}
	return format.Bytes(d, raw, shape...)
}

func (s sample) source(t *testing.T) format.Source {
	t.Helper()
	src, err := s.Source()
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// linear adds a layer of rank r to an adapter.
func (s sample) linear(module string, d dtype.Type, m, n, r uint64, scale float64) {
	s.Linear(module, int(r), scale, s.values(d, r, n), s.values(d, m, r))
}

// three adds a layer with a matrix for each expert, or one for all.
func (s sample) three(module string, r int, scale float64, a, b format.Data) {
	s.Linear(module, r, scale, a, b)
	s.Adapter().Layers[len(s.Adapter().Layers)-1].Kind = format.Other
	s.Require(format.FeatureExpertFactors, module)
}

// updates forms ΔW of every layer, expert by expert, as plain loops over the definition.
func updates(t *testing.T, src format.Source) map[string]*mat.Dense {
	t.Helper()
	all := make(map[string]*mat.Dense)
	m := src.Manifest()
	a := &m.Adapters[0]
	for i := range a.Layers {
		l := &a.Layers[i]
		x, err := format.ReadFloats(t.Context(), src, l.Roles[format.RoleA])
		if err != nil {
			t.Fatal(err)
		}
		y, err := format.ReadFloats(t.Context(), src, l.Roles[format.RoleB])
		if err != nil {
			t.Fatal(err)
		}
		shapeA, shapeB := m.Tensors[l.Roles[format.RoleA]].Shape, m.Tensors[l.Roles[format.RoleB]].Shape
		experts, r := 1, l.Rank
		atA := func(e, k, j, n int) int { return k*n + j }
		atB := func(e, i, k int) int { return i*r + k }
		switch {
		case l.Kind.IsExpert():
			experts = int(shapeA[0]) / r
			atA = func(e, k, j, n int) int { return (e*r+k)*n + j }
			atB = func(e, i, k int) int { return i*r*experts + k*experts + e }
		case len(shapeA) == 3 && len(shapeB) == 3:
			experts = int(max(shapeA[0], shapeB[0]))
			rows := int(shapeB[1])
			atA = func(e, k, j, n int) int { return (min(e, int(shapeA[0])-1)*r+k)*n + j }
			atB = func(e, i, k int) int { return (min(e, int(shapeB[0])-1)*rows+i)*r + k }
		}
		for e := range experts {
			rows, n := int(shapeB[0]), 1
			for _, d := range shapeA[1:] {
				n *= int(d)
			}
			if len(shapeB) == 3 && len(shapeA) == 3 {
				rows, n = int(shapeB[1]), int(shapeA[2])
			}
			delta := mat.NewDense(rows, n, nil)
			for i := range rows {
				for j := range n {
					var sum float64
					for k := range r {
						sum += y[atB(e, i, k)] * x[atA(e, k, j, n)]
					}
					delta.Set(i, j, l.Scale()*sum)
				}
			}
			all[fmt.Sprint(l.Module, "/", e)] = delta
		}
	}
	return all
}

// distance returns the norm of Σ w·X − Y over all layers.
func distance(t *testing.T, weights []float64, parts []format.Source, whole format.Source) (lost, energy float64) {
	t.Helper()
	sums := sums(t, weights, parts)
	got := updates(t, whole)
	for name, want := range sums {
		energy += math.Pow(mat.Norm(want, 2), 2)
		if got[name] == nil {
			lost += math.Pow(mat.Norm(want, 2), 2)
			continue
		}
		var x mat.Dense
		x.Sub(want, got[name])
		lost += math.Pow(mat.Norm(&x, 2), 2)
	}
	for name := range got {
		if sums[name] == nil {
			t.Errorf("the result has a layer %s that no adapter has", name)
		}
	}
	return math.Sqrt(lost), math.Sqrt(energy)
}

// twoAdapters have modules in common and apart, ranks, dtypes and scales of all kinds.
func twoAdapters(t *testing.T) []format.Source {
	one, other := newSample(1), newSample(2)
	one.linear("both", dtype.F32, 30, 20, 4, 2)
	one.linear("first", dtype.BF16, 12, 18, 3, 0.5)
	one.Conv("conv", 3, 1.5, one.values(dtype.F32, 3, 4, 3, 3), one.values(dtype.F32, 10, 3, 1, 1))
	one.Embedding("embed", 2, 1, one.values(dtype.F16, 2, 40), one.values(dtype.F16, 8, 2))
	other.linear("both", dtype.BF16, 30, 20, 6, 0.25)
	other.linear("second", dtype.F16, 9, 7, 5, -1)
	other.Conv("conv", 2, -0.3, other.values(dtype.F32, 2, 4, 3, 3), other.values(dtype.F32, 10, 2, 1, 1))
	for _, s := range []sample{one, other} {
		s.Require(format.FeatureConvolution, "conv")
	}
	return []format.Source{one.source(t), other.source(t)}
}

// TestSumByConcatenation: without a rule the result is Σ w·ΔW. It is exact where only powers of two
// are missing, and otherwise as far from it as the report says.
func TestSumByConcatenation(t *testing.T) {
	adapters := twoAdapters(t)
	for _, c := range []struct {
		weights []float64
		isExact bool
	}{
		{nil, false}, // the convolutions have the scales 1.5 and −0.3
		{[]float64{1, -5}, true},
		{[]float64{2, -2.5}, false},
		{[]float64{0.7, 1.1}, false},
		{[]float64{1, 0}, true},
	} {
		sum, report, err := rank.Combine(t.Context(), adapters, rank.CombineOptions{Weights: c.weights})
		if err != nil {
			t.Fatal(err)
		}
		defer sum.Close()
		weights := c.weights
		if weights == nil {
			weights = []float64{1, 1}
		}
		lost, energy := distance(t, weights, adapters, sum)
		if c.isExact && lost > 1e-15*energy || lost > 1e-6*energy {
			t.Errorf("weights %v: the sum is %.3g of %.3g away", c.weights, lost, energy)
		}
		if got := report.Rounded; math.Abs(got-lost/energy) > 1e-3*lost/energy+1e-15 {
			t.Errorf("weights %v: the report has the error %.4g, want %.4g", c.weights, got, lost/energy)
		}
		for _, l := range report.Layers {
			if total := sumOf(l.Was); l.Rank != total {
				t.Errorf("weights %v: %s has rank %d, want %d", c.weights, l.Module, l.Rank, total)
			}
			if l.Exact != (l.Rounded == 0) {
				t.Errorf("weights %v: %s is exact: %v, with the error %v", c.weights, l.Module, l.Exact, l.Rounded)
			}
		}
	}
}

func sumOf(x []int) (total int) {
	for _, v := range x {
		total += v
	}
	return total
}

// TestSumOfLowerRank: a rule keeps the best approximation of the sum, and the report has the error
// that the definition has.
func TestSumOfLowerRank(t *testing.T) {
	adapters := twoAdapters(t)
	weights := []float64{0.8, 1.5}
	for _, d := range []dtype.Type{dtype.Invalid, dtype.F64, dtype.F32, dtype.BF16} {
		for _, k := range []int{1, 3, 7} {
			sum, report, err := rank.Combine(t.Context(), adapters, rank.CombineOptions{Weights: weights, Rule: rank.FixedRank{K: k}, DType: d})
			if err != nil {
				t.Fatal(err)
			}
			defer sum.Close()
			lost, energy := distance(t, weights, adapters, sum)
			if math.Abs(report.Rounded-lost/energy) > 1e-6*lost/energy+1e-14 {
				t.Errorf("%v, rank %d: the report has the error %.9g, want %.9g", d, k, report.Rounded, lost/energy)
			}
			best := 0.0
			for _, u := range sums(t, weights, adapters) {
				var svd mat.SVD
				svd.Factorize(u, mat.SVDNone)
				for i, s := range svd.Values(nil) {
					if i >= k {
						best += s * s
					}
				}
			}
			if best = math.Sqrt(best); math.Abs(report.Error-best/energy) > 1e-9 {
				t.Errorf("%v, rank %d: the error before rounding is %.12g, the best is %.12g", d, k, report.Error, best/energy)
			}
			if d.Size() >= 4 && report.Rounded-report.Error > 1e-6 {
				t.Errorf("%v, rank %d: rounding raises the error from %.9g to %.9g", d, k, report.Error, report.Rounded)
			}
			for _, l := range report.Layers {
				if l.Rank > max(k, 1) && l.Rank != sumOf(l.Was) || l.Rank > sumOf(l.Was) {
					t.Errorf("%v, rank %d: %s has rank %d", d, k, l.Module, l.Rank)
				}
			}
		}
	}
}

func sums(t *testing.T, weights []float64, parts []format.Source) map[string]*mat.Dense {
	t.Helper()
	all := make(map[string]*mat.Dense)
	for i, p := range parts {
		for name, d := range updates(t, p) {
			var x mat.Dense
			x.Scale(weights[i], d)
			if all[name] != nil {
				x.Add(&x, all[name])
			}
			all[name] = &x
		}
	}
	return all
}

// TestExpertsOneByOne: stacked experts are truncated one by one, in both ways of storing them, with
// factors that all share.
func TestExpertsOneByOne(t *testing.T) {
	s := newSample(3)
	const e, r, m, n = 3, 4, 10, 8
	s.three("mlp.experts.down_proj", r, 2, s.values(dtype.F32, 1, r, n), s.values(dtype.F32, e, m, r))
	s.three("mlp.experts.up_proj", r, 0.5, s.values(dtype.F32, e, r, n), s.values(dtype.F32, 1, m, r))
	threes := s.source(t)

	p := newSample(4)
	p.Linear("mlp.experts", r, 2, p.values(dtype.F32, e*r, n), p.values(dtype.F32, m, r*e))
	p.Adapter().Layers[0].Kind = format.Expert
	p.Require(format.FeatureExperts, "mlp.experts.gate_up_proj")
	stacked := p.source(t)

	for name, src := range map[string]format.Source{"three dimensions": threes, "stacked": stacked} {
		spectra, err := rank.Spectra(t.Context(), src, 1)
		if err != nil {
			t.Fatal(name, err)
		}
		for _, s := range spectra {
			var largest, squares float64
			for i := range e {
				var svd mat.SVD
				svd.Factorize(updates(t, src)[fmt.Sprint(s.Module, "/", i)], mat.SVDNone)
				norm := 0.0
				for _, v := range svd.Values(nil) {
					norm += v * v
				}
				squares, largest = squares+norm, max(largest, norm)
			}
			var got float64
			for _, v := range s.SingularValues {
				got += v * v
			}
			if s.Experts != e || math.Abs(got-largest) > 1e-9*largest || math.Abs(s.Frobenius-math.Sqrt(squares)) > 1e-9*s.Frobenius {
				t.Errorf("%s: the spectrum of %s: %+v, want the squares %v and %v", name, s.Module, s, largest, squares)
			}
		}
		if want := len(src.Manifest().Adapters[0].Layers); len(spectra) != want {
			t.Errorf("%s: %d spectra of %d layers", name, len(spectra), want)
		}
		small, report, err := rank.Resize(t.Context(), src, rank.CombineOptions{Rule: rank.FixedRank{K: 2}})
		if err != nil {
			t.Fatal(name, err)
		}
		defer small.Close()
		lost, energy := distance(t, []float64{1}, []format.Source{src}, small)
		if math.Abs(report.Rounded-lost/energy) > 1e-6*lost/energy || report.Rounded < 0.1 {
			t.Errorf("%s: the report has the error %.9g, want %.9g", name, report.Rounded, lost/energy)
		}
		if l := report.Layers[0]; l.Rank != 2 || l.M != m || l.N != n {
			t.Errorf("%s: %+v", name, l)
		}
		sum, report, err := rank.Combine(t.Context(), []format.Source{src, src}, rank.CombineOptions{})
		if err != nil {
			t.Fatal(name, err)
		}
		defer sum.Close()
		if lost, energy = distance(t, []float64{1, 1}, []format.Source{src, src}, sum); lost > 1e-14*energy || report.Layers[0].Rank != 2*r {
			t.Errorf("%s: the sum of rank %d is %.3g of %.3g away", name, report.Layers[0].Rank, lost, energy)
		}
	}
}

// TestResizeKeepsTheScaleAndWhatLosesNothing: the scale of a layer stays, and a layer whose rank is
// low enough keeps its tensors.
func TestResizeKeepsTheScaleAndWhatLosesNothing(t *testing.T) {
	s := newSample(5)
	s.linear("large", dtype.F32, 20, 16, 8, 0.75)
	s.linear("small", dtype.BF16, 20, 16, 2, 3)
	s.Replace("norm.weight", s.values(dtype.F32, 16))
	src := s.source(t)
	for _, c := range []struct {
		rule  rank.Rule
		large int
	}{{rank.FixedRank{K: 3}, 3}, {rank.FixedRank{K: 16}, 8}, {rank.EnergyShare{Share: 1}, 8}} {
		small, report, err := rank.Resize(t.Context(), src, rank.CombineOptions{Rule: c.rule})
		if err != nil {
			t.Fatal(err)
		}
		defer small.Close()
		a := &small.Manifest().Adapters[0]
		if a.Layers[0].Rank != c.large || a.Layers[0].Scale() != 0.75 || a.Layers[1].Rank != 2 || a.Layers[1].Scale() != 3 || len(a.Beside) != 1 {
			t.Errorf("%v: %+v", c.rule, a)
		}
		if !report.Layers[1].Exact || report.Layers[1].Rounded != 0 || report.Layers[0].Exact != (c.large == 8) {
			t.Errorf("%v: %+v", c.rule, report.Layers)
		}
		if was := src.Manifest().Adapters[0].Layers[1]; !slices.Equal(
			read(t, small, a.Layers[1].Roles[format.RoleA]), read(t, src, was.Roles[format.RoleA])) {
			t.Errorf("%v: the small layer changes", c.rule)
		}
	}
}

func read(t *testing.T, src format.Source, tensor int) []byte {
	t.Helper()
	raw, err := format.ReadTensor(t.Context(), src, tensor)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestMaxErrorHoldsForStoredFactors: 16-bit factors lose some of the error that a rule allows.
func TestMaxErrorHoldsForStoredFactors(t *testing.T) {
	s := newSample(6)
	s.linear("m", dtype.F32, 60, 50, 16, 1)
	src := s.source(t)
	for _, e := range []float64{0.3, 0.05, 0.004} {
		small, report, err := rank.Resize(t.Context(), src, rank.CombineOptions{Rule: rank.MaxError(e, 0), DType: dtype.BF16})
		if err != nil {
			t.Fatal(err)
		}
		defer small.Close()
		if lost, energy := distance(t, []float64{1}, []format.Source{src}, small); lost > e*energy || report.Rounded > e {
			t.Errorf("the error is %.4g, and %v is allowed", lost/energy, e)
		}
	}
	_, _, err := rank.Resize(t.Context(), src, rank.CombineOptions{Rule: rank.MaxError(0.0005, 0), DType: dtype.BF16})
	if !errors.Is(err, format.ErrCheck) {
		t.Errorf("an error that BF16 cannot meet: %v", err)
	}
}

// TestBudgetBuysTheMostEnergy: no other ranks within the budget keep more energy than those bought,
// over all combinations.
func TestBudgetBuysTheMostEnergy(t *testing.T) {
	s := newSample(7)
	s.linear("a", dtype.F32, 20, 12, 3, 5)
	s.linear("b", dtype.F32, 12, 20, 3, 1)
	s.linear("c", dtype.F32, 16, 16, 3, 0.02)
	src := s.source(t)
	small, report, err := rank.Resize(t.Context(), src, rank.CombineOptions{Budget: 5 * 4 * 32})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if report.Bytes != 5*4*32 || len(report.Skipped) != 1 || report.Skipped[0].Tensor != "c" {
		t.Errorf("%d bytes, left out %+v", report.Bytes, report.Skipped)
	}
	if lost, energy := distance(t, []float64{1}, []format.Source{src}, small); math.Abs(report.Rounded-lost/energy) > 1e-9 {
		t.Errorf("the report has the error %.6g, want %.6g", report.Rounded, lost/energy)
	}
	if _, _, err := rank.Resize(t.Context(), src, rank.CombineOptions{Budget: 10}); !errors.Is(err, format.ErrMismatch) {
		t.Errorf("a budget of 10 bytes: %v", err)
	}
}

// TestBiasesAndDifferencesAreAdded: what is linear is added; the rest stays, if one adapter has it.
func TestBiasesAndDifferencesAreAdded(t *testing.T) {
	make := func(seed uint64, scale float64) sample {
		s := newSample(seed)
		s.Linear("m", 2, scale, s.values(dtype.F32, 2, 6), s.values(dtype.F32, 5, 2)).Bias(s.values(dtype.F32, 5))
		s.Difference("norm.weight", s.values(dtype.F32, 6))
		return s
	}
	one, other := make(8, 2), make(9, 0.5)
	other.Replace("head.weight", other.values(dtype.F32, 3, 6))
	adapters := []format.Source{one.source(t), other.source(t)}
	sum, _, err := rank.Combine(t.Context(), adapters, rank.CombineOptions{Weights: []float64{0.5, 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer sum.Close()
	a := &sum.Manifest().Adapters[0]
	if len(a.Beside) != 2 || a.Beside[0].Action != format.Difference || a.Beside[1].Action != format.Replace {
		t.Fatalf("beside the layers: %+v", a.Beside)
	}
	floats := func(src format.Source, i int) []float64 {
		x, err := format.ReadFloats(t.Context(), src, i)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	check := func(what string, got, x, y []float64, v, w float64) {
		for i := range got {
			if want := v*x[i] + w*y[i]; math.Abs(got[i]-want) > 1e-6*math.Abs(want)+1e-7 {
				t.Errorf("%s[%d] = %v, want %v", what, i, got[i], want)
			}
		}
	}
	l := func(src format.Source) *format.Layer { return &src.Manifest().Adapters[0].Layers[0] }
	bias := floats(sum, l(sum).Roles[format.RoleBias])
	for i := range bias {
		bias[i] *= l(sum).Scale()
	}
	check("bias", bias, floats(adapters[0], l(adapters[0]).Roles[format.RoleBias]), floats(adapters[1], l(adapters[1]).Roles[format.RoleBias]), 0.5*2, 0.5)
	difference := func(src format.Source) []float64 {
		return floats(src, src.Manifest().Adapters[0].Beside[0].Tensor)
	}
	check("difference", difference(sum), difference(adapters[0]), difference(adapters[1]), 0.5, 1)

	_, _, err = rank.Combine(t.Context(), adapters, rank.CombineOptions{Weights: []float64{1, 0.5}})
	if !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), "head.weight") {
		t.Errorf("half of a saved module: %v", err)
	}
}

// TestRefusalsOfSums: the error names the part without a sum.
func TestRefusalsOfSums(t *testing.T) {
	plain := func() sample {
		s := newSample(10)
		s.linear("m", dtype.F32, 6, 4, 2, 1)
		return s
	}
	dora := newSample(11)
	dora.Linear("m", 2, 1, dora.values(dtype.F32, 2, 4), dora.values(dtype.F32, 6, 2)).Magnitude(dora.values(dtype.F32, 6))
	wide := newSample(12)
	wide.linear("m", dtype.F32, 6, 5, 2, 1)
	residual := plain()
	residual.Require(format.FeaturePiSSA, "")
	turned := plain()
	turned.Require(format.FeatureRotaryPairs, "m")
	broken := newSample(13)
	broken.Linear("m", 1, 1, format.Bytes(dtype.F32, []byte{0, 0, 128, 127, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 1, 4), broken.values(dtype.F32, 6, 1))
	for name, c := range map[string]struct {
		with sample
		want string
	}{
		"DoRA":                 {dora, "magnitudes of DoRA"},
		"another size":         {wide, "6×4 (linear) in adapter 1 and 6×5 (linear) in adapter 2"},
		"PiSSA":                {residual, "pissa"},
		"rows in other orders": {turned, "in the order of llama.cpp"},
		"infinity":             {broken, "1 value of the factors is NaN or infinite"},
	} {
		_, _, err := rank.Combine(t.Context(), []format.Source{plain().source(t), c.with.source(t)}, rank.CombineOptions{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	scaled := newSample(15)
	scaled.linear("m", dtype.F32, 6, 4, 2, 8)
	if _, _, err := rank.Combine(t.Context(), []format.Source{scaled.source(t)}, rank.CombineOptions{Weights: []float64{1e308}}); !errors.Is(err, format.ErrUnsupported) {
		t.Errorf("a weight beyond float64: %v", err)
	}
	// An orientation that one adapter does not say is that of the other.
	for _, c := range []struct {
		first, second, want format.Orientation
		ok                  bool
	}{
		{format.OrientationUnknown, format.MxN, format.MxN, true}, {format.NxM, format.OrientationUnknown, format.NxM, true},
		{format.MxN, format.MxN, format.MxN, true}, {format.MxN, format.NxM, "", false},
	} {
		x, y := plain(), plain()
		x.Adapter().Orientation, y.Adapter().Orientation = c.first, c.second
		sum, _, err := rank.Combine(t.Context(), []format.Source{x.source(t), y.source(t)}, rank.CombineOptions{})
		if (err == nil) != c.ok || c.ok && sum.Manifest().Adapters[0].Orientation != c.want {
			t.Errorf("%q and %q: %v", c.first, c.second, err)
		}
		if err == nil {
			sum.Close()
		}
	}
	// The same weights under two names.
	for names, want := range map[[2]string]bool{
		{"l.self_attn.q_proj", "l.self_attn.qkv_proj"}: true, {"l.mlp.gate_up_proj", "l.mlp.up_proj"}: true,
		{"l.mlp.experts.3.up_proj", "l.mlp.experts.up_proj"}: true, {"l.moe.experts.0.w1", "l.moe.experts.0.gate_proj"}: true,
		{"l.self_attn.q_proj", "k.self_attn.qkv_proj"}: false, {"l.mlp.up_proj", "l.mlp.down_proj"}: false,
		{"l.mlp.experts.3.up_proj", "l.mlp.experts.2.down_proj"}: false,
	} {
		var pair []format.Source
		for _, name := range names {
			s := newSample(14)
			s.linear(name, dtype.F32, 6, 4, 1, 1)
			pair = append(pair, s.source(t))
		}
		sum, _, err := rank.Combine(t.Context(), pair, rank.CombineOptions{})
		if err == nil {
			sum.Close()
		}
		if (err != nil) != want || err != nil && !strings.Contains(err.Error(), "in two ways") {
			t.Errorf("%q: %v", names, err)
		}
	}
	small, _, err := rank.Resize(t.Context(), dora.source(t), rank.CombineOptions{Rule: rank.FixedRank{K: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if _, ok := small.Manifest().Adapters[0].Layers[0].Roles[format.RoleMagnitude]; !ok {
		t.Error("resizing drops the magnitudes of DoRA")
	}
}
