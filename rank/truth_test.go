package rank_test

import (
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// truth holds PEFT's answers about one class of models, from testdata/extract/peft/truth.py.
type truth struct {
	Config json.RawMessage
	Disk   map[string][]json.RawMessage   // shape, and the name in memory if it differs
	State  map[string][]uint64            // in memory
	LoRA   map[string]map[string][]uint64 // module → end of the key → shape at rank 1
	Params map[string]map[string][]uint64 // parameters, joined by commas → keys → shape at rank 1
}

func (x *truth) shape(t *testing.T, disk string) (shape []uint64) {
	t.Helper()
	if err := json.Unmarshal(x.Disk[disk][0], &shape); err != nil {
		t.Fatal(err)
	}
	return shape
}

func (x *truth) live(t *testing.T, disk string) (name string) {
	t.Helper()
	if len(x.Disk[disk]) == 1 {
		return disk
	}
	if err := json.Unmarshal(x.Disk[disk][1], &name); err != nil {
		t.Fatal(err)
	}
	return name
}

// peftConfig holds the fields of an adapter's configuration that PEFT reads.
type peftConfig struct {
	R           int            `json:"r"`
	RankPattern map[string]int `json:"rank_pattern"`
	Targets     []string       `json:"target_modules"`
	Parameters  []string       `json:"target_parameters"`
	Save        []string       `json:"modules_to_save"`
	Bias        string         `json:"bias"`
}

// rank returns the rank of a module or parameter, found like get_pattern_key of PEFT 0.21.2.
func (c *peftConfig) rank(name string) uint64 {
	for key, r := range c.RankPattern {
		if regexp.MustCompile(`^(.*\.)?(` + key + `)$`).MatchString(name) {
			return uint64(r)
		}
	}
	return uint64(c.R)
}

// notHeld lists the parameters that no PEFT adapter can represent: others of their module have
// factors, or PEFT's comparison of path ends confuses them. Extract must refuse them by name.
var notHeld = map[string][]string{
	"Qwen3_5ForCausalLM": {"model.layers.0.linear_attn.A_log", "model.layers.0.linear_attn.dt_bias"},
	"GptOssForCausalLM":  {"model.layers.0.mlp.experts.down_proj_bias", "model.layers.0.mlp.experts.gate_up_proj_bias", "model.layers.0.self_attn.sinks"},
	"MambaForCausalLM":   {"backbone.layers.0.mixer.A_log", "backbone.layers.0.mixer.D"},
	"Mamba2ForCausalLM":  {"backbone.layers.0.mixer.A_log", "backbone.layers.0.mixer.D", "backbone.layers.0.mixer.dt_bias"},
	"CLIPModel":          {"logit_scale"},
	"SiglipModel":        {"logit_bias", "logit_scale"},
	"ViTModel":           {"embeddings.cls_token", "embeddings.position_embeddings"},
	"Dinov2Model":        {"embeddings.cls_token", "embeddings.mask_token", "embeddings.position_embeddings"},
	"Wav2Vec2ForCTC":     {"wav2vec2.masked_spec_embed"},

	"FalconMambaForCausalLM": {"backbone.layers.0.mixer.A_log", "backbone.layers.0.mixer.D"},
	"ConvNextModel":          {"encoder.stages.0.layers.0.layer_scale_parameter", "encoder.stages.1.layers.0.layer_scale_parameter"},
	"DeiTModel":              {"embeddings.cls_token", "embeddings.distillation_token", "embeddings.position_embeddings"},
	"Dinov2WithRegistersModel": {"embeddings.cls_token", "embeddings.mask_token", "embeddings.position_embeddings",
		"embeddings.register_tokens"},
	"BartForConditionalGeneration":  {"final_logits_bias"},
	"MBartForConditionalGeneration": {"final_logits_bias"},
}

// TestPEFTAcceptsEveryKey extracts a fine-tune of every class with changes in all tensors. Its keys
// and shapes must be exactly those that PEFT expects for the configuration.
func TestPEFTAcceptsEveryKey(t *testing.T) {
	text, err := os.ReadFile("../testdata/extract/peft/truth.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]*truth
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) < 40 {
		t.Errorf("%d classes, want 40 at least", len(all))
	}
	rng := rand.New(rand.NewPCG(97, 98))
	for _, class := range slices.Sorted(maps.Keys(all)) {
		x := all[class]
		var base, tuned []testkit.Tensor
		for _, name := range slices.Sorted(maps.Keys(x.Disk)) {
			base = append(base, testkit.Random(rng, name, dtype.F32, 0.1, x.shape(t, name)...))
			tuned = append(tuned, testkit.Random(rng, name, dtype.F32, 0.1, x.shape(t, name)...))
		}
		basePath, tunedPath := pairOf(t, string(x.Config), base, tuned)
		o := rank.ExtractOptions{Rule: rank.EnergyShare{Share: 0.7}, PEFT: true}
		if refused := notHeld[class]; refused != nil {
			_, _, err := extract(t, basePath, tunedPath, o)
			if !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), refused[0]) {
				t.Errorf("%s: %v, want a refusal of %q", class, err, refused)
				continue
			}
			for _, name := range refused {
				o.Exclude = append(o.Exclude, regexp.MustCompile("^"+regexp.QuoteMeta(name)+"$"))
			}
		}
		src, _, err := extract(t, basePath, tunedPath, o)
		if err != nil {
			t.Errorf("%s: %v", class, err)
			continue
		}
		out := filepath.Join(t.TempDir(), "adapter")
		sink, err := convert.Create(out, convert.PEFT(), convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := sink.Store(t.Context(), src); err != nil {
			t.Errorf("%s: %v", class, err)
			continue
		}
		x.compare(t, class, out)
	}
}

