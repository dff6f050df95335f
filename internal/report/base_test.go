package report

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/rectangle"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/thin"
	"github.com/loratool/loratool/merge"
	"gonum.org/v1/gonum/mat"
)

const cases = "../../testdata/peft/merge/"

// fixture is a case of PEFT: an adapter, its base, and the merged values in float64.
type fixture struct {
	adapter     format.Source
	path        string // of the base
	base, truth *checkpoint.Checkpoint
	options     merge.Options
}

// openFixture opens a case. ok is false if it has several adapters.
func openFixture(t *testing.T, name string) (f *fixture, ok bool) {
	t.Helper()
	var about struct {
		Base    string
		Options merge.Options // those that the case needs
		Weights []float64
	}
	text, err := os.ReadFile(cases + name + "/case.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &about); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(about.Weights, []float64{1}) {
		return nil, false
	}
	f = &fixture{path: "../../testdata/peft/bases/" + about.Base, options: about.Options}
	open := func(path string) *checkpoint.Checkpoint {
		c, err := checkpoint.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	f.base, f.truth = open(f.path), open(cases+name+"/truth.safetensors")
	f.adapter, err = convert.Open(t.Context(), cases+name+"/adapter", convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.adapter.Close() })
	return f, true
}

// values reads a tensor.
func values(t *testing.T, c *checkpoint.Checkpoint, name string) []float64 {
	t.Helper()
	ref, ok := c.Lookup(name)
	if !ok {
		t.Fatalf("there is no %q", name)
	}
	raw := make([]byte, ref.Tensor.NBytes)
	if err := ref.Tensor.ReadAt(t.Context(), raw, 0); err != nil {
		t.Fatal(err)
	}
	v := make([]float64, ref.Tensor.Elements())
	dtype.Widen64(v, ref.Tensor.DType, raw)
	return v
}

// cutOut returns a rectangle's part of a tensor, as a matrix in memory.
func cutOut(r *rectangle.Rectangle, v []float64) *mat.Dense {
	nRows, nCols := r.Matrix()
	first := r.Band * int(nRows) / r.NBands
	m := mat.NewDense(len(r.Rows), len(r.Cols), nil)
	for i, row := range r.Rows {
		for j, col := range r.Cols {
			m.Set(i, j, v[(first+row)*int(nCols)+col])
		}
	}
	return m
}

func near(got, want, relative float64) bool { return math.Abs(got-want) <= relative*math.Abs(want) }

// TestAmplificationAgreesWithFullDecompositions compares all figures with the definition: ΔW is the
// difference between the model that PEFT merged in float64 and the base, and U and V come from its
// full decomposition by gonum. The cases have linear layers, experts, convolutions, embeddings and
// projections that are parts of a fused weight.
func TestAmplificationAgreesWithFullDecompositions(t *testing.T) {
	entries, err := os.ReadDir(cases)
	if err != nil {
		t.Fatal(err)
	}
	measured := make(map[string]int)
	for _, e := range entries {
		f, ok := openFixture(t, e.Name())
		if !ok {
			continue
		}
		view, changes, err := changesOf(f.base, one(f.adapter, e.Name()), &f.options)
		if err != nil {
			t.Fatalf("%s: %v", e.Name(), err)
		}
		f.base = view
		for _, c := range changes {
			if whyNotThin(c) != "" || c.Rows != nil {
				continue
			}
			for _, r := range rectangle.Of(c) {
				measured[kindOfRectangle(r)]++
				compareLayer(t, f, r)
			}
		}
	}
	for _, kind := range []string{"matrix", "expert", "convolution", "part"} {
		if measured[kind] == 0 {
			t.Errorf("no case has a %s: %v", kind, measured)
		}
	}
}

func kindOfRectangle(r *rectangle.Rectangle) string {
	nRows, nCols := r.Matrix()
	switch {
	case len(r.Rows) < int(nRows)/r.NBands || len(r.Cols) < int(nCols):
		return "part"
	case r.NBands > 1:
		return "expert"
	case len(r.Shape) > 2:
		return "convolution"
	}
	return "matrix"
}

