package rank_test

import (
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// squares returns the sum of the squares of tuned − base, the shorter one padded with zeros.
func squares(base, tuned []float64) (sum float64) {
	for i := range max(len(base), len(tuned)) {
		var d float64
		if i < len(tuned) {
			d += tuned[i]
		}
		if i < len(base) {
			d -= base[i]
		}
		sum += d * d
	}
	return sum
}

// TestTheErrorIsOverAllThatChanged: every change left out counts, by the rule in the help text and
// for any reason.
func TestTheErrorIsOverAllThatChanged(t *testing.T) {
	rng := rand.New(rand.NewPCG(91, 92))
	const tied, untied = `{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":true}`,
		`{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":false}`
	random := func(name string, shape ...uint64) testkit.Tensor {
		return testkit.Random(rng, name, dtype.F32, 0.1, shape...)
	}
	q, e, h := random("q.weight", 10, 8), random("model.embed_tokens.weight", 12, 8), random("lm_head.weight", 12, 8)
	q2, e2 := changed(rng, q, 2, 0.01), changed(rng, e, 2, 0.01)
	more, fewer, wider := random(e.Name, 15, 8), random(e.Name, 9, 8), random(e.Name, 12, 9)
	norm, norm2 := random("norm.weight", 8), random("norm.weight", 8)
	for _, c := range []struct {
		name, config string
		base, tuned  []testkit.Tensor
		options      rank.ExtractOptions
		tensor       string
		left, whole  float64
	}{
		{name: "rows that are new", config: untied, base: []testkit.Tensor{q, e}, tuned: []testkit.Tensor{q2, more}, tensor: e.Name, left: squares(load(e), load(more))},
		{name: "rows that are gone", config: untied, base: []testkit.Tensor{q, e}, tuned: []testkit.Tensor{q2, fewer}, tensor: e.Name, left: squares(load(e), load(fewer))},
		{name: "another width", config: untied, base: []testkit.Tensor{q, e}, tuned: []testkit.Tensor{q2, wider}, tensor: e.Name, left: squares(load(e), nil) + squares(nil, load(wider))},
		{name: "a new head of a base without ties", config: untied, base: []testkit.Tensor{q, e}, tuned: []testkit.Tensor{q2, e, h}, tensor: h.Name, left: squares(nil, load(h))},
		{name: "a head that is gone", config: untied, base: []testkit.Tensor{q, e, h}, tuned: []testkit.Tensor{q2, e}, tensor: h.Name, left: squares(load(h), nil)},
		{name: "a head that both tie", config: tied, base: []testkit.Tensor{q, e}, tuned: []testkit.Tensor{q2, e, {Name: h.Name, DType: e.DType, Shape: e.Shape, Data: e.Data}}, tensor: h.Name},
		{name: "excluded", config: untied, base: []testkit.Tensor{q, e}, tuned: []testkit.Tensor{q2, e2}, tensor: e.Name, left: squares(load(e), load(e2)), options: rank.ExtractOptions{Exclude: []*regexp.Regexp{regexp.MustCompile("embed")}}},
		{name: "low rank alone", config: untied, base: []testkit.Tensor{q, norm}, tuned: []testkit.Tensor{q2, norm2}, tensor: norm.Name, left: squares(load(norm), load(norm2)), options: rank.ExtractOptions{Only: true}},
		{name: "carried whole", config: untied, base: []testkit.Tensor{q, norm}, tuned: []testkit.Tensor{q2, norm2}, whole: squares(load(norm), load(norm2))},
	} {
		basePath, tunedPath := pairOf(t, c.config, c.base, c.tuned)
		c.options.Rule = rank.FixedRank{K: 1}
		_, report, err := extract(t, basePath, tunedPath, c.options)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		layer := report.Layers[0]
		extracted := layer.Frobenius * layer.Frobenius
		all := extracted + c.left + c.whole
		want := math.Sqrt((layer.Rounded*layer.Rounded*extracted + c.left) / all)
		near := func(what string, got, want float64) {
			if !(math.Abs(got-want) <= 1e-6*want) { // differences are rounded to float32
				t.Errorf("%s: %s %.9g, want %.9g", c.name, what, got, want)
			}
		}
		near("error", report.Rounded, want)
		near("energy", report.Energy, 1-report.Error*report.Error)
		near("share that is left out", report.LeftOut, math.Sqrt(c.left/all))
		if c.tensor == "" {
			continue
		}
		i := slices.IndexFunc(report.Skipped, func(s rank.Skipped) bool { return s.Tensor == c.tensor })
		if i < 0 {
			t.Errorf("%s: %s is not listed: %v", c.name, c.tensor, report.Skipped)
			continue
		}
		near("share of "+c.tensor, report.Skipped[i].Share, math.Sqrt(c.left/all))
		isWarned := slices.ContainsFunc(report.Warnings, func(w string) bool { return strings.Contains(w, c.tensor) })
		if asked := c.options.Exclude != nil; isWarned == asked && c.left > 0 {
			t.Errorf("%s: the warnings are %q", c.name, report.Warnings)
		}
	}
}

// TestAHeadOfItsOwnCountsFromTheEmbedding: one checkpoint has a head, the other ties it.
func TestAHeadOfItsOwnCountsFromTheEmbedding(t *testing.T) {
	rng := rand.New(rand.NewPCG(93, 94))
	const config = `{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":`
	e := testkit.Random(rng, "model.embed_tokens.weight", dtype.F32, 0.1, 12, 8)
	e2, h := changed(rng, e, 2, 0.01), testkit.Random(rng, "lm_head.weight", dtype.F32, 0.1, 12, 8)
	basePath, tunedPath := pairOf(t, config+"true}", []testkit.Tensor{e}, []testkit.Tensor{e2, h})
	testkit.Write(t, tunedPath+"/config.json", []byte(config+"false}"))
	for _, c := range []struct {
		base, tuned string
		left        float64
	}{{basePath, tunedPath, squares(load(e), load(h))}, {tunedPath, basePath, squares(load(h), load(e))}} {
		_, report, err := extract(t, c.base, c.tuned, rank.ExtractOptions{Rule: rank.FixedRank{K: 2}})
		if err != nil {
			t.Fatal(err)
		}
		want := math.Sqrt(c.left / (c.left + squares(load(e), load(e2))))
		if math.Abs(report.LeftOut-want) > 1e-6*want {
			t.Errorf("LeftOut = %.9g of |Δ|, want %.9g", report.LeftOut, want)
		}
	}
}

// TestTiesOfUnknownModelsAreSeen: for an unlisted model type the class, vocab_size and the shape of
// the head identify the embedding, as in a merge.
func TestTiesOfUnknownModelsAreSeen(t *testing.T) {
	rng := rand.New(rand.NewPCG(97, 98))
	const class = `{"model_type":"new","architectures":["NewForCausalLM"]`
	e := testkit.Random(rng, "backbone.tokens.weight", dtype.F32, 0.1, 12, 8)
	q := testkit.Random(rng, "backbone.layers.0.q.weight", dtype.F32, 0.1, 8, 8)
	e2, h := changed(rng, e, 2, 0.01), testkit.Random(rng, "lm_head.weight", dtype.F32, 0.1, 12, 8)
	for _, c := range []struct {
		name, config string
		tuned        []testkit.Tensor
		left         float64
	}{
		{"tied on both sides, by vocab_size", class + `,"vocab_size":12}`, []testkit.Tensor{e2, q}, 0},
		{"tied on both sides, by text_config",
			class + `,"tie_word_embeddings":false,"text_config":{"tie_word_embeddings":true,"vocab_size":12}}`,
			[]testkit.Tensor{e2, q}, 0},
		{"a head of its own, by its shape", class + `}`, []testkit.Tensor{e2, q, h}, squares(load(e), load(h))},
	} {
		basePath, tunedPath := pairOf(t, c.config, []testkit.Tensor{e, q}, c.tuned)
		src, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 2}})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		a := &src.Manifest().Adapters[0]
		if len(a.Requires) != 1 || a.Requires[0].Feature != format.FeatureWeightTying {
			t.Errorf("%s: the adapter requires %v, want the tie", c.name, a.Requires)
		}
		if kind := a.Layers[0].Kind; kind != format.Embedding {
			t.Errorf("%s: the embedding is a layer of kind %s", c.name, kind)
		}
		want := math.Sqrt(c.left / (c.left + squares(load(e), load(e2))))
		if math.Abs(report.LeftOut-want) > 1e-6*want {
			t.Errorf("%s: LeftOut = %.9g of |Δ|, want %.9g", c.name, report.LeftOut, want)
		}
	}
}

