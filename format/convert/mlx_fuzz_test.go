package convert

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
)

// FuzzMLX: for any configuration and shapes, opening a directory of MLX returns an error of a kind,
// or an adapter that a container can hold. What is written for mlx-lm opens again.
func FuzzMLX(f *testing.F) {
	for _, name := range []string{"llama", "dora", "gemma", "mixtral"} {
		text, err := os.ReadFile(filepath.Join("../../testdata/mlx", name, "adapter", format.PEFTConfig))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), ".lora_a", ".lora_b", []byte{6, 2}, []byte{2, 5}, byte(5))
	}
	f.Add(`{"lora_parameters": {"scale": 1e308, "alpha": 1e308, "rank": 1}}`, ".lora_a", ".lora_b", []byte{3, 2, 6}, []byte{3, 5, 2}, byte(0))
	f.Add(`{"lora_layers": 4, "lora_parameters": {"scale": 10.0, "alpha": 16, "rank": 2}}`, ".lora_a", ".lora_b", []byte{6, 6}, []byte{3, 5, 2}, byte(0))
	f.Add(`{"lora_parameters": {"scale": 0, "x": null}}`, ".lora_a", ".lora_b", []byte{}, []byte{0, 0}, byte(1))
	f.Add(`{"rank": 2, "alpha": 0.1}`, ".A", ".B", []byte{6, 2}, []byte{2, 5}, byte(0))
	f.Fuzz(func(t *testing.T, config, tailA, tailB string, a, b []byte, m byte) {
		modules := []string{"model.layers.1.mlp.switch_mlp.up_proj", "model.layers.0.q_proj", "model.embed_tokens"}
		var tensors []testkit.Tensor
		for _, module := range modules {
			for tail, dims := range map[string][]byte{tailA: a, tailB: b, ".m": {m}} {
				shape := make([]uint64, min(len(dims), 4))
				for i := range shape {
					shape[i] = uint64(dims[i] % 8)
				}
				n, _ := dtype.NElements(shape)
				tensors = append(tensors, testkit.Tensor{Name: module + tail, DType: dtype.F32, Shape: shape, Data: make([]byte, 4*n)})
			}
		}
		files := fstest.MapFS{
			"a/" + mlxWeights:        {Data: testkit.Encode(nil, tensors...)},
			"a/" + format.PEFTConfig: {Data: []byte(config)},
		}
		var kind *fault.Error
		src, err := OpenFS(context.Background(), files, "a", Options{From: "mlx"})
		if err != nil {
			if !errors.As(err, &kind) {
				t.Fatalf("%v, want an error of a kind", err)
			}
			return
		}
		defer src.Close()
		if err := format.Validate(src.Manifest()); err != nil {
			t.Fatal(err)
		}
		var out output.Memory
		sink, err := CreateTo(&out, MLX(), CreateOptions{})
		if err == nil {
			err = format.Copy(context.Background(), sink, src)
		}
		if err != nil {
			if !errors.As(err, &kind) {
				t.Fatalf("writing: %v, want an error of a kind", err)
			}
			return
		}
		again := make(fstest.MapFS)
		for name, content := range out.Files() {
			again["a/"+name] = &fstest.MapFile{Data: content}
		}
		back, err := OpenFS(context.Background(), again, "a", Options{})
		if err != nil {
			t.Fatalf("what was written does not open: %v", err)
		}
		back.Close()
	})
}
