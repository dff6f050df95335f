package merge_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/merge"
)

// TestMergesIntoSplitGGUF: the output of a split has its files, of the same names. Joined, they are
// the joined base with the exact sums and a stamp, also where gguf-py wrote a first part without
// tensors, and where all changed tensors are in other parts.
func TestMergesIntoSplitGGUF(t *testing.T) {
	for _, name := range []string{"split", "split-plain"} {
		for _, adapter := range []string{"peft", "adapter.gguf"} {
			t.Run(name+"/"+adapter, func(t *testing.T) {
				base := splitParts(t, ggufBases+name)
				merged := mergedSplit(t, slices.Min(slices.Collect(maps.Keys(base))), name, adapter, nil)
				if want := slices.Sorted(maps.Keys(base)); !slices.Equal(slices.Sorted(maps.Keys(merged)), want) {
					t.Fatalf("files %q, want %q", slices.Sorted(maps.Keys(merged)), want)
				}
				whole := joined(t, merged)
				checkGGUF(t, joined(t, base), whole, expectedGGUF(t, name))
				if g, err := gguf.Read(t.Context(), bytes.NewReader(whole), int64(len(whole))); err != nil || name == "split" {
					v, _ := g.Value("general.file_type")
					if n, _ := v.Uint(); n != 1 { // most elements of all parts are F16 now
						t.Errorf("general.file_type is %v (%v)", v, err)
					}
				}
			})
		}
	}
}

