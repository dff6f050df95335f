package convert_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
)

const (
	shardOne, shardTwo = "adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors"
	ownIndex           = "adapter_model.safetensors.index.json"
)

// shardsIn writes an adapter of two layers in two shards, and the index, if there is one, and
// returns the directory.
func shardsIn(t *testing.T, index map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for shard, module := range map[string]string{shardOne: "x", shardTwo: "y"} {
		prefix := "base_model.model." + module + ".q_proj."
		testkit.WriteAdapter(t, dir, 1, 1, ones(prefix+"lora_A.weight", prefix+"lora_B.weight")...)
		if err := os.Rename(filepath.Join(dir, "adapter_model.safetensors"), filepath.Join(dir, shard)); err != nil {
			t.Fatal(err)
		}
	}
	if index != nil {
		text, err := json.Marshal(map[string]any{"metadata": map[string]any{}, "weight_map": index})
		if err != nil {
			t.Fatal(err)
		}
		testkit.Write(t, filepath.Join(dir, ownIndex), text)
	}
	return dir
}

var rightIndex = map[string]string{
	"base_model.model.x.q_proj.lora_A.weight": shardOne, "base_model.model.x.q_proj.lora_B.weight": shardOne,
	"base_model.model.y.q_proj.lora_A.weight": shardTwo, "base_model.model.y.q_proj.lora_B.weight": shardTwo,
}

// TestShardsAreOneAdapter: all shards are opened, none is stray, and a change of any is noticed.
func TestShardsAreOneAdapter(t *testing.T) {
	for name, index := range map[string]map[string]string{"an index": rightIndex, "none": nil} {
		dir := shardsIn(t, index)
		testkit.Write(t, filepath.Join(dir, "config.json.bak"), []byte("{}"))
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatalf("with %s: %v", name, err)
		}
		defer src.Close()
		if n := len(src.Manifest().Adapters[0].Layers); n != 2 {
			t.Errorf("with %s: %d layers, want 2", name, n)
		}
		if stray, notes := convert.WeightsBeside(src), src.Manifest().Notes; len(stray)+len(notes) > 0 {
			t.Errorf("with %s: stray %q, notes %q; want none", name, stray, notes)
		}
		for i := range src.Manifest().Tensors {
			var p [4]byte
			if err := src.ReadBlobAt(p[:], i, 0); err != nil || p != [4]byte{0, 0, 0x80, 0x3f} {
				t.Errorf("tensor %d is % x (%v), want 1", i, p, err)
			}
		}
		watch := src.(interface{ Unchanged() error })
		if err := watch.Unchanged(); err != nil {
			t.Error(err)
		}
		testkit.Write(t, filepath.Join(dir, shardTwo), []byte("other"))
		if err := watch.Unchanged(); err == nil {
			t.Error("a change of the second shard goes unnoticed")
		}
	}
}

// TestShardsOfABrokenSetAreRefused: each error says which shard is wrong, and what to do.
func TestShardsOfABrokenSetAreRefused(t *testing.T) {
	with := func(key, shard string) map[string]string {
		index := map[string]string{key: shard}
		for k, v := range rightIndex {
			if k != key {
				index[k] = v
			}
		}
		return index
	}
	const x, y = "base_model.model.x.q_proj.lora_A.weight", "base_model.model.y.q_proj.lora_A.weight"
	for _, c := range []struct {
		name  string
		index map[string]string
		edit  func(dir string)
		kind  error
		want  string
		hint  string
	}{
		{"a shard is missing", rightIndex, func(dir string) { os.Remove(filepath.Join(dir, shardTwo)) },
			fault.Truncated, "the index names the shard " + shardTwo + ", which does not exist", "fetch the missing shard"},
		{"a shard is missing, without an index", nil, func(dir string) { os.Remove(filepath.Join(dir, shardOne)) },
			fault.Truncated, "holds shards such as " + shardTwo + ", but neither their index " + ownIndex + " nor the shard " + shardOne, "fetch"},
		{"a tensor is in another shard", with(x, shardTwo), nil,
			fault.Corrupt, "the index says that " + shardTwo + ` holds "` + x + `", but ` + shardOne + " does", ""},
		{"a tensor is in no shard", with("z", shardTwo), nil,
			fault.Corrupt, "the index says that " + shardTwo + ` holds "z", but it does not`, ""},
		{"a tensor is in both shards", rightIndex, func(dir string) {
			testkit.Write(t, filepath.Join(dir, shardTwo), testkit.Encode(nil, ones(x, y)...))
		}, fault.Corrupt, `tensor "` + x + `" is both in ` + shardOne + " and in " + shardTwo, ""},
		{"a shard is cut", rightIndex, func(dir string) {
			testkit.Write(t, filepath.Join(dir, shardTwo), testkit.Encode(nil, ones(y)...)[:20])
		}, fault.Truncated, shardTwo, ""},
		{"a shard outside", with(x, "../"+shardOne), nil, fault.Corrupt, "which is not a file of its directory", ""},
		{"an index without a list", map[string]string{}, nil, fault.Corrupt, "the index has no weight_map", ""},
		{"two sets", nil, func(dir string) {
			testkit.Write(t, filepath.Join(dir, "adapter_model-00001-of-00003.safetensors"), testkit.Encode(nil, ones(x)...))
		}, fault.Mismatch, "shards of several adapters (adapter_model-*-of-00002.safetensors and adapter_model-*-of-00003.safetensors)", "move the others"},
	} {
		dir := shardsIn(t, c.index)
		if c.edit != nil {
			c.edit(dir)
		}
		_, err := convert.Open(t.Context(), dir, convert.Options{})
		checkRefused(t, c.name, err, c.kind, c.want, c.hint)
		if !convert.IsAdapter(t.Context(), dir) {
			t.Errorf("%s: IsAdapter is false", c.name)
		}
	}
	dir := shardsIn(t, rightIndex)
	_, err := convert.Open(t.Context(), filepath.Join(dir, shardTwo), convert.Options{})
	checkRefused(t, "one shard", err, fault.Unsupported, "one of the 2 shards of an adapter", "give the directory")
	_, err = convert.Open(t.Context(), dir, convert.Options{Without: []string{shardTwo}})
	checkRefused(t, "without a shard", err, fault.Mismatch, `"`+shardTwo+`" is the adapter itself`, "")
}

func checkRefused(t *testing.T, name string, err, kind error, want, hint string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), want) || !strings.Contains(fault.Hint(err), hint) {
		t.Errorf("%s: %v (hint: %s), want %v with %q (hint: %q)", name, err, fault.Hint(err), kind, want, hint)
	}
}
