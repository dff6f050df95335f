package merge_test

import (
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// native holds the cases written by testdata/native/make.py.
const native = "../testdata/native"

var qAndV = []bool{true, false, true}

// nativeCases are adapters of programs for language models. The truth is that of the program itself
// in float64, and no product or sum in it was rounded.
var nativeCases = []struct {
	adapter, base, merged string
	options               convert.Options
}{
	{"loralib-gpt2/adapter.pt", "loralib-gpt2/base", "loralib-gpt2/merged.safetensors",
		convert.Options{Alpha: 8, EnableLoRA: qAndV}},
	{"loralib-one/adapter.pt", "loralib-one/base", "loralib-one/merged.safetensors",
		convert.Options{Scale: 0.5, EnableLoRA: []bool{false, false, true}}},
	{"torchtune-llama/epoch_0", "torchtune-llama/base", "torchtune-llama/merged.safetensors", convert.Options{}},
	{"torchtune-llama/epoch_0/adapter_model.pt", "torchtune-llama/meta/consolidated.safetensors",
		"torchtune-llama/merged-meta.safetensors", convert.Options{}},
	{"torchtune-qwen2/adapter_0.pt", "torchtune-qwen2/base", "torchtune-qwen2/merged.safetensors",
		convert.Options{Alpha: 4}},
	{"torchtune-dora/adapter_0.pt", "torchtune-dora/base", "torchtune-dora/merged.safetensors",
		convert.Options{Alpha: 4}},
	{"mistral/adapter", "mistral/base", "mistral/merged.safetensors", convert.Options{}},
	{"mistral/adapter/lora.safetensors", "mistral/own/consolidated.safetensors", "mistral/merged-own.safetensors",
		convert.Options{}},
	{"mistral/peft", "mistral/base", "mistral/merged.safetensors", convert.Options{}},
	{"mistral/peft", "mistral/own-config/consolidated.safetensors", "mistral/merged-own.safetensors",
		convert.Options{}},
}

// TestMergeEqualsProgramsOfLanguageModels compares every element of the merged tensors with the
// truth, rounded once, and every other tensor with the base. A .lora file of the adapter merges to
// the same bytes.
func TestMergeEqualsProgramsOfLanguageModels(t *testing.T) {
	for _, c := range nativeCases {
		t.Run(c.adapter+" "+c.base, func(t *testing.T) {
			src := openNative(t, c.adapter, c.options)
			path, basePath := filepath.Join(native, c.adapter), filepath.Join(native, c.base)
			plan, err := merge.Open(t.Context(), basePath, []merge.Adapter{{Source: src, Name: path, Weight: 1}}, merge.Options{})
			merged, base := openCheckpoint(t, run(t, plan, err)), openCheckpoint(t, basePath)
			truth := openCheckpoint(t, filepath.Join(native, c.merged))
			changes := 0
			for _, name := range base.Names() {
				if _, ok := truth.Lookup(name); !ok {
					compareTensor(t, name, "not changed", read(t, merged, name), read(t, base, name))
				} else if n, apart := compareRounded(t, name, merged, truth); apart > 0 || n == 0 {
					t.Errorf("%s: %d of %d elements are not the nearest", name, apart, n)
				} else {
					changes++
				}
			}
			if want := len(truth.Names()); changes != want || len(merged.Names()) != len(base.Names()) {
				t.Errorf("%d tensors changed, want %d", changes, want)
			}
			if container(t, src, basePath) != fresh(t, src, basePath) {
				t.Error("the .lora file merges to other bytes")
			}
		})
	}
}

func openNative(t *testing.T, path string, o convert.Options) format.Source {
	t.Helper()
	src, err := convert.Open(t.Context(), filepath.Join(native, path), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// fresh merges a source in memory and returns the tensors of the result.
func fresh(t *testing.T, src format.Source, base string) string {
	t.Helper()
	plan, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	for name, p := range out.Files() {
		if strings.HasSuffix(name, ".safetensors") || name == "" {
			return string(p[8+binary.LittleEndian.Uint64(p):]) // the header has a stamp of the adapter
		}
	}
	t.Fatal("no weights")
	return ""
}

// container merges a source through a .lora file.
func container(t *testing.T, src format.Source, base string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.lora")
	sink, err := convert.Create(path, convert.LoRA(), convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := format.Copy(t.Context(), sink, src); err != nil {
		t.Fatal(err)
	}
	back, err := convert.Open(t.Context(), path, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	return fresh(t, back, base)
}

// TestNativeAdaptersAreRefusedByName where the file leaves something open, or the base does not
// fit.
func TestNativeAdaptersAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		adapter, base string
		options       convert.Options
		says, hint    string
	}{
		{"loralib-gpt2/adapter.pt", "loralib-gpt2/base", convert.Options{}, "does not say its scale", "Options.Alpha"},
		{"loralib-gpt2/adapter.pt", "loralib-gpt2/base", convert.Options{Alpha: 8}, "MergedLinear", "Options.EnableLoRA"},
		{"loralib-gpt2/adapter.pt", "loralib-gpt2/base", convert.Options{Alpha: 8, EnableLoRA: []bool{true, true, true}},
			"A [4 8] and B [16 2] are for 2 projections, and the list enables 3", "Options.EnableLoRA=true,false,true"},
		{"loralib-gpt2/adapter.pt", "loralib-gpt2/base", convert.Options{Alpha: 8, EnableLoRA: []bool{true, false, false, true}},
			"enable_lora lists 4 projections of 8 rows, but the base's weight of shape [8 24] has 3", "give Options.EnableLoRA a list of 3"},
		{"torchtune-llama/epoch_0", "loralib-one/base", convert.Options{}, "lm_head", ""},
		{"mistral/peft", "mistral/own/consolidated.safetensors", convert.Options{},
			"does not say how many rows a head has", "config.json"},
	} {
		src, err := convert.Open(t.Context(), filepath.Join(native, c.adapter), c.options)
		if err == nil {
			_, err = merge.Open(t.Context(), filepath.Join(native, c.base), []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, merge.Options{})
			src.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(fault.Hint(err), c.hint) {
			t.Errorf("%s with %+v: %v (hint: %s), want %q and %q", c.adapter, c.options, err, fault.Hint(err), c.says, c.hint)
		}
	}
}

// TestNativeAdaptersConvert: an adapter that was converted to PEFT's dialect or to GGUF, with the
// base's config.json, merges to the same bytes.
func TestNativeAdaptersConvert(t *testing.T) {
	for _, c := range []struct {
		adapter, base string
		options       convert.Options
	}{
		{"torchtune-llama/epoch_0", "torchtune-llama/base", convert.Options{}},
		{"torchtune-qwen2/adapter_0.pt", "torchtune-qwen2/base", convert.Options{Alpha: 4}},
		{"mistral/adapter", "mistral/base", convert.Options{}},
	} {
		src, base := openNative(t, c.adapter, c.options), filepath.Join(native, c.base)
		want, config := fresh(t, src, base), file(t, filepath.Join(base, "config.json"))
		straight, err := convert.WithHeads(src, config)
		if err != nil {
			t.Fatal(err)
		}
		for name, from := range map[string]format.Source{"peft": straight, "straight.gguf": straight, "a.gguf": src} {
			path := filepath.Join(t.TempDir(), name)
			dialect, err := convert.DialectFor(path)
			if err != nil {
				t.Fatal(err)
			}
			sink, err := convert.Create(path, dialect, convert.CreateOptions{BaseConfig: config})
			if err != nil {
				t.Fatal(err)
			}
			if err := format.Copy(t.Context(), sink, from); err != nil {
				t.Fatalf("%s as %s: %v", c.adapter, name, err)
			}
			back, err := convert.Open(t.Context(), path, convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if fresh(t, back, base) != want {
				t.Errorf("%s as %s merges to other bytes", c.adapter, name)
			}
			back.Close()
		}
	}
}
