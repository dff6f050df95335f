package convert_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// mlxPair returns lora_a and lora_b of a module.
func mlxPair(module string, a, b []uint64) []testkit.Tensor {
	return []testkit.Tensor{mlxTensor(module+".lora_a", a...), mlxTensor(module+".lora_b", b...)}
}

func mlxTensor(name string, shape ...uint64) testkit.Tensor {
	n, _ := dtype.NElements(shape)
	values := make([]float64, n)
	for i := range values {
		values[i] = float64(i + 1)
	}
	return testkit.Values(name, dtype.F32, shape, values...)
}

// openMLX opens a directory with a configuration, "" for none, and tensors.
func openMLX(t *testing.T, config string, o convert.Options, tensors ...testkit.Tensor) (format.Source, error) {
	t.Helper()
	files := fstest.MapFS{"a/adapters.safetensors": &fstest.MapFile{Data: testkit.Encode(nil, tensors...)}}
	if config != "" {
		files["a/adapter_config.json"] = &fstest.MapFile{Data: []byte(config)}
	}
	src, err := convert.OpenFS(t.Context(), files, "a", o)
	if err == nil {
		t.Cleanup(func() { src.Close() })
	}
	return src, err
}

// TestMLXScaleIsThatOfItsTime: what the fields of a configuration say of mlx-lm's release, and so
// of the meaning of an alpha.
func TestMLXScaleIsThatOfItsTime(t *testing.T) {
	pair := mlxPair("model.layers.0.q_proj", []uint64{6, 4}, []uint64{4, 5})
	for _, c := range []struct {
		name, config string
		options      convert.Options
		want         float64
		note         string
	}{
		{"today", `{"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 20.0}}`,
			convert.Options{}, 20, ""},
		{"October 2024", `{"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 4, "alpha": 16, "dropout": 0.0, "scale": 10.0}}`,
			convert.Options{}, 10, ""},
		{"April 2024", `{"lora_layers": 16, "lora_parameters": {"rank": 4, "alpha": 16, "dropout": 0.0, "scale": 10.0}}`,
			convert.Options{}, 40, "before May 2024"},
		{"summer 2024, alpha = rank", `{"use_dora": false, "lora_layers": 16, "lora_parameters": {"rank": 4, "alpha": 4, "scale": 10.0}}`,
			convert.Options{}, 10, ""},
		{"summer 2024", `{"use_dora": false, "lora_layers": 16, "lora_parameters": {"rank": 4, "alpha": 16, "scale": 10.0}}`,
			convert.Options{Scale: 10}, 10, ""},
		{"no scale", `{"lora_parameters": {"rank": 4}}`, convert.Options{}, 20, "it is then 20"},
		{"no scale, one given", `{"lora_parameters": {"rank": 4}}`, convert.Options{Scale: 3}, 3, ""},
		{"no parameters", `{"num_layers": 16}`, convert.Options{}, 20, "it is then 20"},
		{"alpha given", "", convert.Options{Alpha: 8}, 2, ""},
		{"scale given", "", convert.Options{Scale: 0.5}, 0.5, ""},
		{"zero", `{"lora_parameters": {"scale": 0}}`, convert.Options{}, 0, ""},
	} {
		src, err := openMLX(t, c.config, c.options, pair...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		m := src.Manifest()
		if got := m.Adapters[0].Layers[0].Scale(); got != c.want {
			t.Errorf("%s: scale %v, want %v", c.name, got, c.want)
		}
		if notes := strings.Join(m.Notes, "\n"); !strings.Contains(notes, c.note) || (c.note == "") != (notes == "") {
			t.Errorf("%s: notes %q, want %q", c.name, notes, c.note)
		}
	}
}

func TestMLXRefusesByName(t *testing.T) {
	pair := mlxPair("model.layers.0.q_proj", []uint64{6, 4}, []uint64{4, 5})
	weight := []testkit.Tensor{mlxTensor("model.layers.0.q_proj.weight", 5, 6)}
	vlm := []testkit.Tensor{mlxTensor("language_model.q_proj.A", 6, 4), mlxTensor("language_model.q_proj.B", 4, 5)}
	for _, c := range []struct {
		name, config string
		options      convert.Options
		tensors      []testkit.Tensor
		want         string
	}{
		{"no configuration", "", convert.Options{}, pair, "no adapter_config.json beside the weights"},
		{"summer 2024", `{"use_dora": true, "lora_layers": 16, "lora_parameters": {"rank": 4, "alpha": 16, "scale": 10.0}}`,
			convert.Options{}, pair, "whether the scale is 10 (mlx-lm since 2 June 2024) or 40"},
		{"alpha alone", `{"lora_parameters": {"rank": 4, "alpha": 16}}`, convert.Options{}, pair, "an alpha and no scale"},
		{"two scales", `{"lora_parameters": {"scale": 10.0}}`, convert.Options{Scale: 1}, pair, "this one says it (lora_parameters.scale)"},
		{"whole weights", `{"fine_tune_type": "full", "lora_parameters": {"scale": 10.0}}`, convert.Options{}, weight, "fine_tune_type is full"},
		{"of PEFT", `{"peft_type": "LORA", "r": 4}`, convert.Options{}, pair, "adapter_config.json beside them is PEFT's"},
		{"no JSON", `{"lora_parameters"`, convert.Options{}, pair, "not JSON"},
		{"a list", `{"lora_parameters": []}`, convert.Options{}, pair, "lora_parameters"},
		{"NaN", `{"lora_parameters": {"scale": NaN}}`, convert.Options{}, pair, "not JSON"},
		{"infinite", `{"lora_layers": 4, "lora_parameters": {"rank": 1, "alpha": 1e300, "scale": 1e300}}`, convert.Options{}, pair, "no finite number"},
		{"a text", `{"lora_parameters": {"scale": "20"}}`, convert.Options{}, pair, "scale"},
		{"mlx-vlm", `{"rank": 4, "alpha": 16, "dropout": 0.1}`, convert.Options{}, vlm,
			"whether the scale is 16 (alpha, as mlx-vlm had it until 18 April 2026) or 4"},
	} {
		_, err := openMLX(t, c.config, c.options, c.tensors...)
		if err == nil || !strings.Contains(err.Error(), c.want) ||
			!errors.Is(err, format.ErrUnsupported) && !errors.Is(err, format.ErrCorrupt) && !errors.Is(err, format.ErrMismatch) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestMLXLayersAreDescribed: kinds, ranks, shapes of PEFT, and what merge will refuse.
func TestMLXLayersAreDescribed(t *testing.T) {
	const lora, dora = `{"lora_parameters": {"scale": 2.0}}`, `{"fine_tune_type": "dora", "lora_parameters": {"scale": 2.0}}`
	q := func(a, b []uint64) []testkit.Tensor { return mlxPair("model.layers.0.q_proj", a, b) }
	for _, c := range []struct {
		name, config string
		tensors      []testkit.Tensor
		want         string
	}{
		{"linear", lora, q([]uint64{6, 4}, []uint64{4, 5}), "model.layers.0.q_proj linear 4 [4 6] [5 4]"},
		{"embedding", lora, mlxPair("model.embed_tokens", []uint64{9, 2}, []uint64{2, 5}),
			"model.embed_tokens embedding 2 [2 9] [5 2] weight-tying"},
		{"head", lora, mlxPair("lm_head", []uint64{5, 2}, []uint64{2, 9}), "lm_head linear 2 [2 5] [9 2]"},
		{"experts", lora, mlxPair("mlp.switch_mlp.up_proj", []uint64{3, 2, 6}, []uint64{3, 5, 2}),
			"mlp.experts.up_proj other 2 [3 2 6] [3 5 2] expert-factors"},
		{"experts until 2025", lora, mlxPair("mlp.switch_mlp.up_proj", []uint64{6, 7}, []uint64{3, 5, 2}),
			"mlp.experts.up_proj other 2 [3 2 7] [3 5 2] expert-factors"},
		{"experts of another size", lora, mlxPair("mlp.switch_mlp.up_proj", []uint64{7, 7}, []uint64{3, 5, 2}),
			"mlp.experts.up_proj other 1 [7 7] [3 5 2] factor-shape"},
		{"rank", `{"lora_parameters": {"scale": 2.0, "rank": 8}}`, q([]uint64{6, 4}, []uint64{4, 5}),
			"model.layers.0.q_proj linear 4 [4 6] [5 4] rank-mismatch"},
		{"other field", `{"lora_parameters": {"scale": 2.0, "use_rslora": true}}`, q([]uint64{6, 4}, []uint64{4, 5}),
			"model.layers.0.q_proj linear 4 [4 6] [5 4] config-field"},
		{"factor missing", lora, []testkit.Tensor{mlxTensor("x.lora_a", 6, 4)}, "x other 1 [4 6] [] missing-factor"},
		{"ranks differ", lora, q([]uint64{6, 4}, []uint64{3, 5}), "model.layers.0.q_proj other 1 [4 6] [5 3] factor-shape"},
		{"rank 0", lora, q([]uint64{6, 0}, []uint64{0, 5}), "model.layers.0.q_proj other 1 [0 6] [5 0] factor-shape"},
		{"no dimension", lora, q([]uint64{3, 2, 6}, nil), "model.layers.0.q_proj other 1 [3 2 6] [] factor-shape"},
		{"one dimension", lora, q([]uint64{6}, []uint64{6}), "model.layers.0.q_proj other 1 [6] [6] factor-shape"},
		{"other tensor", lora, append(q([]uint64{6, 4}, []uint64{4, 5}), mlxTensor("x.weight", 2)),
			"model.layers.0.q_proj linear 4 [4 6] [5 4] unknown-tensor"},
		{"DoRA", dora, append(q([]uint64{6, 4}, []uint64{4, 5}), mlxTensor("model.layers.0.q_proj.m", 5)),
			"model.layers.0.q_proj linear 4 [4 6] [5 4] dora"},
		{"DoRA without m", dora, q([]uint64{6, 4}, []uint64{4, 5}), "model.layers.0.q_proj linear 4 [4 6] [5 4] dora"},
		{"m of inputs", dora, append(q([]uint64{6, 4}, []uint64{4, 5}), mlxTensor("model.layers.0.q_proj.m", 6)),
			"model.layers.0.q_proj other 4 [4 6] [5 4] dora factor-shape"},
		{"m of tokens", dora, append(mlxPair("wte", []uint64{9, 2}, []uint64{2, 5}), mlxTensor("wte.m", 9)),
			"wte other 2 [2 9] [5 2] dora factor-shape weight-tying"},
		{"two names of experts", lora, append(mlxPair("switch_mlp.up_proj", []uint64{3, 2, 6}, []uint64{3, 5, 2}),
			append(mlxPair("x.switch_mlp.up_proj", []uint64{3, 2, 6}, []uint64{3, 5, 2}),
				mlxPair("x.experts.up_proj", []uint64{3, 2, 6}, []uint64{3, 5, 2})...)...),
			"switch_mlp.up_proj other 2 [3 2 6] [3 5 2] expert-factors twice"},
	} {
		src, err := openMLX(t, c.config, convert.Options{}, c.tensors...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		m := src.Manifest()
		if err := format.Validate(m); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		l := m.Adapters[0].Layers[0]
		shape := func(role format.Role) []uint64 {
			if i, ok := l.Roles[role]; ok {
				return m.Tensors[i].Shape
			}
			return nil
		}
		got := fmt.Sprint(l.Module, " ", l.Kind, " ", l.Rank, " ", shape(format.RoleA), " ", shape(format.RoleB))
		var features []string
		for _, r := range m.Adapters[0].Requires {
			features = append(features, string(r.Feature))
		}
		if got += " " + strings.Join(slices.Compact(features), " "); strings.TrimSpace(got) != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestMLXOfVLM: mlx-vlm called the factors A and B.
func TestMLXOfVLM(t *testing.T) {
	src, err := openMLX(t, `{"rank": 4, "alpha": 16, "dropout": 0.1}`, convert.Options{Scale: 16},
		mlxTensor("language_model.model.layers.0.q_proj.A", 6, 4), mlxTensor("language_model.model.layers.0.q_proj.B", 4, 5))
	if err != nil {
		t.Fatal(err)
	}
	l := src.Manifest().Adapters[0].Layers[0]
	if l.Module != "language_model.model.layers.0.q_proj" || l.Scale() != 16 || l.Rank != 4 {
		t.Errorf("layer %v, want scale 16 and rank 4", l)
	}
}
