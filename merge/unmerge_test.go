package merge_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestApproximateTakesOutTheLatestMergeAlone: subtracting an earlier merge would count the effect
// of the later one as its own.
func TestApproximateTakesOutTheLatestMergeAlone(t *testing.T) {
	s := writeStack(t)
	approximate := func(merged string, adapters ...merge.Adapter) (*merge.Plan, error) {
		return merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(adapters), Approximate: true}, merge.Options{})
	}
	both, _ := mergeRecorded(t, s.base, s.adapters[0], s.adapters[1])
	p, err := merge.Open(context.Background(), s.base, []merge.Adapter{s.adapters[0], s.adapters[0]}, merge.Options{Again: true})
	doubled := run(t, p, err)
	for _, c := range []struct {
		name     string
		merged   string
		adapters []merge.Adapter
		words    string
	}{
		{"an earlier merge", s.merged[2], s.adapters[:1], `"z" was merged into`},
		{"two merges", s.merged[1], s.adapters[:2], `added "y"`},
		{"half of a merge", both, s.adapters[:1], `added "x", "y"`},
		{"a merge of one adapter twice, with another in the second's place", doubled, []merge.Adapter{s.adapters[0], s.adapters[2]}, `added "x", "x"`},
		{"another adapter", s.merged[1], s.adapters[2:], `stamps do not list`},
	} {
		p, err := approximate(c.merged, c.adapters...)
		if err == nil {
			p.Close()
		}
		if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want a mismatch with %q", c.name, err, c.words)
		}
	}
	p, err = approximate(s.base, s.adapters[0])
	if err != nil || !slices.ContainsFunc(p.Warnings(), func(w string) bool { return strings.Contains(w, "has no stamp for") }) {
		t.Errorf("a checkpoint without stamps: %v, want a warning", err)
	}
	p.Close()

	// Of an adapter merged twice, one comes out and its first stamp stays.
	p, err = merge.Open(context.Background(), s.merged[0], s.adapters[:1], merge.Options{Again: true})
	twice := run(t, p, err)
	p, err = approximate(twice, s.adapters[0])
	out := run(t, p, err)
	if h := history(t, out); len(h) != 1 || h[0].Key != "loratool.merge.1" {
		t.Errorf("after one of two merges was taken out: the history is %v", h)
	}
}

// history returns the stamps of a checkpoint.
func history(t *testing.T, path string) []checkpoint.Merged {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.History()
}

// TestHistoryHasGaps: stamps after a missing number count, and the next merge continues after them.
func TestHistoryHasGaps(t *testing.T) {
	s := writeStack(t)
	dir := t.TempDir()
	base := filepath.Join(dir, "base.safetensors")
	stamp := `{"tool":"t","adapters":[{"name":"a","content":"` + strings.Repeat("0", 64) + `","weight":1}]}`
	rng := rand.New(rand.NewPCG(1, 2))
	testkit.Write(t, base, testkit.Encode(map[string]string{"loratool.merge.2": stamp, "loratool.merge.03": "x", "loratool.merge.-1": "x"},
		testkit.Random(rng, "q.weight", dtype.BF16, 0.02, 70, 60)))
	if h := history(t, base); len(h) != 1 || h[0].Key != "loratool.merge.2" {
		t.Errorf("History = %v, want the stamp 2", h)
	}
	out, _ := mergeRecorded(t, base, s.adapters[0])
	if h := history(t, out); len(h) != 2 || h[1].Key != "loratool.merge.3" {
		t.Errorf("History after another merge = %v, want 2 and 3", h)
	}
}

// TestSwapDoesNotCompareWhatItTakesOut: the merged values do not count against an adapter that
// remembers the base.
func TestSwapDoesNotCompareWhatItTakesOut(t *testing.T) {
	s := writeStack(t)
	p, err := merge.Open(context.Background(), s.base, s.adapters[2:], merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	base, err := p.BaseOf(context.Background(), 0)
	if err != nil || len(base.Fingerprints) == 0 {
		t.Fatalf("BaseOf = %v, %v", base, err)
	}
	z := s.adapters[2]
	z.Source = convert.WithBase(z.Source, base)
	remove := merge.Removal{Adapters: anyWeight(s.adapters[:1]), Records: []*merge.Record{record(t, "x", s.records[0])}}
	p, err = merge.OpenSwap(context.Background(), s.merged[0], remove, []merge.Adapter{z}, merge.Options{})
	got := run(t, p, err)
	if !slices.ContainsFunc(p.Warnings(), func(w string) bool {
		return strings.Contains(w, "cannot check that the adapter was made for this base")
	}) {
		t.Errorf("the warnings are %q, want one about the base", p.Warnings())
	}
	want, _ := mergeRecorded(t, s.base, s.adapters[2])
	if !maps.Equal(tree(t, got), tree(t, want)) {
		t.Error("differs from merging into the base")
	}
}

// TestStackedExpertsAndAWholeReplacementComeOff: one merge sees a stack of matrices, the other a
// single block of values.
func TestStackedExpertsAndAWholeReplacementComeOff(t *testing.T) {
	rng := rand.New(rand.NewPCG(19, 20))
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	const e, d1, d2, r = 3, 40, 24, 2
	testkit.Write(t, filepath.Join(base, "model.safetensors"), testkit.Encode(nil, testkit.Random(rng, "mlp.experts.down_proj", dtype.BF16, 0.02, e, d1, d2)))
	open := func(name, config string, tensors ...testkit.Tensor) merge.Adapter {
		path := filepath.Join(dir, name)
		testkit.WriteAdapter(t, path, r, r, tensors...)
		testkit.Write(t, filepath.Join(path, "adapter_config.json"), []byte(config))
		src, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		return merge.Adapter{Source: src, Name: name, Weight: 1}
	}
	lora := open("lora", `{"peft_type":"LORA","peft_version":"0.21.2","r":2,"lora_alpha":2,"target_parameters":["mlp.experts.down_proj"]}`,
		testkit.Random(rng, "base_model.model.mlp.experts.lora_A.weight", dtype.F32, 1, e*r, d2),
		testkit.Random(rng, "base_model.model.mlp.experts.lora_B.weight", dtype.F32, 0.003, d1, e*r))
	saved := open("saved", `{"peft_type":"LORA","peft_version":"0.21.2","r":2,"lora_alpha":2,"target_modules":[],"modules_to_save":["experts"]}`,
		testkit.Random(rng, "base_model.model.mlp.experts.down_proj", dtype.BF16, 0.02, e, d1, d2))
	for name, order := range map[string][]merge.Adapter{"the update first": {lora, saved}, "the replacement first": {saved, lora}} {
		one, first := mergeRecorded(t, base, order[0])
		two, second := mergeRecorded(t, one, order[1])
		records := []*merge.Record{record(t, "1", first), record(t, "2", second)}
		p, err := merge.OpenUnmerge(context.Background(), two, merge.Removal{Adapters: anyWeight(order), Records: records}, merge.Options{})
		if got := run(t, p, err); !maps.Equal(tree(t, got), tree(t, base)) {
			t.Errorf("%s: not the base", name)
		}
		p, err = merge.OpenSwap(context.Background(), one, merge.Removal{Adapters: anyWeight(order[:1]), Records: records[:1]}, order[1:], merge.Options{})
		want, _ := mergeRecorded(t, base, order[1])
		if got := run(t, p, err); !maps.Equal(tree(t, got), tree(t, want)) {
			t.Errorf("%s: a swap is not the other merge", name)
		}
	}
}