func compareLayer(t *testing.T, f *fixture, r *rectangle.Rectangle) {
	t.Helper()
	got, err := measureLayer(t.Context(), r, f.base, make(map[resolve.Blob][]byte), &BaseOptions{Own: true, Intruders: true})
	if err != nil {
		t.Fatal(err)
	}
	w := cutOut(r, values(t, f.base, r.Name))
	var delta mat.Dense
	delta.Sub(cutOut(r, values(t, f.truth, r.Name)), w)
	want := LayerOnBase{Norm: mat.Norm(&delta, 2), BaseNorm: mat.Norm(w, 2)}
	var svd mat.SVD
	if !svd.Factorize(&delta, mat.SVDThin) {
		t.Fatal("gonum finds no decomposition")
	}
	for _, s := range svd.Values(nil) {
		if s > 1e-9*svd.Values(nil)[0] {
			want.Rank++
		}
	}
	if want.Rank > 0 {
		var u, v, right, inner mat.Dense
		svd.UTo(&u)
		svd.VTo(&v)
		m, n := w.Dims()
		right.Mul(w, v.Slice(0, n, 0, want.Rank))
		inner.Mul(u.Slice(0, m, 0, want.Rank).T(), &right)
		want.Projected = mat.Norm(&inner, 2)
	}
	compareControls(t, got, want.Rank, w, &delta)
	const relative = 1e-6 // ΔW is what rounding to float64 has left of it
	if got.Rank != want.Rank || !near(got.Norm, want.Norm, relative) || !near(got.BaseNorm, want.BaseNorm, 1e-12) ||
		!near(got.Projected, want.Projected, relative) || !near(got.Relative, want.Norm/want.BaseNorm, relative) {
		t.Errorf("%s of %s: got %+v, want %+v", r.Name, f.path, *got, want)
	}
	if a := want.Norm / want.Projected; want.Rank > 0 && !near(float64(got.Amplification), a, relative) {
		t.Errorf("%s of %s: amplification %v, want %v", r.Name, f.path, got.Amplification, a)
	}
}

// compareControls compares with decompositions of W and of W + ΔW by gonum.
func compareControls(t *testing.T, got *LayerOnBase, k int, w, delta *mat.Dense) {
	t.Helper()
	var merged mat.Dense
	merged.Add(w, delta)
	var before, after mat.SVD
	if !before.Factorize(w, mat.SVDThin) || !after.Factorize(&merged, mat.SVDThin) {
		t.Fatal("gonum finds no decomposition")
	}
	var own float64
	for _, s := range before.Values(nil)[:k] {
		own += s * s
	}
	if !near(*got.Own, math.Sqrt(own), 1e-4) {
		t.Errorf("%s: own directions have %v, want %v", got.Tensor, *got.Own, math.Sqrt(own))
	}
	var u, v, cosines mat.Dense
	before.UTo(&u)
	after.UTo(&v)
	cosines.Mul(v.T(), &u)
	want := 0
	n, _ := cosines.Dims()
	for j := range min(10, n) {
		row := cosines.RawRowView(j)
		if max(slices.Max(row), -slices.Min(row)) < 0.5 {
			want++
		}
	}
	if *got.Intruders != want {
		t.Errorf("%s: %d intruders, want %d", got.Tensor, *got.Intruders, want)
	}
}

// TestIntruderIsSeen: ΔW is a strong direction at the same angle to all eight of W. A ΔW in a
// direction of W is no intruder.
func TestIntruderIsSeen(t *testing.T) {
	const n = 8
	w := make([]float32, n*n)
	for i := range n {
		w[i*n+i] = float32(n - i)
	}
	even, one := make([]float64, n), make([]float64, n)
	for i := range n {
		even[i] = 1
	}
	one[3] = 1
	for _, c := range []struct {
		direction []float64
		want      int
	}{{even, 1}, {one, 0}} {
		delta := &thin.Matrix{M: n, N: n, R: 1, B: c.direction, A: c.direction, Exponent: 10}
		got, _, err := intruders(t.Context(), w, n, n, delta)
		if err != nil || got != c.want {
			t.Errorf("%v: got %d, error %v, want %d", c.direction, got, err, c.want)
		}
	}
}