// TestAHeadThatTheClassDoesNotHaveIsNotGone: the fine-tune was saved from the model's trunk.
func TestAHeadThatTheClassDoesNotHaveIsNotGone(t *testing.T) {
	rng := rand.New(rand.NewPCG(99, 100))
	q, h := testkit.Random(rng, "model.q.weight", dtype.F32, 0.1, 6, 4), testkit.Random(rng, "lm_head.weight", dtype.F32, 0.1, 6, 4)
	q2 := testkit.Random(rng, "q.weight", dtype.F32, 0.1, 6, 4)
	basePath, tunedPath := pairOf(t, `{"model_type":"llama","architectures":["LlamaForCausalLM"]}`, []testkit.Tensor{q, h}, []testkit.Tensor{q2})
	for class, want := range map[string]bool{"LlamaModel": false, "LlamaForCausalLM": true} {
		testkit.Write(t, tunedPath+"/config.json", []byte(`{"model_type":"llama","architectures":["`+class+`"]}`))
		_, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 2}})
		if err != nil {
			t.Fatal(err)
		}
		if got := report.LeftOut > 0; got != want {
			t.Errorf("%s: the head that only the base has counts: %v, want %v", class, got, want)
		}
	}
}

// TestNamesOfTheOtherTransformersArePaired: another version of transformers, or another class,
// saved the fine-tune.
func TestNamesOfTheOtherTransformersArePaired(t *testing.T) {
	rng := rand.New(rand.NewPCG(95, 96))
	for _, c := range []struct {
		name        string
		base, tuned []string
	}{
		{"the half of a model of images and text", []string{"language_model.model.layers.0.q.weight", "language_model.model.norm.weight"}, []string{"model.language_model.layers.0.q.weight", "model.language_model.norm.weight"}},
		{"and back", []string{"model.language_model.layers.0.q.weight", "model.language_model.norm.weight"}, []string{"language_model.model.layers.0.q.weight", "language_model.model.norm.weight"}},
		{"a trunk", []string{"model.layers.0.q.weight", "model.norm.weight", "lm_head.weight"}, []string{"layers.0.q.weight", "norm.weight"}},
		{"a base that is a trunk", []string{"layers.0.q.weight", "norm.weight"}, []string{"model.layers.0.q.weight", "model.norm.weight", "lm_head.weight"}},
		{"a compiled model", []string{"layers.0.q.weight", "norm.weight"}, []string{"_orig_mod.layers.0.q.weight", "_orig_mod.norm.weight"}},
	} {
		make := func(names []string) (all []testkit.Tensor) {
			for _, name := range names {
				shape := []uint64{6, 4}
				if strings.Contains(name, "norm") {
					shape = []uint64{4}
				}
				all = append(all, testkit.Random(rng, name, dtype.F32, 0.1, shape...))
			}
			return all
		}
		basePath, tunedPath := pairOf(t, "", make(c.base), make(c.tuned))
		src, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 2}})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		a := &src.Manifest().Adapters[0]
		if len(a.Layers) != 1 || a.Layers[0].Module+".weight" != c.base[0] || len(a.Beside) != 1 || a.Beside[0].Target != c.base[1] {
			t.Errorf("%s: layers %+v and beside %+v, want those of the base", c.name, a.Layers, a.Beside)
		}
		said := slices.ContainsFunc(report.Warnings, func(w string) bool { return strings.Contains(w, "tensor names") })
		if said != (c.name != "a compiled model") {
			t.Errorf("%s: the warnings %q do not say how the names are read", c.name, report.Warnings)
		}
	}
}

