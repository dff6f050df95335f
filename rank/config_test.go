package rank_test

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// writePEFT writes a directory of PEFT with layers of the given ranks, and opens it.
func writePEFT(t *testing.T, config string, ranks map[string]uint64, others ...testkit.Tensor) format.Source {
	t.Helper()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(81, 82))
	for module, r := range ranks {
		others = append(others, testkit.Random(rng, "base_model.model.model.layers."+module+".lora_A.weight", dtype.F32, 1, r, 12),
			testkit.Random(rng, "base_model.model.model.layers."+module+".lora_B.weight", dtype.F32, 1, 12, r))
	}
	testkit.Write(t, filepath.Join(dir, "adapter_model.safetensors"), testkit.Encode(nil, others...))
	testkit.Write(t, filepath.Join(dir, "adapter_config.json"), []byte(config))
	src, err := convert.Open(t.Context(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// writtenConfig stores an adapter as a directory of PEFT, once directly and once through a .lora
// file, and returns the fields of its configuration and the adapter that the directory holds.
func writtenConfig(t *testing.T, src format.Source) (fields map[string]any, back format.Source) {
	t.Helper()
	dir := t.TempDir()
	store := func(d convert.Dialect, src format.Source, name string) string {
		path := filepath.Join(dir, name)
		sink, err := convert.Create(path, d, convert.CreateOptions{})
		if err == nil {
			err = format.Copy(t.Context(), sink, src)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	open := func(path string) format.Source {
		src, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		return src
	}
	direct := store(convert.PEFT(), src, "direct")
	through := store(convert.PEFT(), open(store(convert.LoRA(), src, "a.lora")), "through")
	var texts [2][]byte
	for i, path := range []string{direct, through} {
		var err error
		if texts[i], err = os.ReadFile(filepath.Join(path, format.PEFTConfig)); err != nil {
			t.Fatal(err)
		}
	}
	if string(texts[0]) != string(texts[1]) {
		t.Errorf("through a container the configuration becomes\n%s\nwant\n%s", texts[1], texts[0])
	}
	if err := json.Unmarshal(texts[0], &fields); err != nil {
		t.Fatal(err)
	}
	return fields, open(direct)
}

const fullConfig = `{
  "auto_mapping": {"base_model_class": "Own", "parent_library": "own"},
  "base_model_name_or_path": "org/base",
  "bias": "none",
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": "gaussian",
  "layers_pattern": "layers",
  "layers_to_transform": [0, 1],
  "lora_alpha": 8,
  "lora_dropout": 0.05,
  "modules_to_save": ["lm_head"],
  "peft_type": "LORA",
  "peft_version": "0.15.2",
  "r": 4,
  "rank_pattern": {"v_proj": 2},
  "revision": "main",
  "target_modules": ["v_proj", "q_proj"],
  "task_type": "CAUSAL_LM",
  "use_rslora": false
}`

var fullRanks = map[string]uint64{"0.self_attn.q_proj": 4, "1.self_attn.q_proj": 4, "0.self_attn.v_proj": 2}

func savedHead() testkit.Tensor {
	return testkit.Values("base_model.model.lm_head.weight", dtype.F32, []uint64{1, 2}, 1, 2)
}

// checkFields compares some fields of a configuration.
func checkFields(t *testing.T, what string, fields map[string]any, want string) {
	t.Helper()
	var wanted map[string]any
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		t.Fatal(err)
	}
	for name, value := range wanted {
		if got := fields[name]; !reflect.DeepEqual(got, value) {
			t.Errorf("%s: %s is %v, want %v", what, name, got, value)
		}
	}
}

const keptFields = `{"auto_mapping": {"base_model_class": "Own", "parent_library": "own"}, "base_model_name_or_path": "org/base", "revision": "main",
	"init_lora_weights": "gaussian", "inference_mode": true, "lora_dropout": 0.05, "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM",
	"target_modules": ["v_proj", "q_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"}`

// TestResizeKeepsTheConfiguration: what still holds stays, and ranks and alphas are those of the
// new layers, each with its scale.
func TestResizeKeepsTheConfiguration(t *testing.T) {
	src := writePEFT(t, fullConfig, fullRanks, savedHead())
	made, _, err := rank.Resize(t.Context(), src, rank.CombineOptions{Rule: rank.FixedRank{K: 3}})
	if err != nil {
		t.Fatal(err)
	}
	made, err = convert.WithConfig(made, src)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	fields, back := writtenConfig(t, made)
	checkFields(t, "resized", fields, keptFields)
	checkFields(t, "resized", fields, `{"r": 3, "lora_alpha": 6, "rank_pattern": {"^model.layers.0.self_attn.v_proj": 2}, "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 8},
		"peft_version": null}`)
	if r, err := rank.Compare(t.Context(), made, back, rank.CompareOptions{}); err != nil || !r.Same() {
		t.Errorf("read back: %+v, %v", r, err)
	}
}

// TestRoundingKeepsTheConfiguration: with the same ranks and scales, all fields stay.
func TestRoundingKeepsTheConfiguration(t *testing.T) {
	src := writePEFT(t, fullConfig, fullRanks, savedHead())
	made, _, err := rank.Combine(t.Context(), []format.Source{src}, rank.CombineOptions{DType: dtype.BF16})
	if err != nil {
		t.Fatal(err)
	}
	made, err = convert.WithConfig(made, src)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	fields, _ := writtenConfig(t, made)
	checkFields(t, "rounded", fields, fullConfig)
	var all map[string]any
	if err := json.Unmarshal([]byte(fullConfig), &all); err != nil || len(fields) != len(all) {
		t.Errorf("%d fields, want %d: %v", len(fields), len(all), fields)
	}
}

// TestSumsKeepWhatTheirConfigurationsAgreeOn: fields that differ are left out, and targets are
// listed where the adapters have others.
func TestSumsKeepWhatTheirConfigurationsAgreeOn(t *testing.T) {
	a := writePEFT(t, `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM", "lora_dropout": 0.1, "base_model_name_or_path": "org/base", "layers_to_transform": null,
		"target_modules": ["q_proj"], "use_rslora": true}`, map[string]uint64{"0.q_proj": 2, "1.q_proj": 2})
	b := writePEFT(t, `{"peft_type": "LORA", "r": 3, "lora_alpha": 3, "task_type": "CAUSAL_LM", "lora_dropout": 0.2, "base_model_name_or_path": "org/base", "layers_to_transform": [0],
		"target_modules": ["q_proj", "v_proj"]}`, map[string]uint64{"0.q_proj": 3, "0.v_proj": 3})
	made, _, err := rank.Combine(t.Context(), []format.Source{a, b}, rank.CombineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made, err = convert.WithConfig(made, a, b)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	fields, back := writtenConfig(t, made)
	checkFields(t, "sum", fields, `{"task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base", "lora_dropout": null, "layers_to_transform": null,
		"target_modules": ["model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.0.v_proj"]}`)
	if r, err := rank.Compare(t.Context(), made, back, rank.CompareOptions{}); err != nil || !r.Same() {
		t.Errorf("read back: %+v, %v", r, err)
	}
}
