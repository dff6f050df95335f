package convert

import (
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
)

// TestNamesOfACheckpointAreLostByPEFT: PEFT 0.21 with transformers 5.24 loads such an adapter
// without an error and leaves the layer out.
func TestNamesOfACheckpointAreLostByPEFT(t *testing.T) {
	for _, c := range []struct{ dialect, module, models string }{
		{"", "embed_out", "GPT-NeoX"},
		{"", "encoder.layer.0.attention.attention.query", "ViT"},
		{"", "model.layers.0.self_attn.q_proj", ""},
		{"peft", "embed_out", ""}, // PEFT wrote it, beside the version that it knows
	} {
		src := &zeros{format.Manifest{Adapters: []format.Adapter{{
			Dialect: c.dialect, Layers: []format.Layer{{Module: c.module}},
		}}}}
		module, models := LostByPEFT(src)
		if (module == "") != (c.models == "") || !strings.Contains(models, c.models) {
			t.Errorf("LostByPEFT(%s of dialect %q) = %q, %q, want the models %q",
				c.module, c.dialect, module, models, c.models)
		}
	}
}
