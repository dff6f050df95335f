package convert_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestStrayTensorsAreNoReplacements: a tensor replaces one of the base only if the configuration or
// PEFT's rule for embeddings says so, and only with the same prefix as the other keys.
func TestStrayTensorsAreNoReplacements(t *testing.T) {
	const prefix = "base_model.model."
	for _, c := range []struct {
		key, config string
		isStray     bool
	}{
		{prefix + "model.norm.weight", ``, true},
		{prefix + "model.norm.weight", `,"modules_to_save":["norm"]`, false},
		{"model.norm.weight", `,"modules_to_save":["norm"]`, true},
		// Biases that PEFT 0.21.2 loads whatever the field bias says, and biases that releases
		// before 0.7 wrote.
		{prefix + "model.norm.bias", ``, false},
		{prefix + "model.norm.bias", `,"bias":"lora_only"`, false},
		{prefix + "model.norm.bias", `,"bias":"all"`, false},
		{prefix + "q.base_layer.bias", ``, false},
		{prefix + "q.base_layer.bias", `,"bias":"lora_only"`, false},
		{prefix + "q.bias", ``, true},
		{prefix + "q.bias", `,"bias":"none"`, true},
		{prefix + "q.bias", `,"bias":"all"`, false},
		{prefix + "q.bias", `,"bias":"lora_only"`, false},
		{prefix + "q.bias", `,"modules_to_save":["q"]`, false},
		{prefix + "o.bias", ``, false},
		{prefix + "o.base_layer.bias", ``, true}, // o has no factors, so PEFT has no such parameter
		{prefix + "o.base_layer.bias", `,"bias":"all"`, true},
		{prefix + "o.base_layer.weight", `,"modules_to_save":["o"]`, true},
		{prefix + "lm_head.bias", ``, false},
		{prefix + "model.embed_tokens.weight", ``, false},
		{"model.embed_tokens.weight", ``, true},
		{prefix + "lm_head.weight", ``, false},
		{prefix + "classifier.out_proj.weight", `,"task_type":"SEQ_CLS"`, false},
		{prefix + "classifier.out_proj.weight", `,"task_type":"CAUSAL_LM"`, true},
		{prefix + "score.modules_to_save.default.weight", ``, false},
		{prefix + "q.base_layer.weight", ``, true},
	} {
		dir := filepath.Join(t.TempDir(), "adapter")
		testkit.WriteAdapter(t, dir, 1, 1,
			testkit.Values(prefix+"q.lora_A.weight", dtype.F32, []uint64{1, 2}, 1, 1),
			testkit.Values(prefix+"q.lora_B.weight", dtype.F32, []uint64{2, 1}, 1, 1),
			testkit.Values(c.key, dtype.F32, []uint64{1, 2}, 1, 1))
		testkit.Write(t, filepath.Join(dir, "adapter_config.json"), []byte(`{"peft_type":"LORA","r":1,"lora_alpha":1`+c.config+`}`))
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		a := &src.Manifest().Adapters[0]
		isStray := len(a.Requires) == 1 && a.Requires[0].Feature == format.FeatureStrayTensor && strings.HasPrefix(a.Requires[0].Where, c.key)
		isTold := strings.Contains(c.config, `bias":"`) || strings.Contains(c.config, "modules_to_save")
		if strings.HasSuffix(c.key, ".bias") && !isTold && !isStray {
			name := strings.ReplaceAll(strings.TrimPrefix(c.key, prefix), ".base_layer", "")
			notes := strings.Join(src.Manifest().Notes, "\n")
			if !strings.Contains(notes, name) || !strings.Contains(notes, "PEFT loads") {
				t.Errorf("%q with {%s}: notes %q, want one that names it", c.key, c.config, notes)
			}
		}
		if isStray != c.isStray || !isStray && (len(a.Requires) > 0 || a.Beside[0].Action != format.Replace) {
			t.Errorf("%q with {%s}: requires %v, beside %v, want stray %v", c.key, c.config, a.Requires, a.Beside, c.isStray)
		}
		src.Close()
	}
}

// TestAWholeCheckpointIsNoAdapter: the tensors of a model beside an adapter_config.json do not
// become replacements, with any prefix, with or without factors.
func TestAWholeCheckpointIsNoAdapter(t *testing.T) {
	const prefix = "base_model.model."
	model := []string{
		"model.embed_tokens.weight", "model.layers.0.q.weight", "model.layers.0.q.bias",
		"model.norm.weight", "lm_head.weight",
	}
	const factors, norm, weight = "model.layers.0.q.lora_", "model.norm.weight", "model.layers.0.q.weight"
	for _, c := range []struct{ model, factors string }{
		{"", "none"}, {prefix, "none"}, {"", prefix}, {prefix, prefix}, {"", ""}, {prefix, ""},
	} {
		dir := filepath.Join(t.TempDir(), "adapter")
		var tensors []testkit.Tensor
		for _, name := range model {
			tensors = append(tensors, testkit.Values(c.model+name, dtype.F32, []uint64{1, 2}, 1, 1))
		}
		if c.factors != "none" {
			tensors = append(tensors,
				testkit.Values(c.factors+factors+"A.weight", dtype.F32, []uint64{1, 2}, 1, 1),
				testkit.Values(c.factors+factors+"B.weight", dtype.F32, []uint64{1, 1}, 1))
		}
		testkit.WriteAdapter(t, dir, 1, 1, tensors...)
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		stray := make(map[string]bool)
		for _, q := range src.Manifest().Adapters[0].Requires {
			name, _, _ := strings.Cut(q.Where, " ")
			stray[name] = q.Feature == format.FeatureStrayTensor
		}
		for _, name := range []string{norm, weight} {
			if !stray[c.model+name] {
				t.Errorf("model under %q, factors under %q: %q is no stray tensor: %v", c.model, c.factors, name, stray)
			}
		}
		src.Close()
	}
}
