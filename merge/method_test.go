package merge_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// openWeighted plans the merge of fixtures' adapters with weights.
func openWeighted(t *testing.T, base string, names []string, weights []float64) (*merge.Plan, error) {
	t.Helper()
	var adapters []merge.Adapter
	for i, name := range names {
		src, err := convert.Open(filepath.Join(fixtures, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		adapters = append(adapters, merge.Adapter{Source: src, Name: name, Weight: weights[i]})
	}
	p, err := merge.Open(context.Background(), filepath.Join(fixtures, "bases", base), adapters, merge.Options{})
	if err == nil {
		t.Cleanup(func() { p.Close() })
	}
	return p, err
}

// TestDoRAIsNotMixed: the magnitudes rescale whatever the weight is by then, so that neither a part of them nor a second change has
// one meaning.
func TestDoRAIsNotMixed(t *testing.T) {
	for _, c := range []struct {
		names   []string
		weights []float64
		word    string
	}{
		{[]string{"merge/dora/adapter"}, []float64{0.5}, "weighted"},
		{[]string{"merge/dora/adapter", "merge/f32/adapter"}, []float64{1, 1}, "first"},
		{[]string{"merge/f32/adapter", "merge/dora/adapter"}, []float64{1, 1}, "first"},
		{[]string{"merge/dora/adapter", "merge/dora-config-denies/adapter"}, []float64{1, 1}, "first"},
	} {
		_, err := openWeighted(t, "llama-f32", c.names, c.weights)
		if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("merging %q with weights %v: %v, want a refusal with the word %q", c.names, c.weights, err, c.word)
		}
	}
}

// TestMethodsAreTheSameEverywhere: norms of columns are summed over the whole tensor, in one order for any workers and blocks; blocks
// end anywhere between the bands of stacked experts.
func TestMethodsAreTheSameEverywhere(t *testing.T) {
	for _, name := range []string{"dora-gpt2", "dora-embedding", "dora-all-linear", "experts", "experts-qwen", "experts-gpt-oss"} {
		var first []byte
		for _, o := range []merge.Options{{}, {Workers: 1, BlockBytes: 1}, {Workers: 3, BlockBytes: 700}} {
			dir := filepath.Join(fixtures, "merge", name)
			c := readFixture(t, dir)
			p, err := c.open(t, dir, o)
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "out")
			if _, err := p.Run(context.Background(), out); err != nil {
				t.Fatal(err)
			}
			var all []byte
			merged := openCheckpoint(t, out)
			for _, tensor := range merged.Names() {
				all = append(all, read(t, merged, tensor)...)
			}
			if first == nil {
				first = all
			}
			if !bytes.Equal(all, first) {
				t.Errorf("%s: other bytes with %d workers and blocks of %d bytes", name, o.Workers, o.BlockBytes)
			}
		}
	}
}

// TestContainersMergeAsTheirSources: a .lora file says all that merging needs to know of an adapter, whatever its method.
func TestContainersMergeAsTheirSources(t *testing.T) {
	ctx := context.Background()
	eachFixture(t, "merge", 20, func(t *testing.T, dir string, c fixture) {
		direct := c
		dir, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range c.Adapters {
			src, err := convert.Open(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			if len(src.Manifest().Adapters[0].Requires) == 0 {
				return // the plain formula needs nothing else to be said
			}
			container := filepath.Join(t.TempDir(), "adapter.lora")
			sink, err := convert.Create(container, convert.LoRA, convert.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := format.Copy(ctx, sink, src); err != nil {
				t.Fatal(err)
			}
			c.Adapters = slices.Clone(c.Adapters)
			if c.Adapters[i], err = filepath.Rel(dir, container); err != nil {
				t.Fatal(err)
			}
		}
		var outputs [2]map[string]string
		for i, c := range []fixture{direct, c} {
			p, err := c.open(t, dir, merge.Options{})
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "out")
			if _, err := p.Run(ctx, out); err != nil {
				t.Fatal(err)
			}
			merged := openCheckpoint(t, out)
			outputs[i] = make(map[string]string)
			for _, name := range merged.Names() {
				outputs[i][name] = string(read(t, merged, name))
			}
		}
		if !maps.Equal(outputs[0], outputs[1]) {
			t.Error("the container is merged to other values than the adapter that it was made of")
		}
	})
}
