package rank_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

const ggufBases = "../testdata/gguf/bases/"

// TestExtractFromGGUF: the update between a base in GGUF and its merge is that of the adapter,
// which testdata/gguf/bases/make.py wrote in the names of transformers: rows of q and k have its
// order, and experts are apart. The error is that of rounding the merged weights.
func TestExtractFromGGUF(t *testing.T) {
	for _, c := range []struct {
		name, base string
		warning    string
	}{
		{"plain", "base.gguf", ""}, {"tied", "base.gguf", ""}, {"mixtral", "base.gguf", ""}, {"qwen2", "base.gguf", ""},
		{"quantised", "base.gguf", "7 tensors are quantised in one"}, {"split", "base-00001-of-00003.gguf", "5 tensors are quantised in one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, tuned := ggufBases+c.name+"/"+c.base, mergedGGUF(t, c.name, c.base)
			e, err := rank.OpenExtraction(t.Context(), base, tuned, rank.ExtractOptions{Rule: rank.FixedRank{K: 3}})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			if warnings := strings.Join(e.Warnings(), "\n"); !strings.Contains(warnings, c.warning) || c.warning == "" && warnings != "" {
				t.Errorf("warnings %q, want %q", warnings, c.warning)
			}
			got, report, err := e.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			want := openedAdapter(t, ggufBases+c.name+"/peft")
			d, err := rank.Compare(t.Context(), want, got, rank.CompareOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(d.Layers) != len(want.Manifest().Adapters[0].Layers) || d.IsPartial() || len(report.Beside) > 0 {
				t.Errorf("%d layers, only in the adapter %q, only extracted %q, whole %v", len(d.Layers), d.OnlyA, d.OnlyB, report.Beside)
			}
			for _, l := range d.Layers {
				// The merged weights, 1.2 to 2 times as large as ΔW, or 20 times where they were
				// quantised, are off by up to 2^-9 in BF16 and 2^-12 in F16; the factors by as much
				// again.
				if limit := 0.05 * l.NormA; l.NormDifference > limit {
					t.Errorf("%s: ‖ΔA − ΔB‖ = %v, want at most %v", l.Module, l.NormDifference, limit)
				}
			}
		})
	}
}

// TestExtractForPEFTFromGGUF: the adapter has the modules of the model in memory, and merges into
// the base that it was extracted from.
func TestExtractForPEFTFromGGUF(t *testing.T) {
	base, tuned := ggufBases+"mixtral/base.gguf", mergedGGUF(t, "mixtral", "base.gguf")
	e, err := rank.OpenExtraction(t.Context(), base, tuned, rank.ExtractOptions{Rule: rank.FixedRank{K: 6}, PEFT: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	src, report, err := e.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	isStack := func(l rank.ExtractedLayer) bool { return l.Module == "model.layers.0.mlp.experts" }
	if !slices.ContainsFunc(report.Layers, isStack) || report.Error > 0.002 {
		t.Errorf("layers %+v, error %v", report.Layers, report.Error)
	}
	plan, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "x", Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	plan.Close()
}

// TestExtractRefusesOtherGGUF: unknown names, and rows in an unknown order, are refused.
func TestExtractRefusesOtherGGUF(t *testing.T) {
	base, err := os.ReadFile(ggufBases + "plain/base.gguf")
	if err != nil {
		t.Fatal(err)
	}
	for from, c := range map[string]struct{ to, want string }{
		"\x05\x00\x00\x00\x00\x00\x00\x00llama": {"\x05\x00\x00\x00\x00\x00\x00\x00newer", `architecture "newer"`},
		"head_count\x04":                        {"head_many_\x04", "in the order of llama.cpp"},
	} {
		changed := strings.Replace(string(base), from, c.to, 1)
		path := filepath.Join(t.TempDir(), "base.gguf")
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := rank.OpenExtraction(t.Context(), path, path, rank.ExtractOptions{Rule: rank.FixedRank{K: 1}})
		var refused *format.Error
		if !errors.As(err, &refused) || !strings.Contains(refused.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}

// mergedGGUF merges the adapter in PEFT's names, and returns the path.
func mergedGGUF(t *testing.T, name, base string) string {
	t.Helper()
	plan, err := merge.Open(t.Context(), ggufBases+name+"/"+base, []merge.Adapter{{Source: openedAdapter(t, ggufBases+name+"/peft"), Name: "a", Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, content := range out.Files() {
		if file == "" {
			file = base
		}
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, base)
}

func openedAdapter(t *testing.T, path string) format.Source {
	t.Helper()
	src, err := convert.Open(t.Context(), path, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// TestGGUFEqualsTransformers: a model in GGUF has the values of the same model in the names of
// transformers, which testdata/gguf/bases/make.py wrote before it put rows in llama.cpp's order.
func TestGGUFEqualsTransformers(t *testing.T) {
	paths := []string{ggufBases + "plain/transformers", ggufBases + "plain/base.gguf"}
	var both [2]*checkpoint.Checkpoint
	for i, path := range paths {
		var err error
		if both[i], err = checkpoint.Open(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		defer both[i].Close()
	}
	for _, c := range [][2]*checkpoint.Checkpoint{both, {both[1], both[0]}} {
		r, err := rank.CompareCheckpoints(t.Context(), c[0], c[1], rank.CompareOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range r.Tensors {
			if x.Status != rank.Identical {
				t.Errorf("%s is %v", x.Tensor, x.Status)
			}
		}
		if len(r.Tensors) != 12 || r.Norm != 0 {
			t.Errorf("%d tensors, norm %v", len(r.Tensors), r.Norm)
		}
	}
}
