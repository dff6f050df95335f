package convert_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestProjectionsComeBackFromAFusedOne: queries, keys and values of Flux become one module of
// kohya's and three again, with their own ranks and numbers; and so do those that share an A.
func TestProjectionsComeBackFromAFusedOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 7))
	flux := map[string]string{"ss_base_model_version": "flux1"}
	shared := testkit.Random(rng, "", dtype.F16, 1, 2, 4)
	for _, isShared := range []bool{false, true} {
		var tensors []testkit.Tensor
		for i, name := range []string{"to_q", "to_k", "to_v"} {
			module, rank := "transformer.transformer_blocks.0.attn."+name, uint64(i+1)
			a := testkit.Random(rng, "", dtype.F16, 1, rank, 4)
			if isShared {
				a, rank = shared, 2
			}
			a.Name = module + ".lora_A.weight"
			tensors = append(tensors, a,
				testkit.Random(rng, module+".lora_B.weight", dtype.F16, 1, 4, rank))
		}
		src := open(t, write(t, flux, tensors...), convert.Options{})
		fused, err := written(t, src, convert.Kohya(), convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want := "lora_unet_double_blocks_0_img_attn_qkv linear [6 4] [12 6] ×1"
		if isShared {
			want = "lora_unet_double_blocks_0_img_attn_qkv linear [2 4] [12 2] ×1"
		}
		equalLines(t, "fused", layersOf(fused), []string{want})
		back, err := written(t, fused, convert.Diffusers(), convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		equalLines(t, "back", contents(t, back), contents(t, src))
	}
}

// TestScalesThatDifferAreNotJoinedByRounding: a fused module has one alpha.
func TestScalesThatDifferAreNotJoinedByRounding(t *testing.T) {
	flux := map[string]string{"ss_base_model_version": "flux1", "lora_adapter_metadata": `{"transformer.r":2,` +
		`"transformer.lora_alpha":2,"transformer.alpha_pattern":{"to_k":3,"to_v":0.5},"transformer.target_modules":["to_q"]}`}
	var tensors []testkit.Tensor
	rng := rand.New(rand.NewPCG(5, 8))
	for _, name := range []string{"to_q", "to_k", "to_v"} {
		module := "transformer.transformer_blocks.0.attn." + name
		tensors = append(tensors, testkit.Random(rng, module+".lora_A.weight", dtype.F32, 1, 2, 4),
			testkit.Random(rng, module+".lora_B.weight", dtype.F32, 1, 4, 2))
	}
	src := open(t, write(t, flux, tensors...), convert.Options{})
	if _, err := written(t, src, convert.Kohya(), convert.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "to_") {
		// 3/2 times an F32 needs another bit
		t.Errorf("a scale of 1.5 was joined with 1: %v", err)
	}
	if _, err := written(t, src, convert.Kohya(), convert.CreateOptions{FoldScale: true}); err != nil {
		t.Errorf("with FoldScale: %v", err)
	}
}
