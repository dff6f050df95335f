package merge_test

import (
	"bytes"
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// run runs a plan to a new place and returns that.
func run(t *testing.T, p *merge.Plan, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err, "\nhint: ", fault.Hint(err))
	}
	t.Cleanup(func() { p.Close() })
	out := filepath.Join(t.TempDir(), "out")
	if _, err := p.Run(context.Background(), out); err != nil {
		t.Fatal(err, "\nhint: ", fault.Hint(err))
	}
	return out
}

func record(t *testing.T, name string, b []byte) *merge.Record {
	t.Helper()
	r, err := merge.OpenRecord(name, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// anyWeight makes the adapters of a merge those of a removal, whose weights the record knows.
func anyWeight(adapters []merge.Adapter) []merge.Adapter {
	var all []merge.Adapter
	for _, a := range adapters {
		a.Weight = math.NaN()
		all = append(all, a)
	}
	return all
}

func tree(t *testing.T, path string) map[string]string {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return map[string]string{"": testkit.Hash(t, path)}
	}
	return testkit.Tree(t, path)
}

// TestUnmergeRestoresEveryByte merges every fixture with a record and takes it back.
func TestUnmergeRestoresEveryByte(t *testing.T) {
	eachFixture(t, "merge", 20, func(t *testing.T, dir string, c fixture) {
		var rec bytes.Buffer
		adapters, err := c.openAdapters(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		base := filepath.Join(fixtures, "bases", c.Base)
		p, err := merge.Open(context.Background(), base, adapters, merge.Options{Undo: &rec})
		merged := run(t, p, err)
		if maps.Equal(tree(t, merged), tree(t, base)) {
			t.Fatal("the merge has changed nothing")
		}
		p, err = merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(adapters), Records: []*merge.Record{record(t, "r", rec.Bytes())}}, merge.Options{})
		if got, want := tree(t, run(t, p, err)), tree(t, base); !maps.Equal(got, want) {
			t.Errorf("taken back: %v, want %v", got, want)
		}
	})
}

// TestRecordIsSmall: what a record costs per weight of a BF16 base, for the sizes of ‖ΔW‖/‖W‖ that adapters have, against the
// measured order-0 entropies of the residuals, 1.05, 0.12 and 0.024 bits.
func TestRecordIsSmall(t *testing.T) {
	for _, c := range []struct{ ratio, bits float64 }{{0.3, 1.15}, {0.01, 0.15}, {0.001, 0.04}} {
		m := writePair(t, dtype.BF16, 2048, 2048, c.ratio)
		var rec bytes.Buffer
		p, err := merge.Open(context.Background(), m.base, m.adapters, merge.Options{Undo: &rec})
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Run(context.Background(), filepath.Join(t.TempDir(), "out"))
		p.Close()
		if err != nil {
			t.Fatal(err)
		}
		if r.Undo.BitsPerWeight > c.bits {
			t.Errorf("‖ΔW‖/‖W‖ = %.4f: %.4f bits per weight, want at most %v", r.Total.RelativeNorm, r.Undo.BitsPerWeight, c.bits)
		}
		t.Logf("‖ΔW‖/‖W‖ = %.4f: %.4f bits per weight", r.Total.RelativeNorm, r.Undo.BitsPerWeight)
	}
}

// pair is a base of one matrix and an adapter of rank 16 for it.
type pair struct {
	base     string
	adapters []merge.Adapter
}

// writePair makes a pair with ‖ΔW‖/‖W‖ near ratio.
func writePair(t *testing.T, d dtype.Type, rows, cols uint64, ratio float64) pair {
	t.Helper()
	const sigma, rank = 0.02, 16
	rng := rand.New(rand.NewPCG(7, 8))
	dir := t.TempDir()
	p := pair{base: filepath.Join(dir, "base.safetensors")}
	testkit.Write(t, p.base, testkit.Encode(nil, testkit.Random(rng, "q.weight", d, sigma, rows, cols)))
	p.adapters = []merge.Adapter{writeLoRA(t, filepath.Join(dir, "adapter"), rng, "q", rank, rows, cols, ratio*sigma)}
	return p
}

// writeLoRA writes an adapter for one module whose s·B·A has elements of standard deviation sigma.
func writeLoRA(t *testing.T, path string, rng *rand.Rand, module string, rank, rows, cols uint64, sigma float64) merge.Adapter {
	t.Helper()
	key := "base_model.model." + module
	testkit.WriteAdapter(t, path, int(rank), float64(rank),
		testkit.Random(rng, key+".lora_A.weight", dtype.F32, 1, rank, cols),
		testkit.Random(rng, key+".lora_B.weight", dtype.F32, sigma/math.Sqrt(float64(rank)), rows, rank))
	src, err := convert.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return merge.Adapter{Source: src, Name: path, Weight: 1}
}
