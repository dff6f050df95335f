package checkpoint_test

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/testkit"
)

const splitGGUF = "../../testdata/gguf/bases/split-plain"

// parts reads the parts of a split.
func parts(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(dir + "/base-*.gguf")
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

// TestSplitGGUFReadsAsOne: the first part and the directory open all parts in their order, each as
// it is. gguf-py has put the keys in the first part, which has no tensor.
func TestSplitGGUFReadsAsOne(t *testing.T) {
	want := parts(t, splitGGUF)
	dir := t.TempDir()
	for name, content := range want {
		testkit.Write(t, filepath.Join(dir, name), content)
	}
	adapter, err := os.ReadFile(splitGGUF + "/adapter.gguf")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(dir, "adapter.gguf"), adapter)
	testkit.Write(t, filepath.Join(dir, "README.md"), nil)
	for _, path := range []string{dir, splitGGUF + "/base-00001-of-00004.gguf"} {
		c := open(t, path)
		if !c.IsDir || !slices.Equal(files(c), slices.Sorted(maps.Keys(want))) || len(c.Names()) != 12 || c.Config.HiddenSize != 32 {
			t.Errorf("%s: directory %v, files %q, tensors %q, keys %+v", path, c.IsDir, files(c), c.Names(), c.Config)
		}
		for _, f := range c.Files {
			if !bytes.Equal(contentOf(t, f), want[f.Name]) {
				t.Errorf("%s does not read as it is", f.Path)
			}
		}
		if path == dir && (!slices.Equal(c.Side, []string{"README.md"}) || !slices.Equal(c.Left, []string{"adapter.gguf"})) {
			t.Errorf("files beside %q, left %q", c.Side, c.Left)
		}
	}
	if c := open(t, "../../testdata/gguf/bases/plain/base.gguf"); c.IsDir {
		t.Error("the output of a file is a directory")
	}
}

