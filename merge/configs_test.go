package merge_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
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

// publishedConfig holds the fields that shape an adapter.
type publishedConfig struct {
	Type    string `json:"peft_type"`
	R       uint64 `json:"r"`
	Targets names  `json:"target_modules"`
	Save    names  `json:"modules_to_save"`
	DoRA    bool   `json:"use_dora"`
	KaSA    any    `json:"kasa_config"`
	Init    any    `json:"init_lora_weights"`
	BDLoRA  *struct {
		A      []string `json:"target_modules_bd_a"`
		B      []string `json:"target_modules_bd_b"`
		Blocks uint64   `json:"nblocks"`
	} `json:"use_bdlora"`
}

// names is a list of names without duplicates; JSON may have a single string.
type names []string

func (n *names) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		*n = make(names, 1)
		return json.Unmarshal(text, &(*n)[0])
	}
	err := json.Unmarshal(text, (*[]string)(n))
	slices.Sort(*n)
	*n = slices.Compact(*n)
	return err
}

// TestPublishedConfigurations builds an adapter to each of the 287 configurations in
// testdata/configs, and merges it or reads the refusal. The refusal names a method other than LoRA.
// The manifest requires each feature beyond plain LoRA by name, whether or not this version applies
// it.
func TestPublishedConfigurations(t *testing.T) {
	f, err := os.Open("../testdata/configs/peft.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, merged := 0, 0
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		var line struct{ Path, Text string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprint(n, " ", filepath.Base(filepath.Dir(line.Path))), func(t *testing.T) {
			if mergePublished(t, line.Text) {
				merged++
			}
		})
	}
	if n != 287 || merged < 59 {
		t.Errorf("%d configurations, %d of which are merged; want 287 and at least 59", n, merged)
	}
}

// mergePublished reports whether the adapter was merged.
func mergePublished(t *testing.T, text string) bool {
	var c publishedConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	adapter, base := c.make()
	testkit.Write(t, filepath.Join(dir, "adapter/adapter_config.json"), []byte(text))
	testkit.Write(t, filepath.Join(dir, "adapter/adapter_model.safetensors"), testkit.Encode(nil, adapter...))
	testkit.Write(t, filepath.Join(dir, "base.safetensors"), testkit.Encode(nil, base...))
	src, err := convert.Open(t.Context(), filepath.Join(dir, "adapter"), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()

	a := &src.Manifest().Adapters[0]
	var required []format.Feature
	for _, r := range a.Requires {
		compact := c.BDLoRA != nil && r.Feature == format.FeatureRankMismatch // the shape of a compact factor does not show its rank
		if !slices.Contains(required, r.Feature) && !compact {
			required = append(required, r.Feature)
		}
	}
	if want := c.features(); !slices.Equal(required, want) {
		t.Errorf("the adapter requires %q, want %q", required, want)
	}
	why, hint := merge.Refusals(a, src.Manifest().Tensors)
	plan, err := merge.Open(context.Background(), filepath.Join(dir, "base.safetensors"), []merge.Adapter{{Source: src, Weight: 1}}, merge.Options{})
	if len(why) > 0 {
		if err == nil || hint == "" || fault.KindName(err) != "unsupported" {
			t.Errorf("Open = %v (hint: %s), want a refusal with a hint: %q", err, hint, why)
		}
		if c.Type != "LORA" && !strings.Contains(why[0], "not LoRA") || strings.Contains(why[0], "no method of PEFT") {
			t.Errorf("a %s is refused because %q, want that it is not LoRA but another method of PEFT", c.Type, why)
		}
		return false
	}
	if err != nil {
		t.Fatal(err, fault.Hint(err))
	}
	defer plan.Close()
	report, err := plan.Run(context.Background(), filepath.Join(dir, "out.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Layers) != len(a.Layers) || len(report.Replaced) != len(a.Beside) || len(a.Layers) < len(c.targets()) {
		t.Errorf("%d layers merged and %d tensors replaced of %d and %d, and %d targets", len(report.Layers), len(report.Replaced), len(a.Layers), len(a.Beside), len(c.targets()))
	}
	if len(required) == 0 {
		mergeIntoOwnShapes(t, dir, src)
	}
	return true
}

// features lists the features that the adapter must require, sorted.
func (c *publishedConfig) features() (want []format.Feature) {
	if c.Type != "LORA" {
		return []format.Feature{format.FeaturePEFTType}
	}
	if c.BDLoRA != nil {
		want = append(want, format.FeatureBDLoRA)
	}
	if slices.Contains(c.targets(), "conv2d") {
		want = append(want, format.FeatureConvolution)
	}
	if c.DoRA {
		want = append(want, format.FeatureDoRA)
	}
	if c.KaSA != nil {
		want = append(want, format.FeatureKaSA)
	}
	for _, init := range []format.Feature{format.FeatureOLoRA, format.FeaturePiSSA} {
		if c.Init == string(init) {
			want = append(want, init)
		}
	}
	return want
}

// targets returns the last parts of the module names. Without any in the configuration, PEFT had
// taken a llama's.
func (c *publishedConfig) targets() []string {
	if c.Targets == nil {
		return []string{"q_proj", "v_proj"}
	}
	return c.Targets
}

// make returns an adapter and a base for it. Every module is 16×12, except embeddings and
// convolutions.
func (c *publishedConfig) make() (adapter, base []testkit.Tensor) {
	const m, n = 16, 12
	rng := rand.New(rand.NewPCG(1, 2))
	add := func(tensors *[]testkit.Tensor, name string, shape ...uint64) {
		*tensors = append(*tensors, testkit.Random(rng, name, dtype.BF16, 0.02, shape...))
	}
	r := max(c.R, 1) // some methods have no rank
	for _, target := range c.targets() {
		module := "model.layers.0." + target
		key := "base_model.model." + module
		switch {
		case target == "emb":
			add(&adapter, key+".lora_embedding_A", r, 40)
			add(&adapter, key+".lora_embedding_B", n, r)
			add(&base, module+".weight", 40, n)
			continue
		case target == "conv2d":
			add(&adapter, key+".lora_A.weight", r, n, 3, 3)
			add(&adapter, key+".lora_B.weight", m, r, 1, 1)
			add(&base, module+".weight", m, n, 3, 3)
			continue
		case c.BDLoRA != nil && slices.Contains(c.BDLoRA.A, target):
			add(&adapter, key+".lora_A.weight", r, n/c.BDLoRA.Blocks)
			add(&adapter, key+".lora_B.weight", m, r)
		case c.BDLoRA != nil && slices.Contains(c.BDLoRA.B, target):
			add(&adapter, key+".lora_A.weight", r, n)
			add(&adapter, key+".lora_B.weight", m, r/c.BDLoRA.Blocks)
		default:
			add(&adapter, key+".lora_A.weight", r, n)
			add(&adapter, key+".lora_B.weight", m, r)
		}
		add(&base, module+".weight", m, n)
		if c.DoRA {
			add(&adapter, key+".lora_magnitude_vector", m)
		}
		if c.KaSA != nil {
			add(&adapter, key+".lora_diag", r)
		}
	}
	for _, name := range c.Save {
		add(&adapter, "base_model.model."+name+".weight", m, n)
		add(&base, name+".weight", m, n)
	}
	return adapter, base
}
