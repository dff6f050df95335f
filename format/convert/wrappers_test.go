package convert_test

import (
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/testkit"
)

// TestSegmentsOfFrameworksAreLeftOut: the names lack them, and a note says so.
func TestSegmentsOfFrameworksAreLeftOut(t *testing.T) {
	for segment, prefix := range map[string]string{
		"_orig_mod": "base_model.model._orig_mod.", "_fsdp_wrapped_module": "_fsdp_wrapped_module.base_model.model.",
		"_checkpoint_wrapped_module": "base_model.model._checkpoint_wrapped_module.",
	} {
		dir := t.TempDir()
		testkit.WriteAdapter(t, dir, 2, 2, ones(prefix+"layers.0.q.lora_A.weight", prefix+"layers.0.q.lora_B.weight")...)
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		if got := strings.Join(names(src), " "); got != "layers.0.q" {
			t.Errorf("%s: the modules are %s", prefix, got)
		}
		if notes := strings.Join(src.Manifest().Notes, "\n"); !strings.Contains(notes, segment+", which are left out of the names") {
			t.Errorf("%s: the notes are %q", prefix, notes)
		}
	}
}