// TestAnUncertainTieIsSaid: extract answers as merge does where nothing says whether the head is
// tied to the embedding that changed.
func TestAnUncertainTieIsSaid(t *testing.T) {
	rng := rand.New(rand.NewPCG(91, 92))
	const class = `{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":`
	embed := testkit.Random(rng, "model.embed_tokens.weight", dtype.F32, 1, 16, 8)
	embed2 := testkit.Random(rng, embed.Name, dtype.F32, 1, 16, 8)
	q := testkit.Random(rng, "model.layers.0.self_attn.q_proj.weight", dtype.F32, 1, 8, 8)
	q2 := testkit.Random(rng, q.Name, dtype.F32, 1, 8, 8)
	for _, c := range []struct {
		name, config string
		tuned        []testkit.Tensor
		want         bool
	}{
		{"no configuration", "", []testkit.Tensor{embed2, q2}, true},
		{"config.json denies it and there is no head", class + "false}", []testkit.Tensor{embed2, q2}, true},
		{"the embedding is as it was", "", []testkit.Tensor{embed, q2}, false},
		{"the tie is certain", class + "true}", []testkit.Tensor{embed2, q2}, false},
	} {
		for _, forPEFT := range []bool{false, c.config != ""} {
			o := rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, PEFT: forPEFT}
			basePath, tunedPath := pairOf(t, c.config, []testkit.Tensor{embed, q}, c.tuned)
			_, report, err := extract(t, basePath, tunedPath, o)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			isSaid := func(w string) bool { return strings.Contains(w, "the output head may be tied to it") }
			if got := slices.ContainsFunc(report.Warnings, isSaid); got != c.want {
				t.Errorf("%s: warnings %q, want one of a tie: %v", c.name, report.Warnings, c.want)
			}
		}
	}
}

