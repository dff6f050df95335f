package merge_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestMixedOutputsSayWhichModulesArePlain: as the loaders of each method read it. The codes of all
// other weights stay, and nothing of the decoded one is left.
func TestMixedOutputsSayWhichModulesArePlain(t *testing.T) {
	for _, c := range []struct {
		base, module string
		want         map[string]any // the paths in config.json
	}{
		{"gptq_mixed", "model.layers.0.m1", map[string]any{
			"quantization_config.dynamic": map[string]any{
				`-:^model\.layers\.0\.m1$`: map[string]any{}, `+:.*\.m1$`: map[string]any{"bits": 8.0, "group_size": 32.0},
				`+:.*\.m2$`: map[string]any{"bits": 2.0, "group_size": 64.0}, `+:.*\.m4$`: map[string]any{"bits": 8.0, "group_size": -1.0},
			},
			"quantization_config.modules_in_block_to_quantize": []any{[]any{"model.layers.0.m0", "model.layers.0.m2", "model.layers.0.m3", "model.layers.0.m4"}},
		}},
		{"mlx_mixed", "model.layers.1.self_attn.o_proj", map[string]any{
			"quantization.model.layers.1.self_attn.o_proj":        false,
			"quantization_config.model.layers.1.self_attn.o_proj": false,
		}},
		{"mlx_mixed", "model.layers.1.mlp.down_proj", map[string]any{
			"quantization.model.layers.1.mlp.down_proj":        false,
			"quantization_config.model.layers.1.mlp.down_proj": false,
		}},
		{"hqq_mixed", "model.layers.0.m2", map[string]any{"quantization_config.skip_modules": []any{"lm_head", "m2"}}},
	} {
		rng := rand.New(rand.NewPCG(1, 2))
		base := quantFixtures + c.base
		weight := c.module + ".weight"
		adapter, _, _ := adapterFor(t, rng, weight, readModel(t, base, false)[weight].Shape)
		out, report := runMerge(t, base, adapter, merge.Options{})
		before, after := readModel(t, base, true), readModel(t, out, true)
		for name, x := range before {
			got, ok := after[name]
			switch isIts := strings.HasPrefix(name, c.module+"."); {
			case isIts && name != weight && !strings.HasSuffix(name, ".bias") && ok:
				t.Errorf("%s: %q is still there", c.base, name)
			case !isIts && !bytes.Equal(got.Data, x.Data):
				t.Errorf("%s: %q has other bytes than in the base", c.base, name)
			}
		}
		if d := after[weight].DType; d != dtype.F16 && d != dtype.BF16 {
			t.Errorf("%s: %q is %v, want 16 bits", c.base, weight, d)
		}
		config := readJSON[objects](t, out+"/config.json")
		for path, want := range c.want {
			field, key, _ := strings.Cut(path, ".")
			if got := config[field][key]; !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %s is %v, want %v", c.base, path, got, want)
			}
		}
		text, err := os.ReadFile(out + "/config.json")
		if before, after := bytes.Index(text, []byte(`"-:`)), bytes.Index(text, []byte(`"+:`)); err != nil || after > 0 && before > after {
			t.Errorf("%s: GPTQModel takes the first pattern that fits, and config.json is %s, %v", c.base, text, err)
		}
		roundsTwice := strings.HasPrefix(report.Layers[0].Scheme, "MLX") || strings.HasPrefix(report.Layers[0].Scheme, "HQQ")
		if got := strings.Contains(strings.Join(report.Warnings, "\n"), "rounds them twice"); got != roundsTwice {
			t.Errorf("%s: the warnings are %q, want one about two roundings: %v", c.base, report.Warnings, roundsTwice)
		}
		openModel(t, out).Close()
		whole, _ := runMerge(t, base, adapter, merge.Options{Dequantise: true})
		text, err = os.ReadFile(whole + "/config.json")
		if err != nil || bytes.Contains(text, []byte("quantization")) {
			t.Errorf("%s: config.json of the decoded model is %s, %v", c.base, text, err)
		}
	}
}

// objects are the members of an object that are objects themselves.
type objects map[string]map[string]any

func (o *objects) UnmarshalJSON(text []byte) error {
	var all map[string]json.RawMessage
	err := json.Unmarshal(text, &all)
	*o = make(objects)
	for name, value := range all {
		var object map[string]any
		if json.Unmarshal(value, &object) == nil {
			(*o)[name] = object
		}
	}
	return err
}

// TestAMixOfLayersOfHQQIsRefused: its loaders know the modules of all layers by one name.
func TestAMixOfLayersOfHQQIsRefused(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var tensors []testkit.Tensor
	for name, x := range readModel(t, quantFixtures+"hqq_mixed", true) {
		if tail, ok := strings.CutPrefix(name, "model.layers.0.m0."); ok {
			for _, layer := range []string{"model.layers.0.q.", "model.layers.1.q."} {
				x.Name = layer + tail
				tensors = append(tensors, x)
			}
		}
	}
	base := t.TempDir()
	testkit.Write(t, filepath.Join(base, "model.safetensors"), testkit.Encode(nil, tensors...))
	testkit.Write(t, filepath.Join(base, "config.json"), []byte(`{"quantization_config":{"quant_method":"hqq"}}`))
	adapter, _, _ := adapterFor(t, rng, "model.layers.0.q.weight", []uint64{24, 64})
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	adapters := []merge.Adapter{{Source: src, Name: "a", Weight: 1}}
	if _, err = merge.Open(t.Context(), base, adapters, merge.Options{}); !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), "model.layers.1.q") {
		t.Errorf("a merge into one of two layers: %v, want a refusal that names the other", err)
	}
	runMerge(t, base, adapter, merge.Options{Dequantise: true})
}

// TestDamagedGroupsAreFoundBeforeWriting: the plan of a merge into a weight of GPTQ whose g_idx is
// beyond the end is an error, and so is a read of its values.
func TestDamagedGroupsAreFoundBeforeWriting(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var tensors []testkit.Tensor
	for name, x := range readModel(t, quantFixtures+"gptq_v2_desc", true) {
		if strings.HasSuffix(name, ".g_idx") {
			x.Data[4*200] = 77
		}
		tensors = append(tensors, x)
	}
	base := t.TempDir()
	config, err := os.ReadFile(quantFixtures + "gptq_v2_desc/config.json")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(base, "model.safetensors"), testkit.Encode(nil, tensors...))
	testkit.Write(t, filepath.Join(base, "config.json"), config)
	adapter, _, _ := adapterFor(t, rng, "m.weight", []uint64{64, 256})
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	_, err = merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, merge.Options{})
	if !errors.Is(err, format.ErrCorrupt) || !strings.Contains(err.Error(), "input 200 into group 77, want 0 to 3") {
		t.Errorf("a plan over a damaged g_idx: %v, want a refusal that names input and group", err)
	}
}
