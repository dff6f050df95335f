package convert_test

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestCopiesThatPEFTDoesNotLoad: with save_embedding_layers, which new tokens turn on, PEFT 0.21.2
// writes three tensors for a head of modules_to_save. The one under the head's own name counts.
// Without it, the others have no known meaning.
func TestCopiesThatPEFTDoesNotLoad(t *testing.T) {
	rng := rand.New(rand.NewPCG(91, 92))
	const prefix = "base_model.model."
	tensor := func(key string, shape ...uint64) testkit.Tensor {
		return testkit.Random(rng, prefix+key, dtype.F32, 0.1, shape...)
	}
	factors := []testkit.Tensor{tensor("layers.0.q_proj.lora_A.weight", 2, 4), tensor("layers.0.q_proj.lora_B.weight", 4, 2)}
	copies := []testkit.Tensor{tensor("lm_head.modules_to_save.weight", 5, 4), tensor("lm_head.original_module.weight", 5, 4)}
	const config = `{"peft_type":"LORA","r":2,"lora_alpha":2,"target_modules":["q_proj"],"modules_to_save":["lm_head"]}`
	for _, hasHead := range []bool{true, false} {
		all := append(append([]testkit.Tensor{}, factors...), copies...)
		if hasHead {
			all = append(all, tensor("lm_head.weight", 5, 4))
		}
		dir := filepath.Join(t.TempDir(), "adapter")
		testkit.WriteAdapter(t, dir, 2, 2, all...)
		testkit.Write(t, filepath.Join(dir, "adapter_config.json"), []byte(config))
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		a := &src.Manifest().Adapters[0]
		unloaded, unknown, replaced := 0, 0, 0
		for _, q := range a.Requires {
			switch q.Feature {
			case format.FeatureUnloaded:
				unloaded++
			case format.FeatureUnknownTensor, format.FeatureStrayTensor:
				unknown++
			}
		}
		for _, b := range a.Beside {
			if b.Action == format.Replace && b.Target == "lm_head.weight" {
				replaced++
			}
		}
		if hasHead && (unloaded != 2 || unknown != 0 || replaced != 1) || !hasHead && (unloaded != 0 || unknown == 0) {
			t.Errorf("with the head's own key %v: %d copies, %d without a meaning, %d replaced; requires %+v", hasHead, unloaded, unknown, replaced, a.Requires)
		}
	}
}
