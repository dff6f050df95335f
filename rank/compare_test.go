package rank_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/rank"
	"gonum.org/v1/gonum/mat"
)

// phi is φ(i, j) by the definition, of the right singular vectors of two whole matrices.
func phi(x, y *mat.Dense, i, j int) float64 {
	right := func(x *mat.Dense) *mat.Dense {
		var svd mat.SVD
		if !svd.Factorize(x, mat.SVDThin) {
			panic("no convergence")
		}
		var v mat.Dense
		svd.VTo(&v)
		return &v
	}
	rows, _ := right(x).Dims()
	var p mat.Dense
	p.Mul(right(x).Slice(0, rows, 0, i).T(), right(y).Slice(0, rows, 0, j))
	return math.Pow(mat.Norm(&p, 2), 2) / float64(min(i, j))
}

func inner(x, y *mat.Dense) float64 {
	var p mat.Dense
	p.MulElem(x, y)
	return mat.Sum(&p)
}

func about(got, want float64) bool { return math.Abs(got-want) <= 1e-9+1e-7*math.Abs(want) }

// TestCompare: norms, products and similarities are those of the whole ΔW.
func TestCompare(t *testing.T) {
	adapters := twoAdapters(t)
	a, b := updates(t, adapters[0]), updates(t, adapters[1])
	c, err := rank.Compare(t.Context(), adapters[0], adapters[1], rank.CompareOptions{Directions: 3})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.OnlyA, []string{"embed", "first"}) || !slices.Equal(c.OnlyB, []string{"second"}) || len(c.Layers) != 2 {
		t.Fatalf("only %q and %q, both %d", c.OnlyA, c.OnlyB, len(c.Layers))
	}
	for _, l := range c.Layers {
		x, y := a[l.Module+"/0"], b[l.Module+"/0"]
		var d, s mat.Dense
		d.Sub(x, y)
		s.Add(x, y)
		nx, ny := mat.Norm(x, 2), mat.Norm(y, 2)
		for what, v := range map[string][2]float64{
			"‖ΔA‖":         {l.NormA, nx},
			"‖ΔB‖":         {l.NormB, ny},
			"‖ΔA − ΔB‖":    {l.NormDifference, mat.Norm(&d, 2)},
			"cosine":       {l.Cosine, inner(x, y) / nx / ny},
			"interference": {l.Interference, math.Pow(mat.Norm(&s, 2), 2) / (nx*nx + ny*ny)},
			"overlap":      {l.Overlap, phi(x, y, l.Directions, l.Directions)},
			"overlap out":  {l.OverlapOut, phi(mat.DenseCopyOf(x.T()), mat.DenseCopyOf(y.T()), l.Directions, l.Directions)},
			"random":       {l.Random, float64(l.Directions) / float64(l.N)},
		} {
			if !about(v[0], v[1]) {
				t.Errorf("%s: %s is %.12g, want %.12g", l.Module, what, v[0], v[1])
			}
		}
		for i, row := range l.Similarity {
			for j, v := range row {
				if want := phi(x, y, i+1, j+1); !about(v, want) {
					t.Errorf("%s: φ(%d, %d) = %.12g, want %.12g", l.Module, i+1, j+1, v, want)
				}
			}
		}
	}
	var all, products float64
	for name, x := range a {
		all += inner(x, x)
		if y := b[name]; y != nil {
			products += inner(x, y)
		}
	}
	var others float64
	for _, y := range b {
		others += inner(y, y)
	}
	if !about(c.NormA, math.Sqrt(all)) || !about(c.NormB, math.Sqrt(others)) || !about(c.NormDifference, math.Sqrt(all+others-2*products)) ||
		!about(c.Cosine, products/math.Sqrt(all*others)) || !about(c.Interference, 1+2*products/(all+others)) {
		t.Errorf("totals %+v", c)
	}
}

// TestCompareWithItself: φ(X, X, i, j) = 1, the cosine is 1, and nothing is left of the difference.
// Another factorization of the same ΔW changes nothing but the rounding of its factors, which the
// condition of G magnifies.
func TestCompareWithItself(t *testing.T) {
	const m, n, r = 30, 20, 4
	s := newSample(21)
	a, b := s.values(dtype.F64, r, n), s.values(dtype.F64, m, r)
	s.Linear("m", r, 2, a, b)
	one := s.source(t)
	x, err := format.ReadFloats(t.Context(), one, 0)
	if err != nil {
		t.Fatal(err)
	}
	y, err := format.ReadFloats(t.Context(), one, 1)
	if err != nil {
		t.Fatal(err)
	}
	var g, inverse, ga, bg mat.Dense
	g.CloneFrom(mat.NewDense(r, r, nil))
	for i := range r {
		for j := range r {
			g.Set(i, j, s.rng.NormFloat64())
		}
	}
	if err := inverse.Inverse(&g); err != nil {
		t.Fatal(err)
	}
	ga.Mul(&inverse, mat.NewDense(r, n, x))
	bg.Mul(mat.NewDense(m, r, y), &g)
	other := new(handMade)
	other.add(dtype.F64, 2*r, m, n, r, ga.RawMatrix().Data, bg.RawMatrix().Data)
	other.manifest.Adapters[0].Layers[0].Module = "m"
	for name, src := range map[string]format.Source{"itself": one, "another factorization": other} {
		c, err := rank.Compare(t.Context(), one, src, rank.CompareOptions{})
		if err != nil {
			t.Fatal(err)
		}
		l := c.Layers[0]
		if math.Abs(l.Cosine-1) > 1e-10 || l.NormDifference > 1e-10*l.NormA || math.Abs(l.Interference-2) > 1e-10 || l.Directions != r {
			t.Errorf("%s: %+v", name, l)
		}
		for _, row := range l.Similarity {
			for _, v := range row {
				if math.Abs(v-1) > 1e-9 {
					t.Errorf("%s: φ = %v", name, l.Similarity)
				}
			}
		}
	}
}