// TestFiguresOfTable7: layer 48 of GPT-3, W_q of 12288×12288, in table 7 of Hu et al.,
// arXiv:2106.09685. The table rounds to two places.
func TestFiguresOfTable7(t *testing.T) {
	for _, c := range []struct {
		rank                      int
		norm, projected           float64
		random, amplified, within float64
	}{
		{4, 6.91, 0.32, 0.0202, 21.5, 0.4},
		{64, 3.57, 1.90, 0.323, 1.9, 0.03},
	} {
		l := LayerOnBase{Rank: c.rank, Rows: 12288, Columns: 12288, Norm: c.norm, BaseNorm: 61.95, Projected: c.projected}
		l.relate()
		if !near(l.Random, c.random, 2e-3) {
			t.Errorf("rank %d: random directions have %v, want %v", c.rank, l.Random, c.random)
		}
		if math.Abs(float64(l.Amplification)-c.amplified) > c.within {
			t.Errorf("rank %d: amplification %v, want %v", c.rank, l.Amplification, c.amplified)
		}
	}
}

// TestKeptIsWhatRoundingLeaves compares with the truth of PEFT, rounded to bfloat16 element by
// element.
func TestKeptIsWhatRoundingLeaves(t *testing.T) {
	f, _ := openFixture(t, "bf16-all-linear")
	got, err := CompareBase(t.Context(), f.adapter, f.path, BaseOptions{Merge: merge.Options{Workers: 1}})
	if err != nil || !got.Fits || got.Kept == nil {
		t.Fatalf("got %+v, error %v", got, err)
	}
	var elements, unchanged int
	var lost, wanted float64
	for _, name := range f.truth.Names() {
		truth, w := values(t, f.truth, name), values(t, f.base, name)
		raw := make([]byte, dtype.BF16.Size())
		for i := range w {
			dtype.Store(dtype.BF16, raw, 0, truth[i])
			out := dtype.Load(dtype.BF16, raw, 0)
			if elements++; out == w[i] {
				unchanged++
			}
			lost += (out - truth[i]) * (out - truth[i])
			wanted += (truth[i] - w[i]) * (truth[i] - w[i])
		}
	}
	if share := float64(unchanged) / float64(elements); float64(got.Kept.UnchangedShare) != share {
		t.Errorf("unchanged %v, want %v", got.Kept.UnchangedShare, share)
	}
	if want := math.Sqrt(lost / wanted); !near(float64(got.Kept.RetentionError), want, 1e-5) {
		t.Errorf("lost %v, want %v", got.Kept.RetentionError, want)
	}
	if len(got.Stored) != len(f.truth.Names()) || got.Tensors != len(got.Stored) {
		t.Errorf("got %d tensors and %d figures, want %d", got.Tensors, len(got.Stored), len(f.truth.Names()))
	}
}

