package main

import (
	"encoding/json"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/rank"
)

// halfUlps is the root of the sum of the squares of half a unit in the last place, over all values
// of a checkpoint: what rounding to its dtypes can cost.
func halfUlps(t *testing.T, path string) float64 {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var sum float64
	for _, name := range c.Names() {
		ref, _ := c.Lookup(name)
		layout, _ := ref.Tensor.DType.Layout()
		for _, x := range tensor(t, c, name) {
			_, e := math.Frexp(x)
			half := math.Ldexp(0.5, max(e-1, 1-layout.Bias())-layout.Fraction)
			sum += half * half
		}
	}
	return math.Sqrt(sum)
}

// factorsOf returns the bytes of all tensors of an adapter by their names.
func factorsOf(t *testing.T, path string) map[string]string {
	t.Helper()
	src, err := convert.Open(t.Context(), path, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	factors := make(map[string]string)
	for i, tensor := range src.Manifest().Tensors {
		b := make([]byte, tensor.NBytes())
		if err := src.ReadBlobAt(b, i, 0); err != nil {
			t.Fatal(err)
		}
		factors[tensor.Name] = string(b)
	}
	return factors
}

// TestExtractTakesAnImageModelBackInEveryLayout merges adapters into a pipeline and into a single
// file, which testdata/diffusion proves, and extracts the results against both. At full rank, a
// merge must give the tuned model back within the error that extract prints and the rounding of the
// merge. The layout of the tuned model must not matter.
func TestExtractTakesAnImageModelBackInEveryLayout(t *testing.T) {
	const diffusion = "../../testdata/diffusion"
	for _, c := range []struct{ base, adapter string }{
		{"sd1", "sd1-kohya-all"}, {"sdxl", "sdxl-kohya-te"}, {"flux", "flux-kohya-all"},
	} {
		dir := t.TempDir()
		tuned := make(map[string]string) // by the end of the base's name
		for _, end := range []string{"", ".safetensors"} {
			tuned[end] = filepath.Join(dir, "tuned"+end)
			loratool(t, "merge", filepath.Join(diffusion, "bases", c.base+end),
				filepath.Join(diffusion, "cases", c.adapter, "adapter.safetensors"), "-o", tuned[end])
		}
		for _, end := range []string{"", ".safetensors"} {
			base := filepath.Join(diffusion, "bases", c.base+end)
			adapters := make(map[string]map[string]string)
			for _, other := range []string{"", ".safetensors"} {
				adapter := filepath.Join(dir, "full"+end+"-"+strings.TrimPrefix(other, ".")+".lora")
				back := filepath.Join(dir, "back-"+strings.TrimPrefix(other, ".")+end)
				var report rank.ExtractReport
				out := loratool(t, "extract", base, tuned[other], "-o", adapter,
					"--rank", "4096", "--json", "-q")
				if err := json.Unmarshal(out, &report); err != nil {
					t.Fatal(err)
				}
				adapters[other] = factorsOf(t, adapter)
				if other == end {
					continue
				}
				loratool(t, "merge", base, adapter, "-o", back)
				squares := 0.0
				for _, l := range report.Layers {
					squares += l.Rounded * l.Rounded * l.Frobenius * l.Frobenius
				}
				limit := math.Sqrt(squares) + halfUlps(t, tuned[end])
				if d := distance(t, back, tuned[end]); d > limit || len(report.Layers) == 0 {
					t.Errorf("%s%s from %s, %d layers: the merged model is %g from the tuned one, want %g",
						c.base, end, tuned[other], len(report.Layers), d, limit)
				}
			}
			if a, b := adapters[""], adapters[".safetensors"]; !maps.Equal(a, b) {
				t.Errorf("%s%s: the adapter depends on the layout of the tuned model: %d and %d tensors %q",
					c.base, end, len(a), len(b), slices.Sorted(maps.Keys(a))[:2])
			}
		}
	}
}
