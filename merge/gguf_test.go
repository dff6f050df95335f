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
	ctx := context.Background()
	const data = "../testdata/gguf"
	merged := func(base string, src format.Source) []byte {
		t.Helper()
		adapters := []merge.Adapter{{Source: src, Name: "a", Weight: 1}}
		plan, err := merge.Open(ctx, base, adapters, merge.Options{})
		if err != nil {
			t.Fatalf("%s: %v", base, err)
		}
		defer plan.Close()
		var out output.Memory
		if _, err := plan.RunTo(ctx, &out); err != nil {
			t.Fatal(err)
		}
		file := out.Files()["model.safetensors"]
		return file[8+binary.LittleEndian.Uint64(file):] // the header has a stamp of the adapter
	}
	open := func(path string) format.Source {
		t.Helper()
		src, err := convert.Open(ctx, path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		return src
	}
	for name, hasReference := range map[string]bool{
		"llama": true, "granite": true, "mixtral": true, "qwen2moe": true, "phi3": true,
		"pattern": false, "gpt2": false,
	} {
		base := filepath.Join(data, name, "base")
		src := open(filepath.Join(data, name, "peft"))
		want := merged(base, src)
		if hasReference {
			if got := merged(base, open(filepath.Join(data, name, "reference.gguf"))); !bytes.Equal(got, want) {
				t.Errorf("%s: llama.cpp's file merges to other bytes", name)
			}
		}
		path := filepath.Join(t.TempDir(), "a.gguf")
		config, err := os.ReadFile(filepath.Join(base, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		sink, err := convert.Create(path, convert.GGUF(), convert.CreateOptions{BaseConfig: config})
		if err != nil {
			t.Fatal(err)
		}
		if err := format.Copy(ctx, sink, src); err != nil {
			t.Fatal(err)
		}
		if got := merged(base, open(path)); !bytes.Equal(got, want) {
			t.Errorf("%s: our file merges to other bytes", name)
		}
	}
}
