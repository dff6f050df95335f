package merge_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/merge"
)

// TestGGUFMergesAsItsSource merges an adapter of PEFT, and the GGUF file that llama.cpp's converter
// or this module made of it: the merged models are equal byte for byte. The factors of these
// adapters have not been rounded.
func TestGGUFMergesAsItsSource(t *testing.T) {
	const data = "../testdata/gguf"
	for name, hasReference := range map[string]bool{
		"llama": true, "granite": true, "mixtral": true, "qwen2moe": true, "phi3": true,
		"pattern": false, "gpt2": false,
	} {
		base := filepath.Join(data, name, "base")
		src := opened(t, filepath.Join(data, name, "peft"))
		want := mergedData(t, base, src)
		if hasReference {
			if got := mergedData(t, base, opened(t, filepath.Join(data, name, "reference.gguf"))); !bytes.Equal(got, want) {
				t.Errorf("%s: llama.cpp's file merges to other bytes", name)
			}
		}
		if got := mergedData(t, base, asGGUF(t, base, src)); !bytes.Equal(got, want) {
			t.Errorf("%s: our file merges to other bytes", name)
		}
	}
}

// Adapters of target_parameters become the tensors of llama.cpp: split and stacked, with A and B in
// their places whichever of them reads the inputs. What these adapters merge to is compared with
// PEFT's own results elsewhere (TestPEFT).
func TestGGUFOfStackedExpertsMergesAsItsSource(t *testing.T) {
	for name, base := range map[string]string{
		"experts": "mixtral-stacked", "experts-one-by-one": "mixtral", "experts-qwen": "qwen3-moe-stacked",
		"experts-qwen-one-by-one": "qwen3-moe", "experts-down": "mixtral-stacked", "experts-patterns": "mixtral-stacked",
		"experts-0.18": "mixtral-stacked", "experts-0.18-one-by-one": "mixtral", "experts-0.18-qwen": "qwen3-moe-stacked",
		"experts-0.18-square": "mixtral-square-stacked", "experts-square": "mixtral-square-stacked",
		"experts-0.18-square-alone": "mixtral-square-stacked", "experts-square-alone": "mixtral-square-stacked",
		"experts-0.19.0": "mixtral-stacked", "experts-0.19.0-square-alone": "mixtral-square-stacked",
	} {
		base := filepath.Join(fixtures, "bases", base)
		src := opened(t, filepath.Join(fixtures, "merge", name, "adapter"))
		want := mergedData(t, base, src)
		if got := mergedData(t, base, asGGUF(t, base, src)); !bytes.Equal(got, want) {
			t.Errorf("%s: the GGUF file merges to other bytes", name)
		}
	}
}

func opened(t *testing.T, path string) format.Source {
	t.Helper()
	src, err := convert.Open(t.Context(), path, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// mergedData returns the data of the merged model. The header has a stamp of the adapter.
func mergedData(t *testing.T, base string, src format.Source) []byte {
	t.Helper()
	adapters := []merge.Adapter{{Source: src, Name: "a", Weight: 1}}
	plan, err := merge.Open(t.Context(), base, adapters, merge.Options{})
	if err != nil {
		t.Fatalf("%s: %v", base, err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(context.Background(), &out); err != nil {
		t.Fatal(err)
	}
	file := out.Files()["model.safetensors"]
	return file[8+binary.LittleEndian.Uint64(file):]
}

// asGGUF writes a source as a GGUF file for a base.
func asGGUF(t *testing.T, base string, src format.Source) format.Source {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.gguf")
	config, err := os.ReadFile(filepath.Join(base, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	sink, err := convert.Create(path, convert.GGUF(), convert.CreateOptions{BaseConfig: config})
	if err != nil {
		t.Fatal(err)
	}
	if err := format.Copy(t.Context(), sink, src); err != nil {
		t.Fatalf("%s: %v", base, err)
	}
	return opened(t, path)
}
