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

// TestStrayTensorsAreNoReplacements: a tensor of the base stands in for the base's only where the configuration of PEFT, or PEFT's rule
// for embeddings, says so, and only under the prefix that the other keys have.
func TestStrayTensorsAreNoReplacements(t *testing.T) {
	const prefix = "base_model.model."
	for _, c := range []struct {
		key, config string
		isStray     bool
	}{
		{prefix + "model.norm.weight", ``, true},
		{prefix + "model.norm.weight", `,"modules_to_save":["norm"]`, false},
		{"model.norm.weight", `,"modules_to_save":["norm"]`, true},
		{prefix + "model.norm.bias", `,"bias":"all"`, false},
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
		src, err := convert.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		a := &src.Manifest().Adapters[0]
		isStray := len(a.Requires) == 1 && a.Requires[0].Feature == format.FeatureStrayTensor && strings.HasPrefix(a.Requires[0].Where, c.key)
		if isStray != c.isStray || !isStray && (len(a.Requires) > 0 || a.Beside[0].Action != format.Replace) {
			t.Errorf("%q with {%s}: requires %v, beside %v, want stray %v", c.key, c.config, a.Requires, a.Beside, c.isStray)
		}
		src.Close()
	}
}
