package convert_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestProgramsWithAnotherOrderOfExpertsAreNoted opens adapters of stacked experts with the
// configurations of several programs, whose shapes are the same.
func TestProgramsWithAnotherOrderOfExpertsAreNoted(t *testing.T) {
	const fields = `"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":[]`
	const experts = fields + `,"target_parameters":["mlp.experts.down_proj"]`
	for name, x := range map[string]struct{ config, want string }{
		"PEFT 0.17":       {experts + `,"auto_mapping":null,"exclude_modules":null`, ""},
		"PEFT 0.19":       {experts + `,"auto_mapping":null,"exclude_modules":null,"peft_version":"0.19.1"`, ""},
		"a converter":     {experts + `,"peft_version":"0.19.1"`, ""},
		"unsloth":         {experts + `,"auto_mapping":{"parent_library":"x","unsloth_fixed":true},"exclude_modules":null,"peft_version":"0.18.0"`, "unsloth"},
		"Megatron-Bridge": {experts + `,"auto_mapping":null,"use_dora":false,"use_rslora":false`, "Megatron-Bridge"},
		"no experts":      {fields + `,"auto_mapping":{"unsloth_fixed":true}`, ""},
	} {
		dir := t.TempDir()
		prefix := "base_model.model.model.layers.0.mlp.experts."
		if !strings.Contains(x.config, "experts") {
			prefix = "base_model.model.model.layers.0.mlp.down_proj."
		}
		testkit.Write(t, filepath.Join(dir, "adapter_config.json"), []byte("{"+x.config+"}"))
		testkit.Write(t, filepath.Join(dir, "adapter_model.safetensors"), testkit.Encode(nil,
			testkit.Values(prefix+"lora_A.weight", dtype.F32, []uint64{1, 2}, 1, 2),
			testkit.Values(prefix+"lora_B.weight", dtype.F32, []uint64{2, 1}, 1, 2)))
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer src.Close()
		notes := strings.Join(src.Manifest().Notes, "\n")
		if got := strings.Contains(notes, "Options.ExpertsSlowest"); got != (x.want != "") || !strings.Contains(notes, x.want) {
			t.Errorf("%s: the notes are %q, want %q among them", name, notes, x.want)
		}
	}
}
