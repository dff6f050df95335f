package rectangle

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/testkit"
)

// TestFactorsInAnotherOrder puts stored numbers in the places that the comments of resolve.Factor
// give them.
func TestFactorsInAnotherOrder(t *testing.T) {
	dir := t.TempDir()
	var stored []float64
	for i := range 8 {
		stored = append(stored, float64(10+i))
	}
	testkit.WriteAdapter(t, dir, 1, 1,
		testkit.Values("base_model.model.m.lora_A.weight", dtype.F32, []uint64{1, 8}, stored...),
		testkit.Values("base_model.model.m.lora_B.weight", dtype.F32, []uint64{8, 1}, stored...))
	src, err := convert.Open(t.Context(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for _, c := range []struct {
		name   string
		factor resolve.Factor
		places []int
		values []float64
	}{
		{"in order", resolve.Factor{Length: 3, Repeat: 1, First: 2}, []int{2, 3, 4}, []float64{10, 11, 12}},
		{"repeated", resolve.Factor{Length: 6, Repeat: 3, First: 1}, []int{1, 2, 3, 4, 5, 6}, []float64{10, 10, 10, 11, 11, 11}},
		{"heads of llama.cpp", resolve.Factor{Length: 8, Repeat: 1, HeadSize: 4}, []int{0, 1, 2, 3, 4, 5, 6, 7},
			[]float64{10, 12, 11, 13, 14, 16, 15, 17}},
		{"in turns", resolve.Factor{Length: 4, Repeat: 1, Runs: resolve.Runs{From: 1, Size: 1, Step: 2}}, []int{1, 3, 5, 7},
			[]float64{10, 11, 12, 13}},
		{"taken in turns", resolve.Factor{Length: 8, Repeat: 1, Runs: resolve.Runs{From: 1, Size: 1, Step: 2, Takes: true}}, []int{0, 1, 2, 3},
			[]float64{11, 13, 15, 17}},
	} {
		f := c.factor
		f.Source, f.Across, f.Along = src, 8, 1
		at := places(&f)
		got, err := readFactor(t.Context(), &f, 1, at, make(map[resolve.Blob][]byte))
		if err != nil || !slices.Equal(at, c.places) || !slices.Equal(got, c.values) {
			t.Errorf("%s: got %v at %v, want %v at %v; error %v", c.name, got, at, c.values, c.places, err)
		}
	}
}
