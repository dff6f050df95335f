package naming_test

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/naming"
)

// TestPrefixesInOddPlaces: one translation is found for names with the prefix of PEFT or of
// DistributedDataParallel behind that of the wrapped part, or twice, and for bases with a segment
// more or less before the layers.
func TestPrefixesInOddPlaces(t *testing.T) {
	const q, k = "layers.0.self_attn.q_proj.weight", "layers.1.self_attn.k_proj.weight"
	for _, c := range []struct{ adapter, base string }{
		{"thinker.base_model.model.model.", "thinker.model."},
		{"thinker.base_model.model.model.", "model."},
		{"module.thinker.base_model.model.model.", "thinker.model."},
		{"module.base_model.model.model.", "model."},
		{"module.module.model.", "model."},
		{"base_model.model.base_model.model.model.", "model."},
		{"base_model.model.module.model.", "model."},
		{"model.module.", "model."},
		{"model.", "model.text_model."},
		{"model.text_model.", "model."},
		{"model.language_model.", "model.backbone.language_model."},
		{"backbone.", "transformer.backbone."},
		{"transformer.", "model.language_model.transformer."},
		{"base_model.model.text_model.", "model.text_model."},
	} {
		base := naming.Index([]string{c.base + q, c.base + k, "model.vision_tower." + q, "lm_head.weight"})
		wanted := []string{c.adapter + q, c.adapter + k}
		m, missing, ambiguous := base.Match(wanted)
		if missing != nil || ambiguous != nil {
			t.Errorf("%s in %s: missing %q, ambiguous %q", c.adapter, c.base, missing, ambiguous)
			continue
		}
		var got []string
		for _, name := range wanted {
			actual, _ := m.Lookup(name)
			got = append(got, actual)
		}
		if !slices.Equal(got, []string{c.base + q, c.base + k}) {
			t.Errorf("%s in %s: %q", c.adapter, c.base, got)
		}
	}
}