// TestRandomSpaces: φ(i, j) of random spaces in n dimensions is max(i, j)/n on average.
func TestRandomSpaces(t *testing.T) {
	const n, r, rounds = 24, 6, 300
	rng := rand.New(rand.NewPCG(22, 23))
	var mean [r][r]float64
	for range rounds {
		pair := [2]*handMade{new(handMade), new(handMade)}
		for _, s := range pair {
			a, b := make([]float64, r*n), make([]float64, n*r)
			for i := range a {
				a[i], b[i] = rng.NormFloat64(), rng.NormFloat64()
			}
			s.add(dtype.F64, r, n, n, r, a, b)
		}
		c, err := rank.Compare(t.Context(), pair[0], pair[1], rank.CompareOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i, row := range c.Layers[0].Similarity {
			for j, v := range row {
				mean[i][j] += v / rounds
			}
		}
	}
	for i := range r {
		for j := range r {
			// The standard deviation of φ(1, 1), the largest, is 0.056; that of its mean 0.0033.
			if want := float64(max(i, j)+1) / n; math.Abs(mean[i][j]-want) > 0.014 {
				t.Errorf("φ(%d, %d) is %.4f on average, want %.4f", i+1, j+1, mean[i][j], want)
			}
		}
	}
}

// TestCompareOfOtherTensors: biases, magnitudes and tensors beside the layers are compared by
// value.
func TestCompareOfOtherTensors(t *testing.T) {
	make := func(seed uint64, same, bias float64) format.Source {
		s := newSample(seed)
		one := newSample(27)
		s.Linear("m", 1, 1, one.values(dtype.F32, 1, 4), one.values(dtype.F32, 3, 1)).Bias(format.Float32s([]float32{1, 2, float32(bias)}, 3))
		s.Replace("same", format.Float32s([]float32{float32(same), 5}, 2))
		return s.source(t)
	}
	for _, c := range []struct {
		same, bias float64
		want       []rank.Status
		relative   float64
	}{
		{1, 2, []rank.Status{rank.Identical, rank.Identical}, 0},
		{1, 6, []rank.Status{rank.Changed, rank.Identical}, 4 / math.Sqrt(1+4+36)},
		{math.NaN(), 2, []rank.Status{rank.Identical, rank.Changed}, 0},
	} {
		x, err := rank.Compare(t.Context(), make(1, 1, 2), make(2, c.same, c.bias), rank.CompareOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(x.Tensors) != 2 || x.Tensors[0].Status != c.want[0] || x.Tensors[1].Status != c.want[1] || math.Abs(x.Tensors[0].Relative-c.relative) > 1e-15 {
			t.Errorf("%+v: %+v", c, x.Tensors)
		}
		if isSame := c.same == 1 && c.bias == 2; x.Same() != isSame {
			t.Errorf("%+v: same is %v", c, x.Same())
		}
	}
}

// TestCompareOfWhatDiffers: layers of other sizes, meanings or methods are listed with the reason.
func TestCompareOfWhatDiffers(t *testing.T) {
	one, other := newSample(24), newSample(25)
	one.linear("size", dtype.F32, 6, 4, 2, 1)
	other.linear("size", dtype.F32, 6, 5, 2, 1)
	one.linear("rows", dtype.F32, 6, 4, 2, 1)
	other.linear("rows", dtype.F32, 6, 4, 2, 1)
	other.Require(format.FeatureRotaryPairs, "rows")
	one.linear("zero", dtype.F32, 6, 4, 2, 0)
	other.linear("zero", dtype.F32, 6, 4, 2, 1)
	c, err := rank.Compare(t.Context(), one.source(t), other.source(t), rank.CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.NotCompared) != 2 || c.NotCompared[0].Module != "rows" || c.NotCompared[1].Module != "size" || len(c.Layers) != 1 {
		t.Errorf("not compared: %+v", c.NotCompared)
	}
	if l := c.Layers[0]; l.NormA != 0 || l.Cosine != 0 || l.Interference != 1 || l.Directions != 0 || l.NormB == 0 {
		t.Errorf("%+v", l)
	}
}

// TestLayersWithoutElements: a weight without rows or columns has a spectrum and a comparison, of
// zeros, and nothing to truncate.
func TestLayersWithoutElements(t *testing.T) {
	for _, c := range [][2]int{{0, 4}, {4, 0}, {0, 0}} {
		s := new(handMade)
		s.add(dtype.F32, 1, c[0], c[1], 2, make([]float64, 2*c[1]), make([]float64, 2*c[0]))
		if _, err := rank.Spectra(t.Context(), s, 1); err != nil {
			t.Error(err)
		}
		if r, err := rank.Compare(t.Context(), s, s, rank.CompareOptions{}); err != nil || !r.Same() {
			t.Errorf("%v: %+v, %v", c, r, err)
		}
		if _, _, err := rank.Resize(t.Context(), s, rank.CombineOptions{Rule: rank.FixedRank{K: 1}}); !errors.Is(err, format.ErrCorrupt) {
			t.Errorf("%v: %v", c, err)
		}
	}
}