// compare checks the adapter in a directory against PEFT's expectations.
func (x *truth) compare(t *testing.T, class, dir string) {
	var c peftConfig
	text, err := os.ReadFile(filepath.Join(dir, format.PEFTConfig))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	weights, err := checkpoint.Open(t.Context(), filepath.Join(dir, "adapter_model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer weights.Close()
	want, held := x.keys(t, class, &c)
	for _, name := range weights.Names() {
		key := strings.TrimPrefix(name, "base_model.model.")
		ref, _ := weights.Lookup(name)
		shape, ok := want[key]
		delete(want, key)
		if plain := strings.ReplaceAll(key, ".base_layer.", "."); !ok && strings.HasSuffix(key, ".bias") && c.Bias != "none" {
			shape, ok = x.State[plain]
			held[plain] = true
		}
		if !ok || !slices.Equal(shape, ref.Tensor.Shape) {
			t.Errorf("%s: the key %q of shape %d, and PEFT has %d there", class, key, ref.Tensor.Shape, shape)
		}
	}
	for key, shape := range want {
		t.Errorf("%s: there is no %q of shape %d, which PEFT has for this configuration", class, key, shape)
	}
	for name := range x.Disk {
		if live := x.live(t, name); !held[live] && !slices.Contains(notHeld[class], name) {
			t.Errorf("%s: %q differs and is not in the adapter", class, live)
		}
	}
	for live := range x.State { // the other ends of tied embeddings
		if !held[live] && !slices.Contains(notHeld[class], live) {
			t.Errorf("%s: %q shares its weight with one that differs, and is not in the adapter", class, live)
		}
	}
}

// keys returns PEFT's keys for a configuration; held are the parameters that these change.
func (x *truth) keys(t *testing.T, class string, c *peftConfig) (keys map[string][]uint64, held map[string]bool) {
	keys, held = make(map[string][]uint64), make(map[string]bool)
	modules := make(map[string]bool)
	for name := range x.State {
		for i := strings.LastIndexByte(name, '.'); i >= 0; i = strings.LastIndexByte(name[:i], '.') {
			modules[name[:i]] = true
		}
	}
	add := func(key string, shape []uint64, r uint64) {
		if _, ok := keys[key]; ok {
			t.Errorf("%s: PEFT would have %q twice", class, key)
		}
		scaled := slices.Clone(shape)
		if strings.Contains(key, "_A") {
			scaled[0] *= r
		} else {
			scaled[1] *= r
		}
		keys[key] = scaled
	}
	saved := func(name string) bool {
		return slices.ContainsFunc(c.Save, func(s string) bool {
			return slices.ContainsFunc(slices.Collect(maps.Keys(modules)), func(m string) bool { return strings.HasSuffix(m, s) && strings.HasPrefix(name, m+".") })
		})
	}
	for module := range modules {
		if !slices.ContainsFunc(c.Targets, func(target string) bool { return module == target || strings.HasSuffix(module, "."+target) }) {
			continue
		}
		if x.LoRA[module] == nil || saved(module+".weight") {
			t.Errorf("%s: target_modules names %q, which PEFT does not adapt", class, module)
		}
		for end, shape := range x.LoRA[module] {
			add(module+"."+end, shape, c.rank(module))
		}
		held[module+".weight"] = true
	}
	for joined, tensors := range x.Params {
		names := strings.Split(joined, ",")
		if !slices.Contains(c.Parameters, names[0]) {
			continue
		}
		for _, name := range names {
			if !slices.Contains(c.Parameters, name) || len(names) > 1 && c.rank(name) != c.rank(names[0]) {
				continue
			}
			held[name] = true
		}
		for key, shape := range tensors {
			name := names[len(names)-1] // the last one is outermost
			if strings.Contains(key, ".base_layer.") {
				name = names[0]
			}
			held[name] = true
			add(key, shape, c.rank(name))
		}
	}
	for name, shape := range x.State {
		if saved(name) {
			keys[name], held[name] = shape, true
		}
	}
	return keys, held
}

// TestOneOfTheParametersOfExpertsIsNotNested: PEFT nests only the parameters that it adapts.
func TestOneOfTheParametersOfExpertsIsNotNested(t *testing.T) {
	rng := rand.New(rand.NewPCG(101, 102))
	up := testkit.Random(rng, "mlp.experts.gate_up_proj", dtype.F32, 0.1, 3, 8, 4)
	down := testkit.Random(rng, "mlp.experts.down_proj", dtype.F32, 0.1, 3, 4, 6)
	up2 := testkit.Random(rng, up.Name, dtype.F32, 0.1, 3, 8, 4)
	basePath, tunedPath := pairOf(t, `{"model_type":"granitemoe"}`, []testkit.Tensor{up, down}, []testkit.Tensor{up2, down})
	for _, forPEFT := range []bool{false, true} {
		src, _, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, PEFT: forPEFT})
		if err != nil {
			t.Fatal(err)
		}
		a := &src.Manifest().Adapters[0]
		if len(a.Layers) != 1 || a.Layers[0].Module != "mlp.experts" || len(a.Requires) != 1 || a.Requires[0].Where != up.Name {
			t.Errorf("for PEFT %v: layers %+v, requires %+v, want mlp.experts for %s", forPEFT, a.Layers, a.Requires, up.Name)
		}
	}
}

