package rank_test

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/rank"
)

// imageBases has pipelines as diffusers saves them, and the same weights in single files, which the
// converters of diffusers read back: see testdata/diffusion/README.md.
const imageBases = "../testdata/diffusion/bases"

// TestImageModelsArePairedAcrossLayouts: a pipeline and a single file have the same weights, so
// every pair of tensors is unchanged, and the number of pairs shows that none is missing.
func TestImageModelsArePairedAcrossLayouts(t *testing.T) {
	for _, c := range []struct {
		name string
		left string // the beginning of the names of tensors that only the pipeline has
	}{
		{"sd1", "vae."},
		{"sdxl", "text_encoder_2.text_projection."}, // the file has it transposed
		{"flux", "-"}, {"sd3", "-"}, {"wan", "-"}, {"qwen", "-"}, {"hunyuan", "-"}, {"zimage", "-"},
	} {
		pipeline := filepath.Join(imageBases, c.name)
		file := pipeline + ".safetensors"
		base, err := checkpoint.Open(t.Context(), pipeline)
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		for _, name := range base.Names() {
			if !strings.HasPrefix(name, c.left) {
				want++
			}
		}
		base.Close()
		_, _, err = extract(t, pipeline, file, rank.ExtractOptions{Rule: rank.FixedRank{K: 1}})
		text := fmt.Sprintf("%d compared tensors have the same values", want)
		if !errors.Is(err, format.ErrMismatch) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s, the file against the pipeline: %v, want %q", c.name, err, text)
		}
		_, _, err = extract(t, file, pipeline, rank.ExtractOptions{Rule: rank.FixedRank{K: 1}})
		if !errors.Is(err, format.ErrMismatch) || !strings.Contains(err.Error(), "have the same values") {
			t.Errorf("%s, the pipeline against the file: %v, want equal values", c.name, err)
		}
	}
}

// TestOtherImageModelsAreRefusedByName: the two models share tensor names, but neither is a
// fine-tune of the other.
func TestOtherImageModelsAreRefusedByName(t *testing.T) {
	for _, c := range []struct{ base, tuned, words string }{
		{"sd1", "sdxl", "the unet of the base is sd1, and that of the tuned checkpoint is sdxl"},
		{"sd1.safetensors", "sdxl",
			"the unet of the base is sd1, and that of the tuned checkpoint is sdxl"},
		{"flux", "sd3.safetensors",
			"the transformer of the base is flux, and that of the tuned checkpoint is sd3"},
		{"wan", "flux-bfl.safetensors",
			"the transformer of the base is wan, and that of the tuned checkpoint is flux"},
	} {
		_, _, err := extract(t, filepath.Join(imageBases, c.base), filepath.Join(imageBases, c.tuned),
			rank.ExtractOptions{Rule: rank.FixedRank{K: 1}})
		if !errors.Is(err, format.ErrMismatch) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s against %s: %v, want %q", c.base, c.tuned, err, c.words)
		}
	}
}

// TestModelsOfOneArchitectureAndOtherSizesAreRefused: Stable Diffusion 1 and 2 have one table of
// names, and Flux exists in several widths.
func TestModelsOfOneArchitectureAndOtherSizesAreRefused(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 5))
	model := func(h uint64) (tensors []testkit.Tensor) {
		for _, name := range []string{"to_q", "to_k", "to_v", "add_q_proj"} {
			name = "transformer.transformer_blocks.0.attn." + name + ".weight"
			tensors = append(tensors, testkit.Random(rng, name, dtype.F32, 1, h, h))
		}
		return append(tensors, testkit.Random(rng, "transformer.x_embedder.bias", dtype.F32, 1, 8))
	}
	base, tuned := pairOf(t, "", model(8), model(12))
	_, _, err := extract(t, base, tuned, rank.ExtractOptions{Rule: rank.FixedRank{K: 1}})
	const words = "of the transformer, 4 of 4 weights have another shape in the tuned checkpoint"
	if !errors.Is(err, format.ErrMismatch) || !strings.Contains(err.Error(), words) {
		t.Errorf("%v, want %q", err, words)
	}
}

