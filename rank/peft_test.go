package rank_test

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/rank"
)

// TestPEFTAppliesWhatWasExtracted: testdata/extract/make.py extracted adapters with a different
// rank per layer and loaded them with PEFT 0.21.2. PEFT's updates must equal this package's, and
// today's extraction must give the same adapters.
func TestPEFTAppliesWhatWasExtracted(t *testing.T) {
	for _, c := range []struct {
		name, base string
		energy     float64
	}{{"llama", "llama-f32", 0.9}, {"gpt2", "gpt2", 0.97}} {
		dir := filepath.Join("../testdata/extract", c.name)
		saved, err := convert.Open(t.Context(), filepath.Join(dir, "adapter"), convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer saved.Close()
		truth, err := checkpoint.Open(t.Context(), filepath.Join(dir, "delta.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		defer truth.Close()
		// Products of float32 factors are exact in float64; sums of at most 32 differ by their
		// order.
		compareDeltas(t, c.name+", as PEFT has loaded it", saved, truth, 1e-14)

		base := filepath.Join("../testdata/peft/bases", c.base)
		now, _, err := extract(t, base, filepath.Join(dir, "tuned", "model.safetensors"), rank.ExtractOptions{Rule: rank.EnergyShare{Share: c.energy}})
		if err != nil {
			t.Fatal(err)
		}
		// The factors are rounded to float32, and other processors add in other orders.
		compareDeltas(t, c.name+", extracted now", now, truth, 1e-5)
		out := filepath.Join(t.TempDir(), "adapter")
		sink, err := convert.Create(out, convert.PEFT(), convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := sink.Store(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(out, format.PEFTConfig))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(dir, "adapter", format.PEFTConfig))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: adapter_config.json is %s, want %s", c.name, got, want)
		}
	}
}

// compareDeltas compares s·B·A of every layer with the tensors of truth, relative to their norms.
func compareDeltas(t *testing.T, name string, src format.Source, truth *checkpoint.Checkpoint, tolerance float64) {
	t.Helper()
	layers := src.Manifest().Adapters[0].Layers
	if len(layers) != len(truth.Names()) {
		t.Errorf("%s: %d layers, want %d", name, len(layers), len(truth.Names()))
	}
	ranks := make(map[int]int)
	for i := range layers {
		l := &layers[i]
		ranks[l.Rank]++
		ref, ok := truth.Lookup(l.Module + ".weight")
		if !ok {
			t.Errorf("%s: %s has no Δ in PEFT", name, l.Module)
			continue
		}
		raw := make([]byte, ref.Tensor.NBytes)
		if err := ref.Tensor.ReadAt(t.Context(), raw, 0); err != nil {
			t.Fatal(err)
		}
		want := make([]float64, ref.Tensor.Elements())
		dtype.Widen64(want, ref.Tensor.DType, raw)
		got := deltaOf(t, src, l)
		n := len(got) / int(src.Manifest().Tensors[l.Roles[format.RoleB]].Shape[0])
		transposed := int(ref.Tensor.Shape[1]) != n || isConv1D(l.Module)
		var diff, norm float64
		for k, x := range got {
			at := k
			if transposed { // the base stores it transposed
				at = k%n*(len(got)/n) + k/n
			}
			diff += (x - want[at]) * (x - want[at])
			norm += want[at] * want[at]
		}
		if !(math.Sqrt(diff) <= tolerance*math.Sqrt(norm)) {
			t.Errorf("%s: Δ of %s is %.3g·‖Δ‖ away from PEFT's, want at most %g", name, l.Module, math.Sqrt(diff/norm), tolerance)
		}
	}
	if len(ranks) < 2 {
		t.Errorf("%s: only the ranks %v: the patterns of PEFT are not put to the test", name, ranks)
	}
}

// isConv1D reports whether GPT-2 stores the module's weight transposed.
func isConv1D(module string) bool {
	ok, _ := filepath.Match("*c_*", filepath.Ext(module))
	return ok
}
