package rank_test

import (
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// TestCompareCheckpoints: equal values are identical whatever their dtype, NaN is equal to itself,
// and norms are those of plain sums.
func TestCompareCheckpoints(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	open := func(name string, tensors ...testkit.Tensor) *checkpoint.Checkpoint {
		path := filepath.Join(t.TempDir(), name+".safetensors")
		testkit.Write(t, path, testkit.Encode(nil, tensors...))
		c, err := checkpoint.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	a := open("a",
		testkit.Values("same", dtype.F32, []uint64{3}, 1, nan, -0.5),
		testkit.Values("dtype", dtype.F32, []uint64{2}, 1.5, -2),
		testkit.Values("changed", dtype.BF16, []uint64{2, 2}, 1, 2, 3, 4),
		testkit.Values("broken", dtype.F32, []uint64{3}, 3, inf, 4),
		testkit.Values("zero", dtype.F32, []uint64{1}, 0),
		testkit.Values("shape", dtype.F32, []uint64{1, 2}, 1, 2),
		testkit.Values("gone", dtype.F32, []uint64{1}, 1))
	b := open("b",
		testkit.Values("same", dtype.F32, []uint64{3}, 1, nan, -0.5),
		testkit.Values("dtype", dtype.F16, []uint64{2}, 1.5, -2),
		testkit.Values("changed", dtype.F32, []uint64{2, 2}, 1, 2.25, 3, 3),
		testkit.Values("broken", dtype.F32, []uint64{3}, 3, 1, 4.5),
		testkit.Values("zero", dtype.F32, []uint64{1}, 2),
		testkit.Values("shape", dtype.F32, []uint64{2, 1}, 1, 2),
		testkit.Tensor{Name: "new", DType: dtype.I32, Shape: []uint64{1}, Data: make([]byte, 4)})
	r, err := rank.CompareCheckpoints(t.Context(), a, b, rank.CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]rank.CheckpointTensor{
		"same":    {Status: rank.Identical},
		"dtype":   {Status: rank.Identical},
		"changed": {Status: rank.Changed, Norm: math.Sqrt(0.0625 + 1), Relative: math.Sqrt(1.0625 / 30), Max: 1, Elements: 2},
		"broken":  {Status: rank.Changed, Norm: 0.5, Relative: 0.1, Max: 0.5, Elements: 2, NonFinite: 1},
		"zero":    {Status: rank.Changed, Norm: 2, Max: 2, Elements: 1},
		"shape":   {Status: rank.Reshaped},
		"gone":    {Status: rank.OnlyA},
		"new":     {Status: rank.OnlyB},
	}
	for _, x := range r.Tensors {
		w := want[x.Tensor]
		delete(want, x.Tensor)
		if x.Status != w.Status || !about(x.Norm, w.Norm) || !about(x.Relative, w.Relative) || x.Max != w.Max || x.Elements != w.Elements || x.NonFinite != w.NonFinite {
			t.Errorf("%s: %+v, want %+v", x.Tensor, x, w)
		}
	}
	if len(want) > 0 || r.Identical != 2 || r.Changed != 3 || r.Reshaped != 1 || r.OnlyA != 1 || r.OnlyB != 1 || r.Same() {
		t.Errorf("missing %v; %+v", want, r)
	}
	if all := 1 + 0.25 + 1.5*1.5 + 4 + 30 + 25; !about(r.Norm, math.Sqrt(1.0625+0.25+4)) || !about(r.Relative, math.Sqrt(5.3125/all)) {
		t.Errorf("the norm is %v, %v of A's", r.Norm, r.Relative)
	}
	itself, err := rank.CompareCheckpoints(t.Context(), a, a, rank.CompareOptions{})
	if err != nil || !itself.Same() || slices.ContainsFunc(itself.Tensors, func(x rank.CheckpointTensor) bool { return x.Norm != 0 }) {
		t.Errorf("with itself: %+v, %v", itself, err)
	}
}
