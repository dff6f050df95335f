package rank_test

import (
	"math"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/rank"
	"gonum.org/v1/gonum/mat"
)

// pruned keeps the share of the elements with the largest magnitudes.
func pruned(x *mat.Dense, density float64) *mat.Dense {
	m, n := x.Dims()
	var all []float64
	for i := range m {
		for j := range n {
			all = append(all, math.Abs(x.At(i, j)))
		}
	}
	slices.Sort(all)
	least := all[len(all)-int(math.Ceil(density*float64(len(all))))]
	y := mat.NewDense(m, n, nil)
	y.Apply(func(_, _ int, v float64) float64 {
		if math.Abs(v) < least {
			return 0
		}
		return v
	}, x)
	return y
}

// elected is TIES by its definition (arXiv:2306.01708, algorithm 1, with a weight for each task).
func elected(parts []*mat.Dense, weights []float64) *mat.Dense {
	m, n := parts[0].Dims()
	y := mat.NewDense(m, n, nil)
	for i := range m {
		for j := range n {
			var total, sum float64
			for _, p := range parts {
				total += p.At(i, j)
			}
			count := 0.0
			for k, p := range parts {
				if v := p.At(i, j); v > 0 && total >= 0 || v < 0 && total < 0 {
					sum += weights[k] * v
					count++
				}
			}
			if count > 0 {
				y.Set(i, j, sum/count)
			}
		}
	}
	return y
}

func threeAdapters(t *testing.T) (adapters []format.Source) {
	for seed := range uint64(3) {
		s := newSample(31 + seed)
		s.linear("m", dtype.F32, 40, 30, 3+seed, 0.5+float64(seed))
		adapters = append(adapters, s.source(t))
	}
	return adapters
}

// TestMethods: at full rank the result of pruning and of TIES is that of their definitions, element
// by element.
func TestMethods(t *testing.T) {
	adapters := threeAdapters(t)
	weights := []float64{1, 0.5, -2}
	for _, density := range []float64{0.2, 0.71, 1} {
		var parts []*mat.Dense
		sum := mat.NewDense(40, 30, nil)
		for i, a := range adapters {
			p := pruned(updates(t, a)["m/0"], density)
			parts = append(parts, p)
			var x mat.Dense
			x.Scale(weights[i], p)
			sum.Add(sum, &x)
		}
		for method, want := range map[rank.Method]*mat.Dense{rank.Prune: sum, rank.TIES: elected(parts, weights)} {
			made, report, err := rank.Combine(t.Context(), adapters, rank.CombineOptions{
				Weights: weights, Method: method, Density: density, Rule: rank.FixedRank{K: 30},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer made.Close()
			var d mat.Dense
			d.Sub(want, updates(t, made)["m/0"])
			if lost := mat.Norm(&d, 2) / mat.Norm(want, 2); lost > 1e-5 {
				t.Errorf("%s with the density %v: the result is %.3g away", method, density, lost)
			}
			if l := report.Layers[0]; math.Abs(l.Frobenius-mat.Norm(want, 2)) > 1e-5*l.Frobenius || l.Exact {
				t.Errorf("%s: %+v, want the norm %v", method, l, mat.Norm(want, 2))
			}
		}
	}
}

// TestRandomMethods: DARE keeps about a share of the elements, divided by it, the same ones for any
// number of workers, and all of them at density 1.
func TestRandomMethods(t *testing.T) {
	adapters := threeAdapters(t)
	dare := func(n int, o rank.CombineOptions) *mat.Dense {
		t.Helper()
		o.Rule = rank.FixedRank{K: 30}
		made, _, err := rank.Combine(t.Context(), adapters[:n], o)
		if err != nil {
			t.Fatal(err)
		}
		defer made.Close()
		return updates(t, made)["m/0"]
	}
	one := updates(t, adapters[0])["m/0"]
	const density = 0.4
	got := dare(1, rank.CombineOptions{Method: rank.DARE, Density: density, Seed: 7})
	kept := 0
	for i := range 40 {
		for j := range 30 {
			v, w := got.At(i, j), one.At(i, j)
			switch {
			case math.Abs(v-w/density) < 1e-4*math.Abs(w)+1e-4:
				kept++
			case math.Abs(v) > 1e-4:
				t.Fatalf("element (%d, %d) is %v, want 0 or %v", i, j, v, w/density)
			}
		}
	}
	// 1200 elements with the probability 0.4: the standard deviation is 17.
	if kept < 480-70 || kept > 480+70 {
		t.Errorf("%d of 1200 elements stay, want about 480", kept)
	}
	if again := dare(1, rank.CombineOptions{Method: rank.DARE, Density: density, Seed: 7, Workers: 3}); !mat.Equal(got, again) {
		t.Error("the result depends on the number of workers")
	}
	if other := dare(1, rank.CombineOptions{Method: rank.DARE, Density: density, Seed: 8}); mat.EqualApprox(got, other, 1e-3) {
		t.Error("the result does not depend on the seed")
	}
	for method, want := range map[rank.Method]rank.Method{rank.DARE: rank.Prune, rank.DARETIES: rank.TIES} {
		x, y := dare(3, rank.CombineOptions{Method: method, Density: 1}), dare(3, rank.CombineOptions{Method: want, Density: 1})
		if !mat.Equal(x, y) {
			t.Errorf("%s and %s differ at density 1", method, want)
		}
	}
}

// TestMethodOptions: what a method needs, and what it does not take.
func TestMethodOptions(t *testing.T) {
	adapters := threeAdapters(t)
	rule := rank.FixedRank{K: 4}
	for _, o := range []rank.CombineOptions{
		{Method: "mean", Rule: rule, Density: 0.5},
		{Method: rank.TIES, Density: 0.5},
		{Method: rank.TIES, Rule: rule},
		{Method: rank.DARE, Rule: rule, Density: 1.5},
		{Density: 0.5},
	} {
		if _, _, err := rank.Combine(t.Context(), adapters, o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
