package merge_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// below stacks matrices on top of each other.
func below(name string, parts ...testkit.Tensor) testkit.Tensor {
	var v []float64
	rows := uint64(0)
	for _, p := range parts {
		for k := range int(p.Shape[0] * p.Shape[1]) {
			v = append(v, dtype.Load(dtype.F32, p.Data, k))
		}
		rows += p.Shape[0]
	}
	return testkit.Values(name, dtype.F32, []uint64{rows, parts[0].Shape[1]}, v...)
}

// diagonal joins matrices into a block-diagonal one.
func diagonal(name string, parts ...testkit.Tensor) testkit.Tensor {
	rows, cols := 0, 0
	for _, p := range parts {
		rows, cols = rows+int(p.Shape[0]), cols+int(p.Shape[1])
	}
	v := make([]float64, rows*cols)
	row, col := 0, 0
	for _, p := range parts {
		m, r := int(p.Shape[0]), int(p.Shape[1])
		for k := range m * r {
			v[(row+k/r)*cols+col+k%r] = dtype.Load(dtype.F32, p.Data, k)
		}
		row, col = row+m, col+r
	}
	return testkit.Values(name, dtype.F32, []uint64{uint64(rows), uint64(cols)}, v...)
}

// TestTheWayOutOfSplitProjections follows the hint for a base that fuses projections which the
// adapter splits: LoRAs of three projections, and of two.
func TestTheWayOutOfSplitProjections(t *testing.T) {
	const n, m, rank = 5, 3, 2
	base, adapter, out := filepath.Join(t.TempDir(), "model.safetensors"), t.TempDir(), filepath.Join(t.TempDir(), "out.safetensors")
	fused := map[string]int{"model.layers.0.self_attn.qkv_proj": 3, "model.layers.0.mlp.gate_up_proj": 2}
	var weights, factors []testkit.Tensor
	for module, nParts := range fused {
		var as, bs []testkit.Tensor
		for k := range nParts {
			as = append(as, flat(matrices("", 10*nParts+k, 1, rank, n)))
			bs = append(bs, flat(matrices("", 20*nParts+k, 1, m, rank)))
		}
		weights = append(weights, flat(matrices(module+".weight", nParts, 1, m*nParts, n)))
		prefix := "base_model.model." + module
		factors = append(factors, below(prefix+".lora_A.weight", as...), diagonal(prefix+".lora_B.weight", bs...))
	}
	testkit.Write(t, base, testkit.Encode(nil, weights...))
	testkit.Write(t, filepath.Join(adapter, "adapter_model.safetensors"), testkit.Encode(nil, factors...))
	testkit.Write(t, filepath.Join(adapter, "adapter_config.json"), []byte(`{"peft_type":"LORA","r":2,"lora_alpha":8,"target_modules":["qkv_proj","gate_up_proj"],
		"rank_pattern":{"qkv_proj":6,"gate_up_proj":4},"alpha_pattern":{"qkv_proj":24,"gate_up_proj":16}}`))
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Run(context.Background(), out); err != nil {
		t.Fatal(err)
	}
	before, after := openCheckpoint(t, base), openCheckpoint(t, out)
	for module, nParts := range fused {
		was, got := read(t, before, module+".weight"), read(t, after, module+".weight")
		for i := range m * nParts {
			for j := range n {
				k := i / m
				want := dtype.Load(dtype.F32, was, i*n+j) + 4*expertProduct(10*nParts+k, 1, 20*nParts+k, 1, 0, i%m, j)
				if x := dtype.Load(dtype.F32, got, i*n+j); x != want {
					t.Fatalf("%s has %v at (%d, %d), want %v", module, x, i, j, want)
				}
			}
		}
	}
}
