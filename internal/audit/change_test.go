package audit_test

import (
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/audit"
)

// TestChangesWithoutAnAdapterAreDescribed: a merge of an adapter of rank r has the rank r, two
// adapters have several ranks, noise on all weights has none, and a cast changes nothing.
func TestChangesWithoutAnAdapterAreDescribed(t *testing.T) {
	const base = "audit/bases/llama-bf16-wide"
	merged := func(adapters ...string) *model {
		g := given{Base: base, Adapters: adapters}
		return g.exact(t, nil)
	}
	noisy := func() *model {
		m := (&given{Base: base}).base(t)
		m.each(t, []string{"*_proj.weight", "lm_head.weight", "model.embed_tokens.weight"}, func(name string) { m.noise(name, 0.1, 0) })
		return m
	}
	nan := func() *model {
		m := merged("audit/adapters/few")
		m.set(t, "model.layers.0.self_attn.q_proj.weight", 7, "NaN")
		return m
	}
	fp8 := func() *model {
		m := (&given{Base: base}).base(t)
		for _, name := range slices.Sorted(maps.Keys(m.tensors)) {
			m.replace(t, name, "F8_E4M3", nil)
		}
		return m
	}
	cast := func() *model {
		m := (&given{Base: base}).base(t)
		for _, name := range slices.Sorted(maps.Keys(m.tensors)) {
			m.cast(t, name, "F32")
		}
		return m
	}
	for _, x := range []struct {
		name   string
		model  *model
		kind   audit.Kind
		rank   int
		layers int
	}{
		{"rank 8", merged("audit/adapters/plain"), audit.OneAdapter, 8, 14},
		{"rank 4", merged("audit/adapters/few"), audit.OneAdapter, 4, 4},
		{"two adapters", merged("audit/adapters/plain", "audit/adapters/few"), audit.LowRank, 0, 14},
		{"noise", noisy(), audit.FineTune, 0, 16},
		{"NaN in one", nan(), audit.OneAdapter, 4, 3},
		{"FP8", fp8(), audit.FineTune, 0, 0},
		{"cast", cast(), audit.NoChange, 0, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			r, src, err := audit.Change(t.Context(), modelAt(t, filepath.Join(testdata, base)), modelAt(t, x.model.write(t)), audit.ChangeOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if src != nil {
				t.Error("a source without a path")
			}
			if r.Kind != x.kind || r.Rank != x.rank || len(r.Layers) != x.layers {
				t.Errorf("%s, rank %d, %d layers (%s), want %s, %d, %d", r.Kind, r.Rank, len(r.Layers), r.Text, x.kind, x.rank, x.layers)
			}
		})
	}
}

// TestHostileCheckpointsAreJudged audits strange checkpoints: nothing panics, and the right tensor
// is flagged.
func TestHostileCheckpointsAreJudged(t *testing.T) {
	const base = "audit/bases/llama-bf16-wide"
	changed, other := "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
	few := given{Base: base, Adapters: []string{"audit/adapters/few"}}
	for _, x := range []struct {
		name, tensor, dtype string
		shape               []uint64
		finding             audit.Finding
	}{
		{"integers", changed, "I32", nil, audit.Foreign},
		{"bytes", changed, "U8", nil, audit.Foreign},
		{"booleans", other, "BOOL", nil, audit.Foreign},
		{"FP8", changed, "F8_E4M3", nil, ""},
		{"FP8 of a norm", other, "F8_E5M2", nil, ""},
		{"four bits", changed, "F4", nil, ""},
		{"four bits of a norm", other, "F4", nil, ""},
		{"no elements", changed, "BF16", []uint64{0, 64}, audit.Reshaped},
		{"no dimensions", changed, "BF16", []uint64{}, audit.Reshaped},
		{"one dimension", changed, "BF16", []uint64{4096}, audit.Reshaped},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := few.exact(t, nil)
			m.replace(t, x.tensor, x.dtype, x.shape)
			r := audited(t, few.claim(m.write(t)))
			if r.Verdict != audit.NotAsClaimed {
				t.Errorf("verdict %s", r.Verdict)
			}
			for i := range r.Tensors {
				switch y := &r.Tensors[i]; {
				case y.Tensor != x.tensor && y.Verdict != audit.AsClaimed:
					t.Errorf("%s: %s", y.Tensor, y.Explain())
				case y.Tensor == x.tensor && (y.Verdict != audit.NotAsClaimed || x.finding != "" && y.Finding != x.finding):
					t.Errorf("%s: %s (%s: %s), want %s", y.Tensor, y.Verdict, y.Finding, y.Explain(), x.finding)
				}
			}
			if _, _, err := audit.Change(t.Context(), modelAt(t, filepath.Join(testdata, base)), modelAt(t, m.write(t)), audit.ChangeOptions{}); err != nil {
				t.Errorf("Change: %v", err)
			}
		})
	}
}
