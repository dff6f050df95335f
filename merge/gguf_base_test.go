package merge_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/merge"
)

const ggufBases = "../testdata/gguf/bases/"

// TestMergesIntoGGUF merges adapters of PEFT and of llama.cpp into GGUF bases. Every merged element
// is the exact sum, rounded once (testdata/gguf/bases/make.py computes it in rational numbers, with
// the rows of q and k permuted as llama.cpp's converter does). All else stays.
func TestMergesIntoGGUF(t *testing.T) {
	for _, name := range []string{"plain", "tied", "mixtral", "qwen2", "quantised"} {
		for _, adapter := range []string{"peft", "adapter.gguf"} {
			t.Run(name+"/"+adapter, func(t *testing.T) {
				base, err := os.ReadFile(ggufBases + name + "/base.gguf")
				if err != nil {
					t.Fatal(err)
				}
				checkGGUF(t, base, mergedGGUF(t, name, adapter, merge.Options{}), expectedGGUF(t, name))
			})
		}
	}
}

// TestMergesStackedExpertsIntoGGUF merges adapters of PEFT for parameters that stack experts, gate
// and up in one, of three families, into the three tensors that llama.cpp has. The updates are
// PEFT's own formula in rational numbers.
func TestMergesStackedExpertsIntoGGUF(t *testing.T) {
	for _, name := range []string{"stacked-mixtral", "stacked-mixtral-old", "stacked-qwen3moe", "stacked-gpt-oss", "stacked-gpt-oss-square"} {
		t.Run(name, func(t *testing.T) {
			base, err := os.ReadFile(ggufBases + name + "/base.gguf")
			if err != nil {
				t.Fatal(err)
			}
			checkGGUF(t, base, mergedGGUF(t, name, "peft", merge.Options{}), expectedGGUF(t, name))
		})
	}
}

// mergedGGUF merges an adapter of a directory into the base there.
func mergedGGUF(t *testing.T, name, adapter string, o merge.Options) []byte {
	t.Helper()
	adapters := []merge.Adapter{{Source: opened(t, filepath.Join(ggufBases+name, adapter)), Name: adapter, Weight: 1}}
	plan, err := merge.Open(t.Context(), ggufBases+name+"/base.gguf", adapters, o)
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	return out.Files()[""]
}

// expectedGGUF reads the type and the digest that each merged tensor should have.
func expectedGGUF(t *testing.T, name string) (all map[string][2]string) {
	t.Helper()
	text, err := os.ReadFile(ggufBases + name + "/expected.json")
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || len(all) == 0 {
		t.Fatal(err, len(all))
	}
	return all
}

// checkGGUF checks a merged file: its keys and tensors are those of the base in their order, except
// that the merged tensors have what is expected, and that a stamp is the last key.
func checkGGUF(t *testing.T, base, merged []byte, expected map[string][2]string) {
	t.Helper()
	old, err := gguf.Read(t.Context(), bytes.NewReader(base), int64(len(base)))
	if err != nil {
		t.Fatal(err)
	}
	file, err := gguf.Read(t.Context(), bytes.NewReader(merged), int64(len(merged)))
	if err != nil {
		t.Fatal(err)
	}
	if file.Version != old.Version || file.Alignment != old.Alignment || len(file.Tensors) != len(old.Tensors) || len(file.KVs) != len(old.KVs)+1 {
		t.Fatalf("version %d, alignment %d, %d tensors, %d keys", file.Version, file.Alignment, len(file.Tensors), len(file.KVs))
	}
	for i, kv := range old.KVs {
		if got := file.KVs[i]; got.Key != kv.Key || got.Key != "general.file_type" && got.String() != kv.String() {
			t.Errorf("key %d is %s = %v, want %s = %v", i, got.Key, got.Value, kv.Key, kv.Value)
		}
	}
	if last := file.KVs[len(old.KVs)].Key; last != "loratool.merge.1" {
		t.Errorf("the last key is %s", last)
	}
	for i := range old.Tensors {
		was, is := &old.Tensors[i], &file.Tensors[i]
		before, after := base[was.Off:][:was.Size], merged[is.Off:][:is.Size]
		want, changes := expected[was.Name]
		delete(expected, was.Name)
		sum := sha256.Sum256(after)
		switch {
		case is.Name != was.Name:
			t.Fatalf("tensor %d is %s, want %s", i, is.Name, was.Name)
		case !changes && (is.Type != was.Type || !bytes.Equal(before, after)):
			t.Errorf("%s has changed from %v to %v", is.Name, was.Type, is.Type)
		case changes && (is.Type.String() != want[0] || hex.EncodeToString(sum[:]) != want[1]):
			t.Errorf("%s, %v stored as %v, has other values than the exact sum as %s", is.Name, was.Type, is.Type, want[0])
		}
	}
	for name := range expected {
		t.Errorf("%s is missing", name)
	}
}

