package merge_test

import (
	"context"
	"encoding/json"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestReportsOfAnySize merges Δ = l·r into a 2×2 weight of elements w. Figures are right over the
// whole range of a dtype, and JSON can encode the report.
func TestReportsOfAnySize(t *testing.T) {
	f32 := func(x float64) float64 { return float64(float32(x)) }
	for _, c := range []struct {
		d             dtype.Type
		w, l, r       float64
		relative      float64 // expected by the formula
		isZero, lossy bool    // Δ is 0; no part of Δ is stored
	}{
		{dtype.BF16, 1, 1e-20, 1e-10, 1e-30, false, true},
		{dtype.BF16, 1, 1e-40, 1e-40, f32(1e-40) * f32(1e-40), false, true},
		{dtype.BF16, 0x1p-100, 0x1p-50, 0x1p-50, 1, false, false},
		{dtype.BF16, 0x1p110, 0x1p50, 0x1p60, 1, false, false},
		{dtype.F16, 1, 1e-20, 1e-20, 1e-40, false, true},
		{dtype.F32, 0x1p-120, 0x1p-60, 0x1p-60, 1, false, false},
		{dtype.F32, 0x1p120, 0x1p60, 0x1p60, 1, false, false},
		{dtype.F64, 0x1p-250, 0x1p-125, 0x1p-125, 1, false, false},
		{dtype.F64, 0x1p800, 0x1p100, 0x1p100, 0x1p-600, false, true},
		{dtype.F64, 0x1p-1000, 0x1p120, 0x1p120, math.Inf(1), false, false},
		{dtype.BF16, 1, 0, 1, 0, true, false},
		{dtype.BF16, 0, 1, 1, 0, false, false},
	} {
		dir := t.TempDir()
		base, adapter := filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "adapter")
		square := []uint64{2, 2}
		testkit.Write(t, base, testkit.Encode(nil, testkit.Values("q.weight", c.d, square, c.w, c.w, c.w, c.w)))
		testkit.WriteAdapter(t, adapter, 1, 1,
			testkit.Values("base_model.model.q.lora_A.weight", dtype.F32, []uint64{1, 2}, c.r, c.r),
			testkit.Values("base_model.model.q.lora_B.weight", dtype.F32, []uint64{2, 1}, c.l, c.l))
		src, err := convert.Open(t.Context(), adapter, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		p, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		report, err := p.Run(context.Background(), filepath.Join(dir, "out.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		got := report.Layers[0].Retention
		if x := float64(got.RelativeNorm); x != c.relative && !(math.Abs(x-c.relative) <= 0x1p-16*c.relative) {
			t.Errorf("%+v: relative norm %v, want %v", c, x, c.relative)
		}
		if got.IsZero != c.isZero {
			t.Errorf("%+v: Δ is zero: %v, want %v", c, got.IsZero, c.isZero)
		}
		wantError, wantCosine := 0.0, 1.0
		if c.lossy {
			wantError, wantCosine = 1, 0
		}
		if math.Abs(float64(got.RetentionError)-wantError) > 1e-6 || math.Abs(float64(got.Cosine)-wantCosine) > 1e-6 || got.Cosine > 1 {
			t.Errorf("%+v: error %v, cosine %v, want %v and %v", c, got.RetentionError, got.Cosine, wantError, wantCosine)
		}
		text, err := json.Marshal(report)
		if err != nil || math.IsInf(c.relative, 1) != strings.Contains(string(text), `"relative_norm":null`) {
			t.Errorf("%+v: the report is encoded as %s, %v", c, text, err)
		}
	}
}