// TestForPEFTWhatItCannotHoldIsLeftOutOnRequest: the report gives its share of Δ. A model type with
// unknown names in memory is refused.
func TestForPEFTWhatItCannotHoldIsLeftOutOnRequest(t *testing.T) {
	rng := rand.New(rand.NewPCG(103, 104))
	random := func(name string, shape ...uint64) testkit.Tensor {
		return testkit.Random(rng, name, dtype.F32, 0.1, shape...)
	}
	make := func() []testkit.Tensor {
		return []testkit.Tensor{random("layers.0.mixer.D", 8), random("layers.0.mixer.in_proj.weight", 8, 4), random("layers.0.mixer.out_proj.weight", 4, 8)}
	}
	base, tuned := make(), make()
	o := rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, PEFT: true, Only: true}
	basePath, tunedPath := pairOf(t, `{"model_type":"mamba2"}`, base, tuned)
	src, report, err := extract(t, basePath, tunedPath, o)
	if err != nil {
		t.Fatal(err)
	}
	a := &src.Manifest().Adapters[0]
	if len(a.Layers) != 1 || a.Layers[0].Module != "layers.0.mixer.in_proj" || len(a.Beside) != 0 {
		t.Errorf("layers %+v and beside %+v, want in_proj alone", a.Layers, a.Beside)
	}
	for _, s := range report.Skipped {
		if s.Share == 0 {
			t.Errorf("%s is left out with no share of Δ", s.Tensor)
		}
	}
	basePath, tunedPath = pairOf(t, `{"model_type":"nomic_bert"}`, base, tuned)
	if _, _, err := extract(t, basePath, tunedPath, o); !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), "nomic_bert") {
		t.Errorf("%v, want a refusal that names the type", err)
	}
}

// TestPEFTHasAWordForNoTargets: PEFT refuses an empty list, so the configuration needs that word.
func TestPEFTHasAWordForNoTargets(t *testing.T) {
	rng := rand.New(rand.NewPCG(105, 106))
	base := []testkit.Tensor{testkit.Random(rng, "norm.weight", dtype.F32, 0.1, 8)}
	tuned := []testkit.Tensor{testkit.Random(rng, "norm.weight", dtype.F32, 0.1, 8)}
	basePath, tunedPath := pairOf(t, "", base, tuned)
	src, _, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, PEFT: true})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "adapter")
	sink, err := convert.Create(out, convert.PEFT(), convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Store(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(out, format.PEFTConfig))
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(text, &c); err != nil || c["target_modules"] != "dummy-target-modules" {
		t.Errorf("target_modules is %v (%v), want PEFT's word for none", c["target_modules"], err)
	}
	back, err := convert.Open(t.Context(), out, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if b := back.Manifest().Adapters[0].Beside; len(b) != 1 || b[0].Target != "norm.weight" {
		t.Errorf("read back: beside %+v, want norm.weight", b)
	}
}