// TestAHeadThatMayBeTiedCountsWhole: where nothing says whether a checkpoint without a head ties
// it, the change of the other's head is measured against zeros, and the report says so.
func TestAHeadThatMayBeTiedCountsWhole(t *testing.T) {
	rng := rand.New(rand.NewPCG(93, 94))
	const class = `{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":`
	embed := testkit.Random(rng, "model.embed_tokens.weight", dtype.F32, 1, 16, 8)
	head := testkit.Random(rng, "lm_head.weight", dtype.F32, 1, 16, 8)
	q := testkit.Random(rng, "model.layers.0.self_attn.q_proj.weight", dtype.F32, 1, 8, 8)
	q2 := testkit.Random(rng, q.Name, dtype.F32, 1, 8, 8)
	with, without := []testkit.Tensor{embed, q2, head}, []testkit.Tensor{embed, q}
	for _, c := range []struct {
		name, config string
		base, tuned  []testkit.Tensor
		want         bool
	}{
		{"no configuration, a new head", "", without, with, true},
		{"no configuration, a head that is gone", "", with, without, true},
		{"config.json denies the tie", class + "false}", without, with, true},
		{"the tie is certain", class + "true}", without, with, false},
	} {
		basePath, tunedPath := pairOf(t, c.config, c.base, c.tuned)
		o := rank.ExtractOptions{Rule: rank.FixedRank{K: 2}}
		_, report, err := extract(t, basePath, tunedPath, o)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		isHead := func(s rank.Skipped) bool { return s.Tensor == head.Name }
		i := slices.IndexFunc(report.Skipped, isHead)
		if i < 0 {
			t.Fatalf("%s: the head is not listed: %+v", c.name, report.Skipped)
		}
		if why := report.Skipped[i].Why; strings.Contains(why, "counts whole") != c.want {
			t.Errorf("%s: the head is left out as %q, want one that counts whole: %v", c.name, why, c.want)
		}
	}
}
