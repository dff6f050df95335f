package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// loratool runs a command line and returns its output.
func loratool(t *testing.T, args ...string) []byte {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if code := run(context.Background(), append([]string{"loratool"}, args...), &stdout, &stderr); code != exitDone {
		t.Fatalf("loratool %q exits with %d: %s", args, code, stderr.String())
	}
	return stdout.Bytes()
}

// distance is ‖a − b‖_F over all tensors of two checkpoints.
func distance(t *testing.T, a, b string) float64 {
	t.Helper()
	ca, err := checkpoint.Open(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	defer ca.Close()
	cb, err := checkpoint.Open(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer cb.Close()
	var sum float64
	for _, name := range ca.Names() {
		x, y := tensor(t, ca, name), tensor(t, cb, name)
		for i := range x {
			sum += (x[i] - y[i]) * (x[i] - y[i])
		}
	}
	return math.Sqrt(sum)
}

func tensor(t *testing.T, c *checkpoint.Checkpoint, name string) []float64 {
	t.Helper()
	ref, ok := c.Lookup(name)
	if !ok {
		t.Fatalf("no tensor %q in %s", name, c.Path)
	}
	b := make([]byte, ref.Tensor.NBytes)
	if err := ref.Tensor.ReadAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	x := make([]float64, ref.Tensor.Elements())
	dtype.Widen64(x, ref.Tensor.DType, b)
	return x
}

// TestExtractTakesBackWhatMergePutIn merges an adapter of rank 8 into the F32 demo and extracts it
// again: Δ is of rank 8 but for the rounding of the merged weights, half a unit of 2⁻²⁴·|w| at
// most, which may be left over.
func TestExtractTakesBackWhatMergePutIn(t *testing.T) {
	dir := t.TempDir()
	base, merged := "../../testdata/demo/base", filepath.Join(dir, "merged")
	loratool(t, "merge", base, "../../testdata/demo/adapter-r8", "-o", merged)
	var report rank.ExtractReport
	if err := json.Unmarshal(loratool(t, "extract", base, merged, "-o", filepath.Join(dir, "back.lora"), "--rank", "8", "--json"), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Layers) != 28 {
		t.Fatalf("%d layers, want 28", len(report.Layers))
	}
	for _, l := range report.Layers {
		// ‖rounding‖ ≤ 2⁻²⁵·(‖W‖+‖Δ‖)·√… is bounded by 2⁻²⁴·‖W‖ here, and products in float32 add a
		// few units of 2⁻²⁴·‖Δ‖.
		if limit := 0x1p-24/l.RelativeNorm + 64*0x1p-24; l.Rounded > limit {
			t.Errorf("%s: error %.3g of ‖Δ‖, want at most %.3g", l.Module, l.Rounded, limit)
		}
	}
}

// TestMergeOfAnExtractReachesTheCertifiedError: what is between base + adapter and the tuned
// checkpoint is the error that extract has printed, and the rounding of the merged weights. The
// demo with its adapter merged stands for a fine-tune.
func TestMergeOfAnExtractReachesTheCertifiedError(t *testing.T) {
	dir := t.TempDir()
	base, tuned := "../../testdata/demo/base", filepath.Join(dir, "tuned")
	loratool(t, "merge", base, "../../testdata/demo/adapter-r8", "-o", tuned)
	for _, out := range []string{"three.lora", "three"} {
		adapter, again := filepath.Join(dir, out), filepath.Join(dir, out+"-merged")
		var report rank.ExtractReport
		if err := json.Unmarshal(loratool(t, "extract", base, tuned, "-o", adapter, "--rank", "3", "--json"), &report); err != nil {
			t.Fatal(err)
		}
		loratool(t, "merge", base, adapter, "-o", again)
		var energy float64
		for _, l := range report.Layers {
			energy += l.Frobenius * l.Frobenius
		}
		got, want := distance(t, again, tuned), report.Rounded*math.Sqrt(energy)
		if math.Abs(got-want) > 1e-3*want {
			t.Errorf("%s: base + adapter is %.6g from the tuned checkpoint, extract says %.6g", out, got, want)
		}
	}
}

// TestExtractedSquareExpertsMergeBack: the shape of square experts does not tell which dimension A
// reads, so that the adapter has to say it. PEFT's files say it for models whose experts PEFT reads
// in one way.
func TestExtractedSquareExpertsMergeBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(105, 106))
	const name = "model.layers.0.mlp.experts.down_proj"
	for _, c := range []struct {
		config string
		outs   []string
	}{
		{"", []string{"e.lora"}},
		{`{"model_type":"gpt_oss"}`, []string{"e.lora"}},
		{`{"model_type":"qwen3_moe"}`, []string{"e.lora", "e"}},
		{`{"model_type":"qwen3_vl_moe"}`, []string{"e.lora"}},
	} {
		dir := t.TempDir()
		in := func(name string) string { return filepath.Join(dir, name) }
		for _, model := range []string{"base", "tuned"} {
			testkit.Write(t, in(model+"/model.safetensors"), testkit.Encode(nil, testkit.Random(rng, name, dtype.F32, 0.1, 3, 4, 4)))
			if c.config != "" {
				testkit.Write(t, in(model+"/config.json"), []byte(c.config))
			}
		}
		for _, out := range c.outs {
			loratool(t, "extract", in("base"), in("tuned"), "--rank", "4", "-o", in(out))
			loratool(t, "merge", in("base"), in(out), "-o", in(out+"-merged"))
			if d := distance(t, in(out+"-merged"), in("tuned")); d > 1e-6 {
				t.Errorf("config %s, %s: base + adapter is %.3g from the tuned checkpoint", c.config, out, d)
			}
		}
	}
}

// TestAnotherBaseIsRefused: an adapter that remembers its base is not merged into a fine-tune of
// it, unless asked to, whatever the adapter is stored in and however often it was converted.
func TestAnotherBaseIsRefused(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	base, adapter := "../../testdata/demo/base", "../../testdata/demo/adapter-r8"
	tuned := in("tuned")
	loratool(t, "merge", base, adapter, "-o", tuned)
	loratool(t, "convert", adapter, "--base", base, "-o", in("a.lora"))
	loratool(t, "convert", adapter, "--base", base, "-o", in("a"))
	loratool(t, "extract", base, tuned, "--rank", "2", "-o", in("e.lora"))
	loratool(t, "extract", base, tuned, "--rank", "2", "-o", in("e"))
	loratool(t, "convert", in("e.lora"), "-o", in("from-container"))
	loratool(t, "convert", in("e"), "-o", in("from-directory.lora"))
	loratool(t, "convert", in("from-directory.lora"), "-o", in("and-back"))
	for _, a := range []string{"a.lora", "a", "e.lora", "e", "from-container", "from-directory.lora", "and-back"} {
		loratool(t, "merge", base, in(a), "--dry-run")
		var stdout, stderr bytes.Buffer
		code := run(context.Background(), []string{"loratool", "merge", tuned, in(a), "-o", in("out")}, &stdout, &stderr)
		if code != exitInput || !bytes.Contains(stderr.Bytes(), []byte("made for another base")) {
			t.Errorf("%s: exits with %d and says %s", a, code, stderr.String())
		}
	}
	loratool(t, "merge", tuned, in("e.lora"), "--dry-run", "--any-base")
}