func TestRefusalIsAResult(t *testing.T) {
	f, _ := openFixture(t, "f32")
	other, _ := openFixture(t, "gpt2-conv1d")
	got, err := CompareBase(t.Context(), f.adapter, other.path, BaseOptions{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Fits || !strings.Contains(got.Refusal, "q_proj") || len(got.Layers) > 0 {
		t.Errorf("got %+v", got)
	}
	if !errors.Is(got.Check(), fault.Check) {
		t.Errorf("Check returns %v", got.Check())
	}
	if _, err := CompareBase(t.Context(), f.adapter, filepath.Join(t.TempDir(), "none"), BaseOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a base that is not there: %v", err)
	}
}

// TestOptionsOfAMergeDecideWhetherItFits: an adapter for a tied embedding fits only with a choice,
// and the head that a merge adds is compared with the embedding that it was.
func TestOptionsOfAMergeDecideWhetherItFits(t *testing.T) {
	f, _ := openFixture(t, "tied-head-untie")
	got, err := CompareBase(t.Context(), f.adapter, f.path, BaseOptions{Name: "a"})
	if err != nil || got.Fits || !strings.Contains(got.Hint, "Options.Tied=untie") || len(got.Options) > 0 {
		t.Errorf("without options: %+v, error %v", got, err)
	}
	for _, tied := range []merge.Tied{merge.Untie, merge.Fold} {
		got, err := CompareBase(t.Context(), f.adapter, f.path, BaseOptions{Merge: merge.Options{Reading: merge.Reading{Tied: tied}}})
		if err != nil || !got.Fits || !slices.Equal(got.Options, []string{"Options.Tied=" + string(tied)}) {
			t.Fatalf("with %s: %+v, error %v", tied, got, err)
		}
		tensor := map[merge.Tied]string{merge.Untie: "lm_head.weight", merge.Fold: "model.embed_tokens.weight"}[tied]
		i := slices.IndexFunc(got.Layers, func(l LayerOnBase) bool { return l.Tensor == tensor })
		if i < 0 {
			t.Fatalf("with %s no layer changes %s", tied, tensor)
		}
		if want := mat.Norm(mat.NewVecDense(len(values(t, f.base, "model.embed_tokens.weight")), values(t, f.base, "model.embed_tokens.weight")), 2); !near(got.Layers[i].BaseNorm, want, 1e-12) {
			t.Errorf("with %s ‖W‖ = %v, want %v", tied, got.Layers[i].BaseNorm, want)
		}
	}
	r, err := CompareChange(t.Context(), f.adapter, handle(f.base), handle(f.truth), ChangeOptions{Merge: f.options})
	if err != nil || slices.Contains(r.Elsewhere, "lm_head.weight") || r.Residual > 1e-12*r.Change {
		t.Errorf("the difference: %+v, error %v", r, err)
	}
}

// TestWorkIsAnnounced: the bytes that are done reach the total of each work.
func TestWorkIsAnnounced(t *testing.T) {
	f, _ := openFixture(t, "f32")
	works := func(run func(b Begin) error) string {
		totals, sums, order := make(map[string]int64), make(map[string]*atomic.Int64), []string(nil)
		if err := run(func(work string, bytes int64) func(int64) {
			sum := new(atomic.Int64)
			totals[work], sums[work], order = bytes, sum, append(order, work)
			return func(n int64) { sum.Add(n) }
		}); err != nil {
			t.Fatal(err)
		}
		for work, sum := range sums {
			// The size of a checkpoint has headers, too.
			if n := sum.Load(); n > totals[work] || n < totals[work]-4096 || n == 0 {
				t.Errorf("%s: %d bytes of %d", work, n, totals[work])
			}
		}
		return strings.Join(order, ", ")
	}
	if got := works(func(b Begin) error {
		_, err := CompareBase(t.Context(), f.adapter, f.path, BaseOptions{Begin: b})
		return err
	}); got != "merging, comparing" {
		t.Errorf("CompareBase announces %s", got)
	}
	if got := works(func(b Begin) error {
		_, err := CompareChange(t.Context(), f.adapter, handle(f.base), handle(f.truth), ChangeOptions{Begin: b})
		return err
	}); got != "comparing, comparing ΔW" {
		t.Errorf("CompareChange announces %s", got)
	}
}

// TestLayersWithoutAThinProductAreNamed: DoRA rescales W, and PiSSA takes a part of it.
func TestLayersWithoutAThinProductAreNamed(t *testing.T) {
	f, _ := openFixture(t, "dora")
	got, err := CompareBase(t.Context(), f.adapter, f.path, BaseOptions{})
	if err != nil || !got.Fits {
		t.Fatalf("got %+v, error %v", got, err)
	}
	if len(got.Layers) > 0 || len(got.NotMeasured) != got.Tensors || got.NotMeasured[0].Why != "DoRA also rescales W" {
		t.Errorf("got %+v", got)
	}
}

func TestAllowIsAskedBeforeTheWork(t *testing.T) {
	f, _ := openFixture(t, "f32")
	no := errors.New("no")
	var asked []int64
	if _, err := CompareBase(t.Context(), f.adapter, f.path, BaseOptions{Allow: func(n int64) error {
		asked = append(asked, n)
		if len(asked) == 2 {
			return no
		}
		return nil
	}}); err != no || asked[0] <= 0 || asked[1] <= 0 {
		t.Errorf("got %v after %v", err, asked)
	}
}

// TestZeroUpdateHasNoAmplification: B is zero, and JSON has null in place of a number.
func TestZeroUpdateHasNoAmplification(t *testing.T) {
	f, _ := openFixture(t, "untrained")
	got, err := CompareBase(t.Context(), f.adapter, f.path, BaseOptions{})
	if err != nil || len(got.Layers) == 0 {
		t.Fatalf("got %+v, error %v", got, err)
	}
	l := got.Layers[0]
	text, err := json.Marshal(l)
	if err != nil || l.Rank != 0 || l.Norm != 0 || !strings.Contains(string(text), `"amplification":null`) {
		t.Errorf("got %s, error %v", text, err)
	}
}
