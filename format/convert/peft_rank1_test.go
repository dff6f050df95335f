package convert_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestRankOneExpertsAreNoConvolution uses factors of three dimensions where the last dimension of B
// is 1. For experts they are E×1×n and E×m×1; for PEFT's convolutions r×in×k and m×r×1.
func TestRankOneExpertsAreNoConvolution(t *testing.T) {
	for _, c := range []struct {
		name string
		rank int
		a, b []uint64
		want format.Kind
	}{
		{"a matrix for each of 3 experts", 1, []uint64{3, 1, 4}, []uint64{3, 5, 1}, format.Other},
		{"as many outputs as experts", 1, []uint64{3, 1, 4}, []uint64{3, 3, 1}, format.Other},
		{"one A for all experts", 1, []uint64{1, 1, 4}, []uint64{3, 5, 1}, format.Other},
		{"one B for all experts", 1, []uint64{3, 1, 4}, []uint64{1, 5, 1}, format.Other},
		{"rank 2", 2, []uint64{3, 2, 4}, []uint64{3, 5, 2}, format.Other},
		{"a convolution of rank 1", 1, []uint64{1, 6, 3}, []uint64{5, 1, 1}, format.Conv},
		{"a convolution of one channel", 3, []uint64{3, 1, 4}, []uint64{3, 3, 1}, format.Conv},
		{"a convolution of one channel, rank 1", 1, []uint64{1, 1, 4}, []uint64{3, 1, 1}, format.Conv},
	} {
		dir := t.TempDir()
		config := fmt.Sprintf(`{"peft_type":"LORA","r":%d,"lora_alpha":1}`, c.rank)
		testkit.Write(t, filepath.Join(dir, "adapter_config.json"), []byte(config))
		const module = "base_model.model.mlp.experts.gate_up_proj"
		testkit.Write(t, filepath.Join(dir, "adapter_model.safetensors"), testkit.Encode(nil,
			testkit.Values(module+".lora_A.weight", dtype.F32, c.a, make([]float64, c.a[0]*c.a[1]*c.a[2])...),
			testkit.Values(module+".lora_B.weight", dtype.F32, c.b, make([]float64, c.b[0]*c.b[1]*c.b[2])...)))
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := src.Manifest().Adapters[0].Layers[0].Kind; got != c.want {
			t.Errorf("%s: A %d, B %d of rank %d are of kind %q, want %q", c.name, c.a, c.b, c.rank, got, c.want)
		}
		src.Close()
	}
}
