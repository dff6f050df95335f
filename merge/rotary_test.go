package merge_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/merge"
)

// mergeRotary merges an adapter of one layer into a base of one weight, 8×3, and returns the file.
func mergeRotary(t *testing.T, config string, b []float32, inPairs bool, change func(*format.LayerBuilder)) ([]byte, error) {
	t.Helper()
	ctx := context.Background()
	const module = "model.layers.0.self_attn.q_proj"
	var weights bytes.Buffer
	tensors := []format.Tensor{{Name: module + ".weight", DType: dtype.BF16, Shape: []uint64{8, 3}}}
	fill := func(p []byte, _ int, off int64) error {
		for i := range p {
			p[i] = byte(off+int64(i))*7%64 + 1
		}
		return nil
	}
	if err := safetensors.Write(ctx, &weights, tensors, nil, fill); err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"base/model.safetensors": {Data: weights.Bytes()}}
	if config != "" {
		files["base/config.json"] = &fstest.MapFile{Data: []byte(config)}
	}
	x := format.NewBuilder("test")
	l := x.Linear(module, 2, 0.75, format.Float32s([]float32{1, 2, 3, 0.5, -1, 4}), format.Float32s(b))
	if change != nil {
		change(l)
	}
	if inPairs {
		x.Require(format.FeatureRotaryPairs, module)
	}
	src, err := x.Source()
	if err != nil {
		t.Fatal(err)
	}
	base, err := checkpoint.OpenFS(ctx, files, "base")
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	plan, err := merge.New(ctx, base, []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, merge.Options{})
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(ctx, &out); err != nil {
		t.Fatal(err)
	}
	file := out.Files()["model.safetensors"]
	return file[len(file)-8*3*2:], nil
}

// The order is that of spec/METHODS.md, section 6, and of LlamaModel.permute in llama.cpp.
func TestRowsInTheOrderOfLlamaCppMergeAsThoseOfTransformers(t *testing.T) {
	var straight, inPairs [16]float32
	const size = 4 // of a head
	for row := range 8 {
		head, half, i := row/size, row%size/(size/2), row%(size/2)
		for k := range 2 {
			straight[2*row+k] = float32(3*row + k)
			inPairs[2*(head*size+2*i+half)+k] = straight[2*row+k]
		}
	}
	want, err := mergeRotary(t, "", straight[:], false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range []string{
		`{"head_dim": 4}`, `{"hidden_size": 16, "num_attention_heads": 4}`,
		`{"head_dim": null, "hidden_size": 16, "num_attention_heads": 4}`,
		`{"head_dim": 8, "text_config": {"head_dim": 4}}`,
	} {
		got, err := mergeRotary(t, config, inPairs[:], true, nil)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: merged to %x, %v, want %x", config, got, err, want)
		}
	}
	for config, why := range map[string]string{
		"":                    "does not say how many rows",
		`{"hidden_size": 16}`: "does not say how many rows",
		`{"head_dim": 3}`:     "multiple of the base's head size, 3",
		`{"head_dim": 6}`:     "multiple of the base's head size, 6",
		`{"hidden_size": 9, "num_attention_heads": 2}`: "does not say how many rows",
	} {
		if _, err := mergeRotary(t, config, inPairs[:], true, nil); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", config, err, why)
		}
	}
	withBias := func(l *format.LayerBuilder) { l.Bias(format.Float32s(make([]float32, 8))) }
	if _, err := mergeRotary(t, `{"head_dim": 4}`, inPairs[:], true, withBias); err == nil || !strings.Contains(err.Error(), "without a bias") {
		t.Errorf("with a bias: %v", err)
	}
}
