package shards_test

import (
	"testing"

	"github.com/loratool/loratool/internal/shards"
)

func TestSetOf(t *testing.T) {
	for _, c := range []struct {
		file, whole string
		count       int
		second      string
	}{
		{"model-00001-of-00003.safetensors", "model.safetensors", 3, "model-00002-of-00003.safetensors"},
		{"adapter_model-2-of-12.bin", "adapter_model.bin", 12, "adapter_model-2-of-12.bin"},
		{"a-b-00001-of-00001.bin", "a-b.bin", 1, "a-b-00002-of-00001.bin"},
	} {
		set, ok := shards.SetOf(c.file)
		if !ok || set.Whole != c.whole || set.Count != c.count || set.Name(2) != c.second {
			t.Errorf("SetOf(%q) = %v %v, second %q; want %q, %d, %q", c.file, set, ok, set.Name(2), c.whole, c.count, c.second)
		}
	}
	for _, file := range []string{
		"model.safetensors", "model-00001-of-00000.safetensors", "model-1-of-9999999999.bin", "-1-of-1.bin",
		"d/model-00001-of-00003.safetensors", "model-00001-of-00003", "model-x-of-00003.bin",
	} {
		if set, ok := shards.SetOf(file); ok {
			t.Errorf("SetOf(%q) = %v, want none", file, set)
		}
	}
}

func TestMissing(t *testing.T) {
	set, _ := shards.SetOf("m-00002-of-999999999.bin")
	if got := set.Missing(map[string]bool{"m-00001-of-999999999.bin": true}); got != "m-00002-of-999999999.bin" {
		t.Errorf("Missing = %q, want the second shard", got)
	}
	set, _ = shards.SetOf("m-1-of-2.bin")
	if got := set.Missing(map[string]bool{"m-1-of-2.bin": true, "m-2-of-2.bin": true}); got != "" {
		t.Errorf("Missing of all shards = %q", got)
	}
}
