package report

import (
	"testing"

	"github.com/loratool/loratool/internal/checkpoint"
)

// TestParametersByRole: the counts follow from the sizes in config.json. BERT ties a head
// that this model, a classifier, does not have.
func TestParametersByRole(t *testing.T) {
	const h, inner, vocabulary = 32, 48, 48
	for base, c := range map[string]struct {
		counts map[string]int64
		tied   string
	}{
		"llama-f32": {map[string]int64{
			"embeddings": vocabulary * h, "attention": 2*h*h + 2*h*16, "mlp": 3 * h * inner,
			"norms": 3 * h, "head": vocabulary * h,
		}, ""},
		"bert": {map[string]int64{
			"embeddings": (vocabulary + 32 + 2) * h, "attention": 4 * (h*h + h),
			"mlp": 2*h*inner + inner + h, "norms": 3 * 2 * h, "other": h*h + h + 3*(h+1),
		}, ""},
		"gpt2": {map[string]int64{
			"embeddings": (vocabulary + 16) * h, "attention": h*3*h + 3*h + h*h + h,
			"mlp": 2*h*inner + inner + h, "norms": 3 * 2 * h,
		}, "transformer.wte.weight"},
	} {
		file, err := checkpoint.Open(t.Context(), "../../testdata/peft/bases/"+base)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		r, err := DescribeCheckpoint(file, CheckpointOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Roles) != len(c.counts) || r.Tied != c.tied {
			t.Errorf("%s: got %v, tied %q, want %v, %q", base, r.Roles, r.Tied, c.counts, c.tied)
		}
		for _, role := range r.Roles {
			if role.Parameters != c.counts[role.Role] {
				t.Errorf("%s: %s has %d parameters, want %d", base, role.Role, role.Parameters, c.counts[role.Role])
			}
		}
		if len(r.Shards) != 1 || r.Shards[0].Tensors != r.Tensors || r.Shards[0].Bytes != r.Bytes {
			t.Errorf("%s: got the shards %v", base, r.Shards)
		}
	}
}
