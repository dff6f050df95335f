package safetensors_test

import (
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/safetensors"
)

// TestFoldersWithoutWeightsAreExplained: the names of its files tell the kind of a directory.
func TestFoldersWithoutWeightsAreExplained(t *testing.T) {
	for _, c := range []struct {
		names []string
		words string // "" where the names do not tell
	}{
		{nil, "empty"},
		{[]string{"README.md"}, ""},
		{[]string{"config.json", "model.safetensors.part"}, "has not ended"},
		{[]string{"adapter_config.json", "adapter_model.safetensors.incomplete"}, "has not ended"},
		{[]string{"adapter_config.json"}, "without its weights"},
		{[]string{"llama-Q4_K_M.GGUF"}, "is GGUF"},
		{[]string{"flax_model.msgpack"}, "another framework"},
		{[]string{"model_world_size_2_rank_0.pt", "optim_world_size_2_rank_0.pt"}, "verl.model_merger"},
		{[]string{"__0_0.distcp", ".metadata"}, "accelerate merge-weights"},
		{[]string{"global_step7/mp_rank_00_model_states.pt", "latest"}, "zero_to_fp32.py"},
		{[]string{"adapter_config.json", "global_step10", "latest"}, "global_step10 is of the shards of a training run"},
		{[]string{"adapter_config.json", "zero_to_fp32.py"}, "zero_to_fp32.py for DeepSpeed"},
		{[]string{"adapter.zip"}, "unpack adapter.zip"},
		{[]string{"adapter_config.json", "optimizer.pt"}, "state of a training run"},
		{[]string{"a.pt", "b.pt"}, "such as a.pt"},
	} {
		hint := safetensors.HintForFolder(c.names)
		if (hint == "") != (c.words == "") || !strings.Contains(hint, c.words) {
			t.Errorf("HintForFolder(%q) = %q, want the words %q", c.names, hint, c.words)
		}
	}
}
