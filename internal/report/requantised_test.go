package report

import (
	"math"
	"os"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/quant"
	"github.com/loratool/loratool/internal/rectangle"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// leftOf quantises whole matrices, those of a transposed tensor as out×in, and returns ΔŴ in the
// order of the tensor.
func leftOf(e quant.Encoding, w, merged []float64, matrices, rows, cols int, isTransposed bool) []float64 {
	left := make([]float64, len(w))
	quantised := func(x []float64, first int) []float64 {
		m, n := rows, cols
		at := func(i, j int) int { return first + i*cols + j }
		if isTransposed {
			m, n = cols, rows
			at = func(i, j int) int { return first + j*cols + i }
		}
		narrow, values := make([]float32, m*n), make([]float64, m*n)
		for i := range m {
			for j := range n {
				narrow[i*n+j] = float32(x[at(i, j)])
			}
		}
		e.RoundTrip(values, narrow, m, n, quant.Largest(narrow), new(quant.Memory))
		back := make([]float64, rows*cols)
		for i := range m {
			for j := range n {
				back[at(i, j)-first] = values[i*n+j]
			}
		}
		return back
	}
	for k := range matrices {
		first := k * rows * cols
		before, after := quantised(w, first), quantised(merged, first)
		for i := range before {
			left[first+i] = after[i] - before[i]
		}
	}
	return left
}

// TestSurvivalIsThatOfWholeTensors compares with ΔŴ of whole tensors, for the ΔW that PEFT merged
// in float64: matrices, experts, parts of fused weights, and transposed weights.
func TestSurvivalIsThatOfWholeTensors(t *testing.T) {
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
			t.Fatal(err)
		}
		f.base = view
		for _, c := range changes {
			if whyNotThin(c) != "" || c.Rows != nil {
				continue
			}
			for i := range quant.Encodings {
				rects := rectangle.Of(c)
				if compareSurvival(t, f, quant.Encoding(i+1), rects) {
					measured[kindOfRectangle(rects[0])]++
					if rects[0].Terms[0].Transposed {
						measured["transposed"]++
					}
				}
			}
		}
	}
	for _, kind := range []string{"matrix", "expert", "convolution", "part", "transposed"} {
		if measured[kind] == 0 {
			t.Errorf("no case has a %s: %v", kind, measured)
		}
	}
}