// TestSaysWhyGGUFBaseDoesNotFit: messages name the gap in the base, and hints help.
func TestSaysWhyGGUFBaseDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		base, adapter string
		from, to      string // a change of the base, of the same length
		o             merge.Options
		want, hint    string
	}{
		{base: "plain", adapter: "mixtral/peft", want: "lacks 9 of the 13 tensors", hint: "another base"},
		{base: "plain", adapter: "plain/peft", from: "llama", to: "newer", want: `architecture "newer"`, hint: "known are llama"},
		{base: "plain", adapter: "plain/peft", from: "head_count\x04", to: "head_many_\x04", want: "no key of the base", hint: "llama.attention.head_count"},
		{base: "tied", adapter: "plain/peft", want: "has tied", hint: "Options.Tied=untie makes the head a tensor of its own"},
		{base: "tied", adapter: "plain/peft", from: "\x05\x00\x00\x00\x00\x00\x00\x00llama", to: "\x05\x00\x00\x00\x00\x00\x00\x00gemma",
			o: merge.Options{Reading: merge.Reading{Tied: merge.Untie}}, want: "is always the embedding in llama.cpp", hint: "Options.Tied=fold"},
		{base: "plain", adapter: "norm", from: "\x05\x00\x00\x00\x00\x00\x00\x00llama", to: "\x05\x00\x00\x00\x00\x00\x00\x00gemma",
			want: "known to be \"model.norm.weight\"", hint: "merge into the checkpoint for transformers"},
		{base: "plain", adapter: "mixtral/peft", o: merge.Options{AddTensors: true}, want: "lacks 9 of the 13 tensors", hint: "another base"},
		{base: "plain", adapter: "plain/peft", o: merge.Options{BaseAs: "nf4"}, want: "Options.BaseAs is for the checkpoint for transformers", hint: "merge into that"},
	} {
		base, err := os.ReadFile(ggufBases + c.base + "/base.gguf")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "base.gguf")
		if c.from != "" {
			changed := bytes.ReplaceAll(base, []byte(c.from), []byte(c.to))
			if len(changed) != len(base) || bytes.Equal(changed, base) {
				t.Fatalf("%q is not in %s", c.from, c.base)
			}
			base = changed
		}
		if err := os.WriteFile(path, base, 0o600); err != nil {
			t.Fatal(err)
		}
		var src format.Source = withNorm(t)
		if c.adapter != "norm" {
			src = opened(t, ggufBases+c.adapter)
		}
		plan, err := merge.Open(t.Context(), path, []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, c.o)
		if err == nil {
			plan.Close()
		}
		var refused *format.Error
		if !errors.As(err, &refused) || !strings.Contains(refused.Error(), c.want) || !strings.Contains(refused.Hint, c.hint) {
			t.Errorf("merge of %s into %s: %v (%+v), want %q and the hint %q", c.adapter, c.base, err, refused, c.want, c.hint)
		}
	}
}

// withNorm is an adapter of a projection that saves a norm whole.
func withNorm(t *testing.T) format.Source {
	t.Helper()
	b := format.NewBuilder("test")
	b.Linear("model.layers.0.self_attn.v_proj", 1, 1, format.Float32s(make([]float32, 32)), format.Float32s(make([]float32, 16)))
	b.Replace("model.norm.weight", format.Float32s(make([]float32, 32), 32))
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// TestMergesSavedNormIntoGGUF: a norm that an adapter saves whole replaces the one of llama.cpp.
func TestMergesSavedNormIntoGGUF(t *testing.T) {
	plan, err := merge.Open(t.Context(), ggufBases+"plain/base.gguf", []merge.Adapter{{Source: withNorm(t), Name: "a", Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	merged := out.Files()[""]
	file, err := gguf.Read(t.Context(), bytes.NewReader(merged), int64(len(merged)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range file.Tensors {
		x := &file.Tensors[i]
		if isZero := bytes.Count(merged[x.Off:][:x.Size], []byte{0}) == int(x.Size); isZero != (x.Name == "output_norm.weight") {
			t.Errorf("%s is zero: %v", x.Name, isZero)
		}
	}
}

// TestBaseWithoutTensors: the message says so.
func TestBaseWithoutTensors(t *testing.T) {
	var file bytes.Buffer
	if err := gguf.Write(t.Context(), &file, []gguf.KV{gguf.TextKV("general.architecture", "llama")}, nil, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vocabulary.gguf")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := merge.Open(t.Context(), path, []merge.Adapter{{Source: withNorm(t), Name: "a", Weight: 1}}, merge.Options{})
	if err == nil || !strings.Contains(err.Error(), "has no tensors") {
		t.Errorf("error %v", err)
	}
}