// TestViewOfSplitGGUFKeepsItsCount: all parts know how many tensors there are, and the first one
// their type, also after a change of another part.
func TestViewOfSplitGGUFKeepsItsCount(t *testing.T) {
	c := open(t, splitGGUF+"/base-00001-of-00004.gguf")
	zeros := c.Files[1].Tensors[0] // BF16
	zeros.Shape, zeros.NBytes = []uint64{4, 4}, 32
	view, err := c.Reshape([]checkpoint.Change{{Name: "new.weight", Zeros: &zeros}})
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range view.Files {
		content := contentOf(t, f)
		g, err := gguf.Read(t.Context(), bytes.NewReader(content), int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		v, _ := g.Value("split.tensors.count")
		if n, _ := v.Uint(); n != 13 || v.Type != gguf.Int32 {
			t.Errorf("part %d says %v tensors, want 13", i+1, v)
		}
	}
}

// TestBrokenSplitsAreRefused: parts that are missing, of another split or another model, or called
// differently, and the hint helps.
func TestBrokenSplitsAreRefused(t *testing.T) {
	all := parts(t, splitGGUF)
	name := func(i string) string { return "base-" + i + "-of-00004.gguf" }
	first, second, last := name("00001"), name("00002"), name("00004")
	with := func(change func(files map[string][]byte)) map[string][]byte {
		files := maps.Clone(all)
		change(files)
		return files
	}
	edited := func(file, key string, kv gguf.KV) map[string][]byte {
		return with(func(files map[string][]byte) { files[file] = withKey(t, files[file], key, kv) })
	}
	for _, c := range []struct {
		name        string
		files       map[string][]byte
		open        string // within the directory
		kind        error
		words, hint string
	}{
		{"no second part", with(func(f map[string][]byte) { delete(f, second) }), first, fault.Truncated, "has 4 parts, and base-00002-of-00004.gguf does not exist", "fetch the missing part"},
		{"no first part", with(func(f map[string][]byte) { delete(f, first) }), "", fault.Truncated, "not the first part of the model, base-00001-of-00004.gguf", "fetch the missing part"},
		{"the second part", all, second, fault.Unsupported, "part 2 of the 4 parts", "give the first part, base-00001-of-00004.gguf"},
		{"a part of its own name", with(func(f map[string][]byte) { f["a.gguf"] = f[first] }), "a.gguf", fault.Mismatch, "its name does not say so", "NAME-00001-of-00004.gguf"},
		{"another count in the name", with(func(f map[string][]byte) { f["b-00001-of-00003.gguf"] = f[first] }), "b-00001-of-00003.gguf", fault.Mismatch, "its name does not say so", ""},
		{"another order", with(func(f map[string][]byte) { f[second], f[last] = f[last], f[second] }), first, fault.Mismatch, "split.no is 3, want 1 in part 2 of 4", "different splits"},
		{"another count", edited(last, "split.count", gguf.Uint32KV("split.count", 5)), first, fault.Mismatch, "split.count is 5, want 4 in part 4 of 4", "different splits"},
		{"another total", edited(last, "split.tensors.count", gguf.Int32KV("split.tensors.count", 11)), first, fault.Mismatch, "split.tensors.count is 11, and 12 in the first part", "different models"},
		{"a wrong total", edited(first, "split.tensors.count", gguf.Int32KV("split.tensors.count", 11)), first, fault.Mismatch, "split.tensors.count is", ""},
		{"no total", edited(first, "split.tensors.count", gguf.KV{}), first, fault.Mismatch, "split.tensors.count", ""},
		{"a negative total", edited(first, "split.tensors.count", gguf.Int32KV("split.tensors.count", -1)), first, fault.Corrupt, "split.tensors.count is", ""},
		{"a huge count", edited(first, "split.count", gguf.Uint32KV("split.count", 1<<31)), first, fault.Corrupt, "split.count is", ""},
		{"a text for a count", edited(first, "split.count", gguf.TextKV("split.count", "4")), first, fault.Corrupt, "split.count is", ""},
		{"a part without keys", edited(second, "split.no", gguf.KV{}), first, fault.Mismatch, "lacks the key split.no", ""},
		{"a name without keys", edited(first, "split.count", gguf.KV{}), first, fault.Mismatch, "no key split.count", "another name"},
		{"no GGUF file", with(func(f map[string][]byte) { f[second] = weights("a") }), first, fault.Mismatch, "no GGUF file", ""},
		{"two models", with(func(f map[string][]byte) { f["other.gguf"] = f[last] }), "", fault.Mismatch, "base-00001-of-00004.gguf and other.gguf", "give the path"},
		{"the same part twice", with(func(f map[string][]byte) {
			f[last] = withKey(t, withKey(t, f[second], "split.no", gguf.Uint32KV("split.no", 3)), "split.tensors.count", gguf.Int32KV("split.tensors.count", 12))
		}), first, fault.Corrupt, "is both in", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkError(t, filepath.Join(directory(t, c.files), c.open), c.kind, c.words, c.hint)
		})
	}
	_, err := checkpoint.New(t.Context(), "a.gguf", bytes.NewReader(all[second]), int64(len(all[second])))
	if e, ok := err.(*fault.Error); !ok || e.Hint == "" {
		t.Errorf("a part alone: error %v", err)
	}
}

// withKey returns a file with another value of a key, or without the key if kv is zero.
func withKey(t *testing.T, file []byte, key string, kv gguf.KV) []byte {
	t.Helper()
	g, err := gguf.Read(t.Context(), bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(g.KVs, func(kv gguf.KV) bool { return kv.Key == key })
	kvs := slices.Clone(g.KVs)
	if kvs[i] = kv; kv.Key == "" {
		kvs = slices.Delete(kvs, i, i+1)
	}
	_, head, err := gguf.Compose(g.Version, kvs, g.Tensors)
	if err != nil {
		t.Fatal(err)
	}
	return append(head, file[g.DataOff:]...)
}
