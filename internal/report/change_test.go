package report

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	model "github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

func handle(c *checkpoint.Checkpoint) *model.Checkpoint {
	return (*model.Checkpoint)(checkpoint.NewHandle(c))
}

// TestChangeOfPEFT: the difference between PEFT's merge in float64 and the base is the ΔW of the
// adapter, in every case with one adapter: the weight is 1, and −1 the other way around.
func TestChangeOfPEFT(t *testing.T) {
	entries, err := os.ReadDir(cases)
	if err != nil {
		t.Fatal(err)
	}
	measured := 0
	for _, e := range entries {
		f, ok := openFixture(t, e.Name())
		if !ok {
			continue
		}
		r, err := CompareChange(t.Context(), f.adapter, handle(f.base), handle(f.truth), ChangeOptions{Name: e.Name(), Merge: f.options})
		if err != nil {
			t.Errorf("%s: %v", e.Name(), err)
			continue
		}
		for _, l := range r.Layers {
			measured++
			// PEFT adds ΔW to W in float64, so that Δ has an error of 2⁻⁵³·|W|.
			if l.Residual > 1e-12*(l.Change+1) || math.Abs(l.Weight-1) > 1e-11 && l.Norm > 0 {
				t.Errorf("%s: %+v", e.Name(), l)
			}
		}
	}
	if measured < 100 {
		t.Errorf("%d layers were measured, want more than 100", measured)
	}
}

// TestChangeOfAnotherWeight: Δ of twice the update and of a change that is no ΔW, and a tensor that
// the adapter does not change.
func TestChangeOfAnotherWeight(t *testing.T) {
	open := func(name string, tensors ...testkit.Tensor) *model.Checkpoint {
		path := filepath.Join(t.TempDir(), name+".safetensors")
		testkit.Write(t, path, testkit.Encode(nil, tensors...))
		c, err := model.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	square := []uint64{2, 2}
	base := open("base",
		testkit.Values("a.weight", dtype.F32, square, 1, 2, 3, 4), testkit.Values("b.weight", dtype.F32, square, 0, 0, 0, 0),
		testkit.Values("norm.weight", dtype.F32, []uint64{2}, 1, 1), testkit.Values("same.weight", dtype.F32, []uint64{2}, 1, 1))
	tuned := open("tuned",
		testkit.Values("a.weight", dtype.F64, square, 1+6, 2, 3+12, 4), testkit.Values("b.weight", dtype.F32, square, 0, 5, 0, 0),
		testkit.Values("norm.weight", dtype.F32, []uint64{2}, 1, 2), testkit.Values("same.weight", dtype.F16, []uint64{2}, 1, 1))
	x := format.NewBuilder("")
	for _, module := range []string{"a", "b"} { // ΔW = [3 0; 6 0]
		x.Linear(module, 1, 3, format.Float32s([]float32{1, 0}), format.Float32s([]float32{1, 2}))
	}
	src, err := x.Source()
	if err != nil {
		t.Fatal(err)
	}
	r, err := CompareChange(t.Context(), src, base, tuned, ChangeOptions{Name: "adapter", Merge: merge.Options{Workers: 1}})
	if err != nil {
		t.Fatal(err)
	}
	norm := math.Sqrt(45)
	want := []LayerOnChange{
		{Module: "a", Tensor: "a.weight", Change: 2 * norm, Norm: norm, Residual: norm, Cosine: 1, Weight: 2},
		{Module: "b", Tensor: "b.weight", Change: 5, Norm: norm, Residual: math.Sqrt(45 + 25)},
	}
	for i := range r.Layers {
		l := r.Layers[i]
		l.products = products{}
		w := want[i]
		if l.Module != w.Module || l.Tensor != w.Tensor || !near(l.Change, w.Change, 1e-12) || !near(l.Norm, w.Norm, 1e-12) || !near(l.Residual, w.Residual, 1e-12) ||
			!near(l.Cosine, w.Cosine, 1e-12) || !near(l.Weight, w.Weight, 1e-12) {
			t.Errorf("%+v, want %+v", l, w)
		}
	}
	if len(r.Layers) != 2 || !slices.Equal(r.Elsewhere, []string{"norm.weight"}) || !near(r.Weight, 1, 1e-12) || !near(r.Residual, math.Sqrt(45+70), 1e-12) {
		t.Errorf("%+v", r)
	}
}