func compareSurvival(t *testing.T, f *fixture, e quant.Encoding, rects []*rectangle.Rectangle) bool {
	t.Helper()
	c := rects[0].Change
	found, err := requantise(t.Context(), f.base, [][]*rectangle.Rectangle{rects}, &BaseOptions{As: e, Merge: merge.Options{Workers: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if len(found.notMeasured) > 0 {
		return false
	}
	nRows, nCols := c.Matrix()
	height := int(nRows) / c.NBands
	w, merged := values(t, f.base, c.Name), values(t, f.truth, c.Name)
	left := leftOf(e, w, merged, c.NBands, height, int(nCols), rects[0].Terms[0].Transposed)
	for i, rect := range rects {
		var want survival
		for _, row := range rect.Rows {
			for _, col := range rect.Cols {
				at := (rect.Band*height+row)*int(nCols) + col
				want.element(merged[at]-w[at], left[at])
			}
		}
		kept, lost := want.figures()
		got := found.left[0][i]
		// A value beside a midpoint of two codes can get the other one, as ΔW is rounded otherwise.
		if want.delta > 0 && (!near(float64(got.Kept), float64(kept), 1e-3) || !near(float64(got.Error), float64(lost), 1e-3)) {
			t.Errorf("%s of %s as %v: %+v, want %v and %v", c.Name, f.path, e, *got, kept, lost)
		}
	}
	return true
}

// TestStoredScalesAreKept: experts of gpt-oss in MXFP4, merged by PEFT in float32. Every element
// becomes the nearest value of its own scale.
func TestStoredScalesAreKept(t *testing.T) {
	const dir = "../../testdata/quant/"
	src, err := convert.Open(t.Context(), dir+"gptoss_peft_adapter", convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	got, err := CompareBase(t.Context(), src, dir+"gptoss_mxfp4", BaseOptions{Name: "a", As: quant.MXFP4, Merge: merge.Options{Workers: 1, AllowNonFinite: true}})
	if err != nil || !got.Fits {
		t.Fatalf("%+v, error %v", got, err)
	}
	truth, err := checkpoint.Open(t.Context(), dir+"gptoss_peft_merged.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer truth.Close()
	base, err := checkpoint.Open(t.Context(), dir+"gptoss_mxfp4")
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	n := 0
	for _, l := range got.Layers {
		w, merged := values(t, base, l.Tensor), values(t, truth, l.Tensor)
		var want survival
		first, isLarge := *l.Expert*l.Rows*l.Columns, false
		stored, _ := checkpoint.Stored(base).Lookup(l.Tensor + "_scales")
		scales := make([]byte, stored.Tensor.NBytes)
		if err := stored.Tensor.ReadAt(t.Context(), scales, 0); err != nil {
			t.Fatal(err)
		}
		for i := range l.Rows {
			for j := range l.Columns {
				at := first + i*l.Columns + j
				scale := math.Ldexp(1, int(scales[(*l.Expert*l.Columns+j)*(l.Rows/32)+i/32])-127)
				isLarge = isLarge || scale > 1 // ΔW vanishes in float32 sums
				want.element(merged[at]-w[at], nearestOf(scale, merged[at])-w[at])
			}
		}
		if kept, lost := want.figures(); !isLarge {
			n++
			if l.Requantised.Scales != "kept" || !near(float64(l.Requantised.Kept), float64(kept), 1e-3) || !near(float64(l.Requantised.Error), float64(lost), 1e-3) {
				t.Errorf("%s: %+v, want %v and %v", l.Name(), *l.Requantised, kept, lost)
			}
		}
	}
	if n < 4 {
		t.Errorf("%d layers were compared, want 4 or more", n)
	}
}

// TestNothingMovesWhereNoCodeDoes: of a tiny ΔW nothing is left, not some share that is rounding.
func TestNothingMovesWhereNoCodeDoes(t *testing.T) {
	for _, base := range []string{"ct_nvfp4", "modelopt_nvfp4"} {
		b := format.NewBuilder("made up")
		tiny := func(shape ...uint64) format.Data {
			values := make([]float64, shape[0]*shape[1])
			for i := range values {
				values[i] = 1e-4 * math.Sin(float64(i))
			}
			return format.Bytes(dtype.F32, testkit.Values("", dtype.F32, shape, values...).Data, shape...)
		}
		b.Linear("m", 2, 1, tiny(2, 256), tiny(64, 2))
		src, err := b.Source()
		if err != nil {
			t.Fatal(err)
		}
		got, err := CompareBase(t.Context(), src, "../../testdata/quant/"+base, BaseOptions{Name: "a", As: quant.NVFP4})
		if err != nil || !got.Fits {
			t.Fatalf("%+v, error %v", got, err)
		}
		if r := got.Requantised; r.Kept != 0 || r.Error != 1 {
			t.Errorf("%s: kept %v with the error %v, want 0 and 1", base, r.Kept, r.Error)
		}
	}
}

// nearestOf returns the nearest value of MXFP4 with a scale.
func nearestOf(scale, x float64) float64 {
	best := math.Inf(1)
	for _, m := range []float64{0, .5, 1, 1.5, 2, 3, 4, 6} {
		for _, v := range []float64{m * scale, -m * scale} {
			if math.Abs(v-x) < math.Abs(best-x) {
				best = v
			}
		}
	}
	return best
}

// TestSurvivalsOfAMerge: of one adapter the map is that of inspect, two halves of it are the whole,
// and its weight counts.
func TestSurvivalsOfAMerge(t *testing.T) {
	const base, dir = "../../testdata/quant/gptoss_mxfp4", "../../testdata/quant/gptoss_peft_adapter"
	src, err := convert.Open(t.Context(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	o := BaseOptions{Name: "a", As: quant.MXFP4, Merge: merge.Options{Workers: 1, AllowNonFinite: true}}
	want, err := CompareBase(t.Context(), src, base, o)
	if err != nil {
		t.Fatal(err)
	}
	survivals := func(weights ...float64) *SurvivalMap {
		var adapters []merge.Adapter
		for _, w := range weights {
			adapters = append(adapters, merge.Adapter{Source: src, Name: "a", Weight: w})
		}
		m, err := Survivals(t.Context(), base, adapters, o)
		if err != nil || len(m.Layers) != len(want.Layers) {
			t.Fatalf("%d layers, want %d; error %v", len(m.Layers), len(want.Layers), err)
		}
		return m
	}
	for _, m := range []*SurvivalMap{survivals(1), survivals(0.5, 0.5)} {
		for i, l := range m.Layers {
			if w := &want.Layers[i]; l.Name() != w.Name() || l.Survival != *w.Requantised || !near(l.Norm, w.Norm, 1e-12) {
				t.Errorf("%+v, want %+v of %s", l, *w.Requantised, w.Name())
			}
		}
		if m.Kept != want.Requantised.Kept || m.Error != want.Requantised.Error || !slices.Equal(m.In16Bits, want.Requantised.In16Bits) {
			t.Errorf("%+v, want %+v", m.Requantised, want.Requantised)
		}
	}
	if m := survivals(2); !near(m.Layers[0].Norm, 2*want.Layers[0].Norm, 1e-12) {
		t.Errorf("‖ΔW‖ is %v for a weight of 2, want twice %v", m.Layers[0].Norm, want.Layers[0].Norm)
	}
}

// TestFewestTensorsInSixteenBits: those that lose most come first, and no more than it takes.
func TestFewestTensorsInSixteenBits(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	sums := []survival{{delta: 10, inner: 9.9}, {delta: 50, inner: 10}, {delta: 20, inner: 20.1}, {delta: 20, inner: 12}}
	got := summarise(quant.FP8, names, sums)
	if !slices.Equal(got.In16Bits, []string{"b", "d"}) {
		t.Errorf("in 16 bits: %v", got.In16Bits)
	}
	if want := (9.9 + 50 + 20.1 + 20) / 100; !near(float64(got.KeptWith), want, 1e-12) || !near(float64(got.Kept), .52, 1e-12) {
		t.Errorf("kept %v, and %v with %v, want .52 and %v", got.Kept, got.KeptWith, got.In16Bits, want)
	}
	if got := summarise(quant.FP8, names[:1], sums[:1]); len(got.In16Bits) != 0 {
		t.Errorf("99 %% is kept, and %v stay in 16 bits", got.In16Bits)
	}
}
