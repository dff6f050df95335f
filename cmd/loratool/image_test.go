package main

import (
	"encoding/json"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
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

// extractedFrom runs extract at full rank and returns the report.
func extractedFrom(
	t *testing.T, base, tuned, out string, flags ...string,
) (report rank.ExtractReport) {
	t.Helper()
	args := []string{"extract", base, tuned, "-o", out, "--rank", "4096", "--json", "-q"}
	args = append(args, flags...)
	if err := json.Unmarshal(loratool(t, args...), &report); err != nil {
		t.Fatal(err)
	}
	return report
}

// errorOf is the error of all layers, as the report has it.
func errorOf(report rank.ExtractReport) float64 {
	squares := 0.0
	for _, l := range report.Layers {
		squares += l.Rounded * l.Rounded * l.Frobenius * l.Frobenius
	}
	return math.Sqrt(squares)
}

// TestExtractTakesAnImageModelBackInEveryLayout merges adapters into a pipeline and into a single
// file, which testdata/diffusion proves, and extracts the results against both. The layout of the
// tuned model must not matter to the factors. At full rank, and in every dialect, a merge must give
// the tuned model back within the error that extract prints and the rounding of the merge.
func TestExtractTakesAnImageModelBackInEveryLayout(t *testing.T) {
	const diffusion = "../../testdata/diffusion"
	for _, c := range []struct{ base, adapter string }{
		{"sd1", "sd1-kohya-all"}, {"sdxl", "sdxl-kohya-te"}, {"flux", "flux-kohya-all"},
	} {
		dir := t.TempDir()
		tuned := make(map[string]string) // by the end of the base's name
		ends := []string{"", ".safetensors"}
		for _, end := range ends {
			tuned[end] = filepath.Join(dir, "tuned"+end)
			loratool(t, "merge", filepath.Join(diffusion, "bases", c.base+end),
				filepath.Join(diffusion, "cases", c.adapter, "adapter.safetensors"), "-o", tuned[end])
		}
		for i, end := range ends {
			base, other := filepath.Join(diffusion, "bases", c.base+end), tuned[ends[1-i]]
			same, lora := filepath.Join(dir, "same"+end+".lora"), filepath.Join(dir, "other"+end+".lora")
			extractedFrom(t, base, tuned[end], same)
			reports := map[string]rank.ExtractReport{lora: extractedFrom(t, base, other, lora)}
			if a, b := factorsOf(t, same), factorsOf(t, lora); !maps.Equal(a, b) {
				t.Errorf("%s: the factors depend on the layout of the tuned model", base)
			}
			dialects := []string{"kohya"}
			if c.base == "sd1" { // the tables write all models alike
				dialects = append(dialects, "diffusers", "comfyui")
			}
			for _, dialect := range dialects {
				path := filepath.Join(dir, dialect+end+".safetensors")
				reports[path] = extractedFrom(t, base, other, path, "--to", dialect)
			}
			for adapter, report := range reports {
				back := filepath.Join(dir, "of-"+filepath.Base(adapter)+"-back"+end)
				loratool(t, "merge", base, adapter, "-o", back)
				limit := errorOf(report) + halfUlps(t, tuned[end])
				if d := distance(t, back, tuned[end]); d > limit || len(report.Layers) == 0 {
					t.Errorf("%s, %d layers: merged into %s, it is %g from the tuned model, want %g",
						adapter, len(report.Layers), base, d, limit)
				}
			}
		}
	}
}

// tuneFile writes a checkpoint of one file with random changes to the tensors that isTuned names.
func tuneFile(t *testing.T, base, out string, isTuned func(name string) bool) {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rng := rand.New(rand.NewPCG(19, 23))
	var tensors []testkit.Tensor
	for _, name := range c.Names() {
		ref, _ := c.Lookup(name)
		x := tensor(t, c, name)
		if isTuned(name) {
			for i := range x {
				x[i] += 0.02 * rng.NormFloat64()
			}
		}
		tensors = append(tensors, testkit.Values(name, ref.Tensor.DType, ref.Tensor.Shape, x...))
	}
	testkit.Write(t, out, testkit.Encode(nil, tensors...))
}

// TestExtractCarriesNormsAndBiasesOfAnImageModel: SDXL has all kinds of tensors: modules, norms, a
// fused projection of torch, and bare parameters, without which the projection can be a layer.
func TestExtractCarriesNormsAndBiasesOfAnImageModel(t *testing.T) {
	const base = "../../testdata/diffusion/bases/sdxl.safetensors"
	isModule := func(name string) bool {
		return strings.HasSuffix(name, "weight") || strings.HasSuffix(name, "bias")
	}
	for _, c := range []struct {
		isTuned func(name string) bool
		layers  int
	}{
		{isModule, 290},                          // all weights of two or more dimensions
		{func(string) bool { return true }, 287}, // but in_proj_weight of three blocks
	} {
		dir := t.TempDir()
		tuned, adapter := filepath.Join(dir, "tuned.safetensors"), filepath.Join(dir, "full.lora")
		back := filepath.Join(dir, "back.safetensors")
		tuneFile(t, base, tuned, c.isTuned)
		report := extractedFrom(t, base, tuned, adapter)
		if len(report.Layers) != c.layers || len(report.Beside) < 300 {
			t.Errorf("%d layers and %d tensors whole, want %d and over 300",
				len(report.Layers), len(report.Beside), c.layers)
		}
		loratool(t, "merge", base, adapter, "-o", back)
		limit := errorOf(report) + halfUlps(t, tuned)
		if d := distance(t, back, tuned); d > limit {
			t.Errorf("the merged model is %g from the tuned one, want %g", d, limit)
		}
	}
}
