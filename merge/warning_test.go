package merge_test

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestWarningsAboutTheOutputComeApart: a plan that is only compared with something says nothing of
// an output; all warnings are those about the inputs, then those about the output.
func TestWarningsAboutTheOutputComeApart(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	base := mixedFP8(t, rng, `{"quantization_config":{"quant_method":"fp8"}}`)
	testkit.Write(t, filepath.Join(base, "model.onnx"), []byte("weights in another format"))
	factors := func(module string) []testkit.Tensor {
		name := "base_model.model." + module
		return []testkit.Tensor{
			testkit.Random(rng, name+".lora_A.weight", dtype.F32, 1, 2, 130), testkit.Random(rng, name+".lora_B.weight", dtype.F32, 1, 130, 2),
		}
	}
	adapter := t.TempDir()
	testkit.WriteAdapter(t, adapter, 2, 2, factors("layers.0.self_attn.k_proj")...) // without the base's prefix
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	input, all := p.InputWarnings(), p.Warnings()
	if len(input) != 1 || !strings.Contains(input[0], "the adapter's module names are used with") || !slices.Equal(all[:1], input) {
		t.Errorf("the warnings about the inputs are %q of %q, want one, of the names", input, all)
	}
	for _, part := range []string{"the merge decodes 3 of 7", "holds quantised and plain weights", "that no adapter changes are decoded", "model.onnx"} {
		if !slices.ContainsFunc(all, func(w string) bool { return strings.Contains(w, part) }) {
			t.Errorf("the warnings are %q, want one with %q", all, part)
		}
	}
}
