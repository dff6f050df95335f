package merge_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// TestResidualsAreNotGuessed: an adapter whose residual is unknown is refused even with
// RecomputeResidual.
func TestResidualsAreNotGuessed(t *testing.T) {
	for _, c := range []struct {
		base     string
		adapters []string
		word     string
	}{
		{"gpt2", []string{"refuse/olora-conv1d/adapter"}, "transposed"},
		{"llama-f32", []string{"merge/pissa/adapter", "merge/pissa-weight/adapter"}, "two adapters"},
		{"llama-f32", []string{"refuse/pissa-niter/adapter"}, "pissa_niter"},
		{"llama-f32", []string{"refuse/corda/adapter"}, "corda"},
	} {
		var adapters []merge.Adapter
		for _, name := range c.adapters {
			src, err := convert.Open(t.Context(), filepath.Join(fixtures, name), convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { src.Close() })
			adapters = append(adapters, merge.Adapter{Source: src, Name: name, Weight: 1})
		}
		_, err := merge.Open(context.Background(), filepath.Join(fixtures, "bases", c.base), adapters, merge.Options{Reading: merge.Reading{RecomputeResidual: true}})
		if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("merging %q: %v, want a refusal with the word %q", c.adapters, err, c.word)
		}
	}
}

// TestResidualIsTheSameEverywhere: the search for singular vectors has a fixed start and ignores
// blocks.
func TestResidualIsTheSameEverywhere(t *testing.T) {
	dir := filepath.Join(fixtures, "merge", "pissa-bf16")
	var first map[string]string
	for _, o := range []merge.Options{{}, {Workers: 1, BlockBytes: 1}, {Workers: 3, BlockBytes: 700}} {
		p, err := readFixture(t, dir).open(t, dir, o)
		got := tree(t, run(t, p, err))
		if first == nil {
			first = got
		}
		for name, sum := range got {
			if first[name] != sum {
				t.Errorf("%s has other bytes with %d workers and blocks of %d bytes", name, o.Workers, o.BlockBytes)
			}
		}
	}
}

// TestResidualsCannotBeSubtracted: only the undo record knows the original values.
func TestResidualsCannotBeSubtracted(t *testing.T) {
	dir := filepath.Join(fixtures, "merge", "pissa")
	c := readFixture(t, dir)
	p, err := c.open(t, dir, merge.Options{})
	merged := run(t, p, err)
	adapters, err := c.openAdapters(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(adapters), Approximate: true}, c.with(merge.Options{}))
	if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "undo record") {
		t.Errorf("%v, want a refusal that names the undo record", err)
	}
}
