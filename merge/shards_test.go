package merge_test

import (
	"bytes"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/merge"
)

// TestShardsOfAnAdapterMergeExactly merges adapters in shards, as transformers and torch.save left
// them, with its index, another one and none, and the container made of one: every element is the
// exact sum, rounded once (testdata/shards/make.py).
func TestShardsOfAnAdapterMergeExactly(t *testing.T) {
	const data = "../testdata/shards"
	want := valuesOf(t, data+"/base/model.safetensors")
	maps.Copy(want, valuesOf(t, data+"/merged.safetensors"))
	const index = "model.safetensors.index.json"
	own := t.TempDir()
	copyInto(t, own, data+"/transformers")
	if err := os.Rename(filepath.Join(own, index), filepath.Join(own, "adapter_model.safetensors.index.json")); err != nil {
		t.Fatal(err)
	}
	bare := t.TempDir()
	copyInto(t, bare, data+"/transformers")
	if err := os.Remove(filepath.Join(bare, index)); err != nil {
		t.Fatal(err)
	}
	within := t.TempDir()
	copyInto(t, filepath.Join(within, "style"), data+"/transformers")
	container := filepath.Join(t.TempDir(), "a.lora")
	convertTo(t, container, data+"/transformers")
	for name, adapter := range map[string]string{
		"transformers": data + "/transformers", "an index of its own": own, "no index": bare,
		"pickles": data + "/pickled", "in a subdirectory": within, "a container": container,
	} {
		if got := mergedValues(t, data+"/base", adapter); !maps.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s: the merged model differs from the exact one", name)
		}
	}
}

// TestContainerOfShardsGivesOneFile: the tensors of all shards come back in one file.
func TestContainerOfShardsGivesOneFile(t *testing.T) {
	const data = "../testdata/shards/"
	container, back := filepath.Join(t.TempDir(), "a.lora"), filepath.Join(t.TempDir(), "back")
	convertTo(t, container, data+"transformers")
	convertTo(t, back, container)
	want := valuesOf(t, data+"transformers/adapter_model-00001-of-00002.safetensors")
	maps.Copy(want, valuesOf(t, data+"transformers/adapter_model-00002-of-00002.safetensors"))
	if got := valuesOf(t, filepath.Join(back, "adapter_model.safetensors")); !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("the tensors %q came back as %q", slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	}
}

// mergedValues merges an adapter into a base and returns the bytes of each tensor.
func mergedValues(t *testing.T, base, adapter string) map[string][]byte {
	t.Helper()
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	plan, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]byte)
	for name, content := range out.Files() {
		if filepath.Ext(name) == ".safetensors" {
			maps.Copy(all, tensorsIn(t, content))
		}
	}
	return all
}

func valuesOf(t *testing.T, path string) map[string][]byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return tensorsIn(t, content)
}

// tensorsIn returns the bytes of each tensor of a safetensors file.
func tensorsIn(t *testing.T, content []byte) map[string][]byte {
	t.Helper()
	h, err := safetensors.Read(context.Background(), bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]byte)
	for _, x := range h.Tensors {
		all[x.Name] = content[x.Off : x.Off+x.NBytes]
	}
	return all
}

func copyInto(t *testing.T, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// convertTo converts an adapter to the dialect of the output's name.
func convertTo(t *testing.T, to, from string) {
	t.Helper()
	src, err := convert.OpenDigested(t.Context(), from, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dialect, err := convert.DialectFor(to)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := convert.Create(to, dialect, convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := format.Copy(t.Context(), sink, src); err != nil {
		t.Fatal(err)
	}
}
