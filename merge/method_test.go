package merge_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// openWeighted plans a merge of fixtures with weights.
func openWeighted(t *testing.T, base string, names []string, weights []float64) (*merge.Plan, error) {
	t.Helper()
	var adapters []merge.Adapter
	for i, name := range names {
		src, err := convert.Open(t.Context(), filepath.Join(fixtures, name), convert.Options{})
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

// TestWeightsThatMergeNothing: weights of zero, NaN and infinity are refused by name.
func TestWeightsThatMergeNothing(t *testing.T) {
	for w, word := range map[float64]string{0: "weight is 0", math.Copysign(0, -1): "weight is 0", math.NaN(): "NaN", math.Inf(1): "+Inf"} {
		_, err := openWeighted(t, "llama-f32", []string{"merge/f32/adapter", "merge/dora/adapter"}, []float64{1, w})
		if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), "merge/dora/adapter") {
			t.Errorf("merging with the weight %v: %v, want a refusal with %q that names the adapter", w, err, word)
		}
	}
}

// TestCodesOfMLXNeedTheirConfiguration: several numbers of bits fit the same shapes.
func TestCodesOfMLXNeedTheirConfiguration(t *testing.T) {
	dir := t.TempDir()
	base, adapter := filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "adapter")
	codes := testkit.Tensor{Name: "q_proj.weight", DType: dtype.U32, Shape: []uint64{4, 1}, Data: make([]byte, 16)}
	ones := func(name string) testkit.Tensor { return testkit.Values(name, dtype.F32, []uint64{4, 1}, 1, 1, 1, 1) }
	testkit.Write(t, base, testkit.Encode(nil, ones("q_proj.biases"), ones("q_proj.scales"), codes))
	testkit.WriteAdapter(t, adapter, 1, 1,
		testkit.Values("base_model.model.q_proj.lora_A.weight", dtype.F32, []uint64{1, 8}, 1, 1, 1, 1, 1, 1, 1, 1),
		testkit.Values("base_model.model.q_proj.lora_B.weight", dtype.F32, []uint64{4, 1}, 1, 1, 1, 1))
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	_, err = merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
	if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), "stored as MLX") || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("merging into codes: %v, want a refusal that says they are quantised and asks for config.json", err)
	}
}

// TestPlanRunsOnce: a second run returns an error.
func TestPlanRunsOnce(t *testing.T) {
	p, err := openWeighted(t, "llama-f32", []string{"merge/f32/adapter"}, []float64{1})
	run(t, p, err)
	out := filepath.Join(t.TempDir(), "again")
	if _, err := p.Run(context.Background(), out); err == nil || !strings.Contains(err.Error(), "has run already") {
		t.Errorf("the second run: %v, want an error", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the second run wrote %s (%v)", out, err)
	}
}

// TestDoRAIsNotMixed: magnitudes rescale the weight as it is at that moment, so a second change has
// no defined order.
func TestDoRAIsNotMixed(t *testing.T) {
	for _, c := range []struct {
		names   []string
		weights []float64
		word    string
	}{
		{[]string{"merge/dora/adapter"}, []float64{0.5}, "weight must be 1"},
		{[]string{"merge/dora/adapter", "merge/f32/adapter"}, []float64{1, 1}, "order would change the result"},
		{[]string{"merge/f32/adapter", "merge/dora/adapter"}, []float64{1, 1}, "order would change the result"},
		{[]string{"merge/dora/adapter", "merge/dora-config-denies/adapter"}, []float64{1, 1}, "order would change the result"},
	} {
		_, err := openWeighted(t, "llama-f32", c.names, c.weights)
		if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("merging %q with weights %v: %v, want a refusal with the word %q", c.names, c.weights, err, c.word)
		}
	}
}

// TestDoRAOfColumnsIsNearest: an embedding with a single nonzero row has norms |V| and results ±m,
// halfway between two BF16 numbers. Only the exact norm of a column decides, for which merge reads
// the tensor again.
func TestDoRAOfColumnsIsNearest(t *testing.T) {
	const step = 0x1p-7 // distance from 1 to the next number
	dir := t.TempDir()
	base, adapter := filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "adapter")
	const n, row = 12, 9
	w, a := make([]float64, 2*n), make([]float64, n)
	w[2*row], w[2*row+1], a[row] = 3, -0.7, 0.3
	testkit.Write(t, base, testkit.Encode(nil, testkit.Values("model.embed_tokens.weight", dtype.BF16, []uint64{n, 2}, w...)))
	const layer = "base_model.model.model.embed_tokens.lora_"
	testkit.WriteAdapter(t, adapter, 1, 1,
		testkit.Values(layer+"embedding_A", dtype.F32, []uint64{1, n}, a...),
		testkit.Values(layer+"embedding_B", dtype.F32, []uint64{2, 1}, 0.7, -0.1),
		testkit.Values(layer+"magnitude_vector", dtype.F32, []uint64{2}, 1+0.5*step, 1+1.5*step))
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{BlockBytes: 16})
	out := run(t, p, err)
	got := load(dtype.BF16, read(t, openCheckpoint(t, out), "model.embed_tokens.weight"))
	want := make([]float64, 2*n)
	want[2*row], want[2*row+1] = 1, -(1 + 2*step) // to the even one
	if !slices.Equal(got, want) {
		t.Errorf("the embedding is %v, want %v", got, want)
	}
}

// TestMethodsAreTheSameEverywhere: workers and blocks do not change the order in which a tensor's
// columns are summed. Blocks may end inside the bands of stacked experts.
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

// TestContainersMergeAsTheirSources: a .lora file preserves everything that a merge needs, for
// every method.
func TestContainersMergeAsTheirSources(t *testing.T) {
	ctx := context.Background()
	eachFixture(t, "merge", 20, func(t *testing.T, dir string, c fixture) {
		direct := c
		dir, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range c.Adapters {
			src, err := convert.Open(t.Context(), filepath.Join(dir, name), convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			if len(src.Manifest().Adapters[0].Requires) == 0 {
				return // plain LoRA requires no feature
			}
			container := filepath.Join(t.TempDir(), "adapter.lora")
			sink, err := convert.Create(container, convert.LoRA(), convert.CreateOptions{})
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