// TestUndoOfSplitGGUF: the removal with the record restores every part, byte for byte. Without it,
// the stamps go from all parts.
func TestUndoOfSplitGGUF(t *testing.T) {
	const name = "split-plain"
	base := splitParts(t, ggufBases+name)
	var undo bytes.Buffer
	merged := mergedSplit(t, "", name, "peft", &undo)
	dir := t.TempDir()
	for file, content := range merged {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	record, err := merge.OpenRecord(t.Context(), "undo", bytes.NewReader(undo.Bytes()), int64(undo.Len()))
	if err != nil {
		t.Fatal(err)
	}
	peft := merge.Adapter{Source: opened(t, ggufBases+name+"/peft"), Name: "peft", Weight: 1}
	for _, r := range []merge.Removal{
		{Adapters: []merge.Adapter{peft}, Records: []*merge.Record{record}},
		{Adapters: []merge.Adapter{peft}, Approximate: true},
	} {
		plan, err := merge.OpenUnmerge(t.Context(), dir, r, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var out output.Memory
		_, err = plan.RunTo(t.Context(), &out)
		plan.Close()
		if err != nil {
			t.Fatal(err)
		}
		for file, content := range out.Files() {
			if !r.Approximate && !bytes.Equal(content, base[file]) {
				t.Errorf("%s is not restored", file)
			}
			if bytes.Contains(content, []byte("loratool.merge")) {
				t.Errorf("%s has a stamp, approximate %v", file, r.Approximate)
			}
		}
	}
}

// TestSplitGGUFHasNoFileForOutput: the message says why.
func TestSplitGGUFHasNoFileForOutput(t *testing.T) {
	plan := planSplit(t, "base-00001-of-00004.gguf", "split-plain", "peft", merge.Options{})
	defer plan.Close()
	err := plan.CheckOutput(filepath.Join(t.TempDir(), "out.gguf"))
	if err == nil || !strings.Contains(err.Error(), "the base is in several files") {
		t.Errorf("error %v", err)
	}
}

// TestUntiesGGUF: the head becomes output.weight, in the part of the embedding, with the exact sum,
// and all parts say that there is one tensor more. The embedding has its exact values, as F16. The
// adapter of llama.cpp gives the same.
func TestUntiesGGUF(t *testing.T) {
	const name = "untied"
	base := joined(t, splitParts(t, ggufBases+name))
	old, err := gguf.Read(t.Context(), bytes.NewReader(base), int64(len(base)))
	if err != nil {
		t.Fatal(err)
	}
	for _, adapter := range []string{"peft", "adapter.gguf"} {
		o := merge.Options{Reading: merge.Reading{Tied: merge.Untie}}
		plan := planSplit(t, "base-00001-of-00003.gguf", name, adapter, o)
		var out output.Memory
		_, err := plan.RunTo(t.Context(), &out)
		plan.Close()
		if err != nil {
			t.Fatal(err)
		}
		whole := joined(t, out.Files())
		file, err := gguf.Read(t.Context(), bytes.NewReader(whole), int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		expected := expectedGGUF(t, name)
		for i := range file.Tensors {
			x := &file.Tensors[i]
			want, changes := expected[x.Name]
			sum := sha256.Sum256(whole[x.Off:][:x.Size])
			if changes && (x.Type.String() != want[0] || hex.EncodeToString(sum[:]) != want[1]) {
				t.Errorf("%s: %s as %v is not the exact sum", adapter, x.Name, x.Type)
			}
			delete(expected, x.Name)
		}
		count, _ := file.Value("split.tensors.count")
		if n, _ := count.Uint(); len(file.Tensors) != len(old.Tensors)+1 || n != uint64(len(file.Tensors)) || len(expected) > 0 {
			t.Errorf("%s: %d tensors of %v, before %d; missing %v", adapter, len(file.Tensors), count, len(old.Tensors), expected)
		}
		if slices.ContainsFunc(plan.Warnings(), func(w string) bool { return strings.Contains(w, "config.json") }) {
			t.Errorf("warnings %q", plan.Warnings())
		}
	}
}

// mergedSplit merges into the base of a directory, opened by a part, or whole. It returns the
// files.
func mergedSplit(t *testing.T, part, name, adapter string, undo io.Writer) map[string][]byte {
	t.Helper()
	plan := planSplit(t, part, name, adapter, merge.Options{Undo: undo})
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	return out.Files()
}

func planSplit(t *testing.T, part, name, adapter string, o merge.Options) *merge.Plan {
	t.Helper()
	path := filepath.Join(ggufBases+name, part)
	if part == "" {
		path = t.TempDir()
		for file, content := range splitParts(t, ggufBases+name) {
			if err := os.WriteFile(filepath.Join(path, file), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	a := merge.Adapter{Source: opened(t, filepath.Join(ggufBases+name, adapter)), Name: adapter, Weight: 1}
	plan, err := merge.Open(t.Context(), path, []merge.Adapter{a}, o)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// splitParts reads the parts of a base.
func splitParts(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(dir + "/base-*-of-*.gguf")
	if err != nil || len(names) < 3 {
		t.Fatal(names, err)
	}
	all := make(map[string][]byte)
	for _, name := range names {
		if all[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// joined joins parts as llama-gguf-split does: with the keys of the first one, and the tensors of
// all. The keys of each part say which one it is.
func joined(t *testing.T, parts map[string][]byte) []byte {
	t.Helper()
	var kvs []gguf.KV
	var tensors []gguf.Tensor
	var data [][]byte
	for i, name := range slices.Sorted(maps.Keys(parts)) {
		file := parts[name]
		g, err := gguf.Read(t.Context(), bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		no, _ := g.Value("split.no")
		count, _ := g.Value("split.count")
		if n, _ := no.Uint(); n != uint64(i) {
			t.Errorf("%s says split.no %v", name, no)
		}
		if n, _ := count.Uint(); n != uint64(len(parts)) {
			t.Errorf("%s says split.count %v", name, count)
		}
		if i == 0 {
			kvs = g.KVs
		}
		for _, x := range g.Tensors {
			tensors, data = append(tensors, x), append(data, file[x.Off:][:x.Size])
		}
	}
	var all bytes.Buffer
	err := gguf.Write(t.Context(), &all, kvs, tensors, func(w io.Writer, i int) error {
		_, err := w.Write(data[i])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.Bytes()
}
