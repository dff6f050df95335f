package rank_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// TestGrammarsOfOneAdapterAreTheSame compares all files that hold one adapter of an image or video
// model in the grammars of several tools (testdata/diffusion: they merge to the same values).
func TestGrammarsOfOneAdapterAreTheSame(t *testing.T) {
	const diffusion = "../testdata/diffusion"
	text, err := os.ReadFile(filepath.Join(diffusion, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Cases []struct {
			Group    string
			Adapters []string
			Alpha    float64
			Scale    float64
		}
	}
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	groups := make(map[string]map[string]format.Source)
	for _, c := range index.Cases {
		if c.Group == "" || len(c.Adapters) != 1 || groups[c.Group][c.Adapters[0]] != nil {
			continue
		}
		src, err := convert.Open(t.Context(), filepath.Join(diffusion, c.Adapters[0]), convert.Options{Alpha: c.Alpha, Scale: c.Scale})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		if groups[c.Group] == nil {
			groups[c.Group] = make(map[string]format.Source)
		}
		groups[c.Group][c.Adapters[0]] = src
	}
	n := 0
	for group, adapters := range groups {
		names := make([]string, 0, len(adapters))
		for name := range adapters {
			names = append(names, name)
		}
		slices.Sort(names)
		for i, name := range names {
			for _, other := range names[:i] {
				both, err := convert.Alike(t.Context(), []format.Source{adapters[other], adapters[name]}, convert.CreateOptions{})
				if err != nil {
					t.Errorf("%s: %s and %s: %v", group, other, name, err)
					continue
				}
				r, err := rank.Compare(t.Context(), both[0], both[1], rank.CompareOptions{})
				if err != nil {
					t.Errorf("%s: %s and %s: %v", group, other, name, err)
				} else if !r.Same() {
					t.Errorf("%s: %s and %s differ: ‖ΔA − ΔB‖ %v of %v; only in A %.3q, only in B %.3q, not compared %v", group, other, name, r.NormDifference, r.NormA, r.OnlyA, r.OnlyB, r.NotCompared)
				}
				n++
			}
		}
	}
	if n < 40 {
		t.Errorf("%d pairs, want 40 at least", n)
	}
}

// TestGGUFIsTheSameAsPEFT compares adapters of PEFT with the files that llama.cpp's converter made
// of them.
func TestGGUFIsTheSameAsPEFT(t *testing.T) {
	const files = "../testdata/gguf"
	for _, model := range []string{"llama", "granite", "phi3", "mixtral", "qwen2moe"} {
		dir := filepath.Join(files, model)
		config, err := os.ReadFile(filepath.Join(dir, "base", "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		var both []format.Source
		for _, name := range []string{"reference.gguf", "peft"} {
			src, err := convert.Open(t.Context(), filepath.Join(dir, name), convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { src.Close() })
			both = append(both, src)
		}
		alike, err := convert.Alike(t.Context(), both, convert.CreateOptions{BaseConfig: config})
		if err != nil {
			t.Errorf("%s: %v", model, err)
			continue
		}
		r, err := rank.Compare(t.Context(), alike[0], alike[1], rank.CompareOptions{})
		if err != nil || !r.Same() {
			t.Errorf("%s: %v; ‖ΔA − ΔB‖ is %v of %v; only in A %.3q, only in B %.3q, not compared %v", model, err, r.NormDifference, r.NormA, r.OnlyA, r.OnlyB, r.NotCompared)
		}
	}
}

// TestCombineTakesSeveralDialects: the sum of an adapter in two dialects is twice the adapter.
func TestCombineTakesSeveralDialects(t *testing.T) {
	const cases = "../testdata/diffusion/cases"
	open := func(name string) format.Source {
		src, err := convert.Open(t.Context(), filepath.Join(cases, name, "adapter.safetensors"), convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		return src
	}
	diffusers := open("flux-four-diffusers")
	alike, err := convert.Alike(t.Context(), []format.Source{open("flux-four-kohya"), diffusers}, convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sum, r, err := rank.Combine(t.Context(), alike, rank.CombineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer sum.Close()
	twice, _, err := rank.Combine(t.Context(), []format.Source{diffusers}, rank.CombineOptions{Weights: []float64{2}})
	if err != nil {
		t.Fatal(err)
	}
	defer twice.Close()
	compared, err := rank.Compare(t.Context(), sum, twice, rank.CompareOptions{})
	if err != nil || !compared.Same() || len(r.Warnings) > 0 {
		t.Errorf("%v, ‖ΔA − ΔB‖ is %v; warnings %q", err, compared.NormDifference, r.Warnings)
	}
}

// TestAlikeRenamesPrefixes: adapters of one language model, trained inside of a model of text and
// images and alone, get one spelling.
func TestAlikeRenamesPrefixes(t *testing.T) {
	rng := rand.New(rand.NewPCG(71, 72))
	var both []format.Source
	for _, prefix := range []string{"language_model.model.", "model."} {
		dir := t.TempDir()
		var tensors []testkit.Tensor
		for _, end := range []string{"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.0." + prefix[:5] + "_proj"} {
			tensors = append(tensors, testkit.Random(rng, "base_model.model."+prefix+end+".lora_A.weight", dtype.F32, 1, 2, 8),
				testkit.Random(rng, "base_model.model."+prefix+end+".lora_B.weight", dtype.F32, 1, 8, 2))
		}
		testkit.WriteAdapter(t, dir, 2, 4, tensors...)
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		both = append(both, src)
	}
	alike, err := convert.Alike(t.Context(), both, convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := rank.Compare(t.Context(), alike[0], alike[1], rank.CompareOptions{})
	if err != nil || len(r.Layers) != 2 || r.Layers[0].Module != "language_model.model.layers.0.self_attn.q_proj" {
		t.Errorf("compared %+v, %v; want the two q_proj by the names of the first adapter", r.Layers, err)
	}
	if swapped, err := convert.Alike(t.Context(), []format.Source{both[1], both[0]}, convert.CreateOptions{}); err != nil ||
		swapped[1].Manifest().Adapters[0].Layers[0].Module != "model.layers.0.langu_proj" {
		t.Errorf("swapped: %v, %v", swapped[1].Manifest().Adapters[0].Layers, err)
	}
}

// TestAlikeSaysWhatIsUnknown: names that no table knows need the base.
func TestAlikeSaysWhatIsUnknown(t *testing.T) {
	var both []format.Source
	for _, keys := range [][2]string{
		{"lora_unet_own_block_0_proj.lora_down.weight", "lora_unet_own_block_0_proj.lora_up.weight"},
		{"diffusion_model.own_block.0.proj.lora_A.weight", "diffusion_model.own_block.0.proj.lora_B.weight"},
	} {
		path := filepath.Join(t.TempDir(), "a.safetensors")
		testkit.Write(t, path, testkit.Encode(nil, testkit.Values(keys[0], dtype.F32, []uint64{1, 2}, 1, 2), testkit.Values(keys[1], dtype.F32, []uint64{3, 1}, 1, 2, 3)))
		src, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		both = append(both, src)
	}
	_, err := convert.Alike(t.Context(), both, convert.CreateOptions{})
	if !errors.Is(err, format.ErrUnsupported) || !strings.Contains(fault.Hint(err), "CreateOptions.Base") {
		t.Errorf("%v (hint %q), want a refusal that asks for the base", err, fault.Hint(err))
	}
	base := []format.Tensor{{Name: "own_block.0.proj.weight", DType: dtype.F32, Shape: []uint64{3, 2}}}
	alike, err := convert.Alike(t.Context(), both, convert.CreateOptions{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := rank.Compare(t.Context(), alike[0], alike[1], rank.CompareOptions{}); err != nil || !r.Same() {
		t.Errorf("with the base: %+v, %v", r, err)
	}
}
