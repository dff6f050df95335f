package merge_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestPlanningAllocatesLittlePerTensor: what one more tensor of a base, or one more tensor and one
// more layer of an adapter for it, costs to open and to plan, by TotalAlloc and by the number of
// allocations. Both are counts: they depend neither on the machine nor on when the collector runs.
// internal/bench times plans of real sizes.
func TestPlanningAllocatesLittlePerTensor(t *testing.T) {
	for _, c := range []struct {
		name                string
		isFP8, isAdapted    bool
		maxBytes, maxAllocs int64 // for one more tensor
	}{
		{"plain", false, false, 465, 1},
		{"FP8 in shards", true, false, 2650, 5},
		{"plain, with a layer each", false, true, 3000, 12},
		{"FP8 in shards, with a layer each", true, true, 3500, 10},
	} {
		const n = 4000
		bytes1, allocs1 := planCost(t, n, c.isFP8, c.isAdapted)
		bytes2, allocs2 := planCost(t, 3*n, c.isFP8, c.isAdapted)
		bytes, allocs := (bytes2-bytes1)/(2*n), (allocs2-allocs1)/(2*n)
		t.Logf("%s: %d bytes and %d allocations a tensor", c.name, bytes, allocs)
		if bytes > c.maxBytes || allocs > c.maxAllocs {
			t.Errorf("%s: planning allocates %d bytes in %d pieces for a tensor of the base, want at most %d in %d", c.name, bytes, allocs, c.maxBytes, c.maxAllocs)
		}
	}
}

// planCost plans a merge into a base of n tensors, headers and holes, and returns what it
// allocates. The adapter has a layer for each matrix, or else for one.
func planCost(t *testing.T, n int, isFP8, isAdapted bool) (bytes, allocs int64) {
	t.Helper()
	dir := t.TempDir()
	base, config, nShards := filepath.Join(dir, "base"), `{"model_type":"llama"}`, 1
	if isFP8 {
		config = `{"model_type":"llama","quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}`
		nShards = 4
	}
	testkit.Write(t, filepath.Join(base, "config.json"), []byte(config))
	where := make(map[string]string)
	var factors []testkit.Tensor
	adapt := func(name string) {
		if len(factors) == 0 || isAdapted {
			module := "base_model.model." + strings.TrimSuffix(name, "weight")
			factors = append(factors,
				testkit.Tensor{Name: module + "lora_A.weight", DType: dtype.F32, Shape: []uint64{1, 128}, Data: make([]byte, 512)},
				testkit.Tensor{Name: module + "lora_B.weight", DType: dtype.F32, Shape: []uint64{256, 1}, Data: make([]byte, 1024)})
		}
	}
	for shard := range nShards {
		file := "model.safetensors"
		if nShards > 1 {
			file = fmt.Sprintf("model-%05d-of-%05d.safetensors", shard+1, nShards)
		}
		var header strings.Builder
		off := 0
		add := func(name string, d dtype.Type, rows, cols int) {
			end := off + rows*cols*d.Size()
			fmt.Fprintf(&header, `,%q:{"dtype":"%v","shape":[%d,%d],"data_offsets":[%d,%d]}`, name, d, rows, cols, off, end)
			off, where[name] = end, file
		}
		for i := shard; i < n; i += nShards {
			name := fmt.Sprintf("model.layers.%d.mlp.experts.%d.up_proj.weight", i/300, i%300)
			switch {
			case !isFP8:
				adapt(name)
				add(name, dtype.BF16, 256, 128)
			case i/nShards%2 == 0:
				adapt(name)
				add(name, dtype.F8E4M3, 256, 128)
				add(name+"_scale_inv", dtype.F32, 2, 1)
			}
		}
		text := testkit.Raw("{"+header.String()[1:]+"}", nil)
		testkit.Write(t, filepath.Join(base, file), text)
		if err := os.Truncate(filepath.Join(base, file), int64(len(text)+off)); err != nil {
			t.Fatal(err)
		}
	}
	if nShards > 1 {
		index, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": 1}, "weight_map": where})
		if err != nil {
			t.Fatal(err)
		}
		testkit.Write(t, filepath.Join(base, "model.safetensors.index.json"), index)
	}
	adapter := filepath.Join(dir, "adapter")
	testkit.WriteAdapter(t, adapter, 1, 1, factors...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	plan, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Close(); err != nil {
		t.Fatal(err)
	}
	return int64(after.TotalAlloc - before.TotalAlloc), int64(after.Mallocs - before.Mallocs)
}
