package merge_test

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/merge"
)

// TestMLXMergesToTheFormula: the truth is the formula of the forward pass in float64, rounded once
// (testdata/mlx/make.py, which compares it with mlx-lm's fuse). All other tensors keep their bytes.
// What passes through a container gives the same.
func TestMLXMergesToTheFormula(t *testing.T) {
	ctx := context.Background()
	const data = "../testdata/mlx"
	for _, c := range []struct {
		adapter, base, truth string
		options              convert.Options
	}{
		{"llama/adapter", "llama/base", "llama/truth", convert.Options{}},
		{"old/adapters.npz", "llama/base", "llama/truth", convert.Options{Scale: 20}},
		{"old", "llama/base", "llama/truth", convert.Options{Alpha: 80}}, // at r = 4
		{"dora/adapter", "dora/base", "dora/truth", convert.Options{}},
		{"gemma/adapter", "gemma/base", "gemma/truth", convert.Options{}},
		{"mixtral/adapter", "mixtral/base", "mixtral/truth", convert.Options{}},
		{"qwen3_moe/adapter", "qwen3_moe/base", "qwen3_moe/truth", convert.Options{}},
		{"qwen3_moe/adapter", "qwen3_moe/stacked", "qwen3_moe/truth-stacked", convert.Options{}},
	} {
		src, err := convert.Open(ctx, filepath.Join(data, c.adapter), c.options)
		if err != nil {
			t.Errorf("%s: %v", c.adapter, err)
			continue
		}
		defer src.Close()
		packed := filepath.Join(t.TempDir(), "a.lora")
		sink, err := convert.Create(packed, convert.LoRA(), convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := format.Copy(ctx, sink, src); err != nil {
			t.Fatalf("%s: %v", c.adapter, err)
		}
		container, err := convert.Open(ctx, packed, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer container.Close()
		base := valuesOf(t, filepath.Join(data, c.base, "model.safetensors"))
		truth := valuesOf(t, filepath.Join(data, c.truth+".safetensors"))
		for _, src := range []format.Source{src, container} {
			merged := mergedBy(t, filepath.Join(data, c.base), src)
			if len(merged) != len(base) {
				t.Errorf("%s: %d tensors, want %d", c.adapter, len(merged), len(base))
			}
			for name, got := range merged {
				want := truth[name]
				if want == nil {
					want = base[name]
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s on %s: %s differs (changed: %v)", c.adapter, c.base, name, truth[name] != nil)
				}
			}
		}
	}
}

// mergedBy merges one adapter and returns the tensors.
func mergedBy(t *testing.T, base string, src format.Source) map[string][]byte {
	t.Helper()
	plan, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, merge.Options{})
	if err != nil {
		t.Errorf("%s: %v", base, err)
		return nil
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	return tensorsIn(t, out.Files()["model.safetensors"])
}