// TestTensorsBesideAnImageModelAreListed: averages of a training, a component that one checkpoint
// lacks and integers are named with their size. They are no change, and do not count as one.
func TestTensorsBesideAnImageModelAreListed(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 9))
	random := func(name string, shape ...uint64) testkit.Tensor {
		return testkit.Random(rng, name, dtype.F32, 1, shape...)
	}
	const unet, clip = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
	w := random(unet+"time_embed.0.weight", 12, 10)
	ids := testkit.Tensor{Name: clip + "embeddings.position_ids", DType: dtype.I64,
		Shape: []uint64{1, 1}, Data: make([]byte, 8)}
	fc := random(clip+"encoder.layers.0.mlp.fc1.weight", 8, 6)
	const average, decay = "model_ema.diffusion_modeltime_embed0weight", "model_ema.decay"
	base := []testkit.Tensor{w, ids, fc, random(average, 12, 10),
		random("first_stage_model.conv.weight", 3, 4)}
	tuned := []testkit.Tensor{changed(rng, w, 2, 1), ids, fc, random(average, 12, 10), random(decay)}
	a, b := pairOf(t, "", base, tuned)
	_, report, err := extract(t, a, b, rank.ExtractOptions{Rule: rank.FixedRank{K: 2}})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, s := range report.Skipped {
		got[s.Tensor] = fmt.Sprint(s.Why, ", ", s.Bytes, " bytes")
		if s.Share != 0 {
			t.Errorf("%s has the share %g of Δ, want 0", s.Tensor, s.Share)
		}
	}
	const training = "a running average of the weights that training keeps"
	want := map[string]string{
		average: training + ", 480 bytes", decay: training + ", 4 bytes",
		ids.Name: "unchanged, 8 bytes", fc.Name: "unchanged, 192 bytes",
		"first_stage_model.conv.weight": "only in the base, under this name; not compared, 48 bytes",
	}
	if !maps.Equal(got, want) || len(report.Layers) != 1 || len(report.Beside) != 0 {
		t.Errorf("%d layers, %d beside, skipped %v, want %v",
			len(report.Layers), len(report.Beside), got, want)
	}
	if report.Rounded > 1e-5 {
		t.Errorf("the error is %g, want that of a matrix of rank 2 alone", report.Rounded)
	}
}

// TestADialectOfImageModelsGetsWhatItHolds: norms, embeddings and the VAE have no keys there. They
// are left out and count in the error. A fused projection without a module of its own has keys.
func TestADialectOfImageModelsGetsWhatItHolds(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 13))
	const unet, clip = "model.diffusion_model.", "conditioner.embedders.1.model."
	layers := []testkit.Tensor{
		testkit.Random(rng, unet+"time_embed.0.weight", dtype.F32, 1, 12, 10),
		testkit.Random(rng, unet+"input_blocks.0.0.weight", dtype.F32, 1, 8, 4, 3, 3),
		testkit.Random(rng, clip+"transformer.resblocks.0.attn.in_proj_weight", dtype.F32, 1, 18, 6),
	}
	others := []testkit.Tensor{
		testkit.Random(rng, unet+"time_embed.0.bias", dtype.F32, 1, 12),
		testkit.Random(rng, unet+"out.0.weight", dtype.F32, 1, 8),
		testkit.Random(rng, clip+"token_embedding.weight", dtype.F32, 1, 9, 6),
		testkit.Random(rng, "first_stage_model.encoder.conv_in.weight", dtype.F32, 1, 6, 3, 3, 3),
	}
	var tuned []testkit.Tensor
	all := slices.Concat(layers, others)
	var left, whole float64
	for i, x := range all {
		tuned = append(tuned, changed(rng, x, 2, 0.1))
		s := squares(load(x), load(tuned[i]))
		if whole += s; i >= len(layers) {
			left += s
		}
	}
	base, path := pairOf(t, "", all, tuned)
	o := rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, Images: true}
	src, report, err := extract(t, base, path, o)
	if err != nil {
		t.Fatal(err)
	}
	a := src.Manifest().Adapters[0]
	if len(a.Layers) != len(layers) || len(a.Beside) != 0 || len(report.Skipped) != len(others) {
		t.Errorf("%d layers, %d beside and %d left out, want %d, none and %d",
			len(a.Layers), len(a.Beside), len(report.Skipped), len(layers), len(others))
	}
	want := math.Sqrt(left / whole)
	if math.Abs(report.LeftOut-want) > 1e-6 || math.Abs(report.Rounded-want) > 1e-6 {
		t.Errorf("left out %g, error %g, want %g for both", report.LeftOut, report.Rounded, want)
	}
	if len(report.Warnings) == 0 || !strings.Contains(report.Warnings[0], "4 tensors that changed") {
		t.Errorf("warnings %q, want one of 4 tensors", report.Warnings)
	}
	x, y := pairOf(t, "", layers[2:], tuned[2:3])
	if _, _, err = extract(t, x, y, o); err != nil {
		t.Errorf("a text encoder alone: %v", err)
	}
	w := testkit.Random(rng, "q_proj.weight", dtype.F32, 1, 4, 4)
	x, y = pairOf(t, "", []testkit.Tensor{w}, []testkit.Tensor{changed(rng, w, 1, 1)})
	if _, _, err = extract(t, x, y, o); !errors.Is(err, format.ErrUnsupported) {
		t.Errorf("a language model: %v, want it refused as unsupported", err)
	}
}
