package merge_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestSavedTensorsThatAreNotFinite: NaN and infinity are found in replacement tensors as in
// factors, and so are values that overflow the base's dtype.
func TestSavedTensorsThatAreNotFinite(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(-1), 1e38} {
		dir := t.TempDir()
		base, adapter := filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "adapter")
		testkit.Write(t, base, testkit.Encode(nil, testkit.Values("q.weight", dtype.F16, []uint64{2, 2}, 1, 2, 3, 4), testkit.Values("head.weight", dtype.F16, []uint64{2, 2}, 1, 2, 3, 4)))
		testkit.WriteAdapter(t, adapter, 1, 1,
			testkit.Values("base_model.model.q.lora_A.weight", dtype.F32, []uint64{1, 2}, 1, 1),
			testkit.Values("base_model.model.q.lora_B.weight", dtype.F32, []uint64{2, 1}, 1, 1),
			testkit.Values("base_model.model.head.weight", dtype.F32, []uint64{2, 2}, 1, bad, 1, 1))
		testkit.Write(t, filepath.Join(adapter, "adapter_config.json"), []byte(`{"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":["q"],"modules_to_save":["head"]}`))
		src, err := convert.Open(t.Context(), adapter, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		adapters := []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}
		p, err := merge.Open(context.Background(), base, adapters, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, "out.safetensors")
		_, err = p.Run(context.Background(), out)
		p.Close()
		if !errors.Is(err, fault.Check) || !strings.Contains(err.Error(), `1 of the adapter's values is NaN or infinite as F16, in "head.weight"`) {
			t.Errorf("a saved tensor with %v: %v", bad, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("a saved tensor with %v: the output is there", bad)
		}
		p, err = merge.Open(context.Background(), base, adapters, merge.Options{AllowNonFinite: true})
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Run(context.Background(), out)
		p.Close()
		if err != nil || r.NonFiniteAfter != 1 {
			t.Errorf("a saved tensor with %v, allowed: %v; %+v", bad, err, r)
		}
	}
}

// TestTheSameAdapterTwiceIsRefused: under any name, unless Options.Again is set.
func TestTheSameAdapterTwiceIsRefused(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	base := filepath.Join(dir, "base.safetensors")
	testkit.Write(t, base, testkit.Encode(nil, testkit.Random(rng, "q.weight", dtype.BF16, 1, 4, 4)))
	a := writeLoRA(t, filepath.Join(dir, "a"), rng, "q", 1, 4, 4, 1)
	b := a
	b.Name = "b"
	_, err := merge.Open(context.Background(), base, []merge.Adapter{a, b}, merge.Options{})
	if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), "are the same adapter") {
		t.Errorf("the same adapter twice: %v", err)
	}
	p, err := merge.Open(context.Background(), base, []merge.Adapter{a, b}, merge.Options{Again: true})
	if err != nil {
		t.Fatalf("the same adapter twice, as asked for: %v", err)
	}
	p.Close()
}

// TestFeaturesComeBeforeTheBase: a feature that this version lacks is the first thing to say, even
// if another adapter of the merge was made for another base. No other base would help.
func TestFeaturesComeBeforeTheBase(t *testing.T) {
	base, err := checkpoint.OpenFS(t.Context(), memory{"b.safetensors": testkit.Encode(nil,
		testkit.Values("q.weight", dtype.BF16, []uint64{2, 2}, 1, 2, 3, 4))}, "b.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	made := func(name string, edit func(b *format.Builder)) merge.Adapter {
		b := format.NewBuilder("made up")
		b.Linear("q", 1, 1, format.Float32s([]float32{1, 1}, 1, 2), format.Float32s([]float32{1, 1}, 2, 1))
		edit(b)
		src, err := b.Source()
		if err != nil {
			t.Fatal(err)
		}
		return merge.Adapter{Source: src, Name: name, Weight: 1}
	}
	other := made("other", func(b *format.Builder) {
		b.Adapter().Base.Fingerprints = map[string]string{"q.weight": strings.Repeat("0", 64)}
	})
	routed := made("routed", func(b *format.Builder) { b.Require(format.FeatureArrow, "arrow_config") })

	_, err = merge.New(t.Context(), base, []merge.Adapter{other}, merge.Options{})
	if !errors.Is(err, fault.Mismatch) {
		t.Errorf("an adapter for another base: %v, want a mismatch", err)
	}
	_, err = merge.New(t.Context(), base, []merge.Adapter{other, routed}, merge.Options{})
	if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "routed per token") {
		t.Errorf("and one that is routed per token: %v, want the reason of its feature", err)
	}
}
