package merge_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/merge"
)

// wholeCases are written by testdata/whole/make.py: an adapter, and a file of weights that its
// trainer trained whole.
var wholeCases = []struct {
	dir, file string
	keepsPEFT bool // PEFT can save them with the adapter
}{
	{"llava", "non_lora_trainables.bin", true},
	{"longlora", "trainable_params.bin", true},
	{"swift", "vit.safetensors", true},
	{"raw", "weights.pt", false},
}

const wholeData = "../testdata/whole"

// TestMergeWithWholeWeightsEqualsPEFT merges an adapter together with the weights beside it, then
// the .lora file and the directory of PEFT that hold both. Every element is that of PEFT in
// float64, rounded once.
func TestMergeWithWholeWeightsEqualsPEFT(t *testing.T) {
	for _, c := range wholeCases {
		t.Run(c.dir, func(t *testing.T) {
			dir := filepath.Join(wholeData, c.dir)
			o := convert.Options{With: []string{filepath.Join(dir, c.file)}}
			checkWhole(t, c.dir, dir, o)
			for _, out := range []string{"a.lora", "peft"} {
				path := filepath.Join(t.TempDir(), out)
				err := convertWhole(t, dir, o, path)
				if out == "peft" && !c.keepsPEFT {
					if !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), "self_attn.q_proj") {
						t.Errorf("written for PEFT: %v, want a refusal that names q_proj", err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				checkWhole(t, c.dir, path, convert.Options{})
			}
		})
	}
}

// checkWhole merges an adapter into the base of the cases and compares every tensor.
func checkWhole(t *testing.T, name, adapter string, o convert.Options) {
	t.Helper()
	src, err := convert.Open(t.Context(), adapter, o)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	at := filepath.Join(wholeData, "base")
	adapters := []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}
	p, err := merge.Open(t.Context(), at, adapters, merge.Options{})
	base, merged := openCheckpoint(t, at), openCheckpoint(t, run(t, p, err))
	truth := openCheckpoint(t, filepath.Join(wholeData, name+".safetensors"))
	changes := 0
	for _, tensor := range base.Names() {
		if _, ok := truth.Lookup(tensor); !ok {
			compareTensor(t, tensor, "not changed", read(t, merged, tensor), read(t, base, tensor))
			continue
		}
		changes++
		if _, apart := compareRounded(t, tensor, merged, truth); apart != 0 {
			t.Errorf("%s: %d elements of %s are not the rounded ones", adapter, apart, tensor)
		}
	}
	if changes != len(truth.Names()) || len(merged.Names()) != len(base.Names()) {
		t.Errorf("%s: %d tensors of %d changed", adapter, changes, len(truth.Names()))
	}
}

func convertWhole(t *testing.T, dir string, o convert.Options, out string) error {
	t.Helper()
	src, err := convert.OpenDigested(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dialect, err := convert.Default().For(out)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := convert.Create(out, dialect, convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return format.Copy(t.Context(), sink, src)
}
