package merge_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// mergeFixture merges a case and returns the output's directory.
func mergeFixture(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(fixtures, "merge", name)
	p, err := readFixture(t, dir).open(t, dir, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if _, err := p.Run(context.Background(), out); err != nil {
		t.Fatal(err)
	}
	return out
}

func readText(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestConfigFollowsTheVocabulary: config.json describes the new model, and every other byte stays.
func TestConfigFollowsTheVocabulary(t *testing.T) {
	for _, c := range []struct{ name, base, from, to string }{
		{"tied-head-untie", "llama-tied", `"tie_word_embeddings": true`, `"tie_word_embeddings": false`},
		{"tied-embedding-untie", "llama-tied", `"tie_word_embeddings": true`, `"tie_word_embeddings": false`},
		{"tied-tokens-untie", "gpt2", `"tie_word_embeddings": true`, `"tie_word_embeddings": false`},
		{"tied-head-fold", "llama-tied", "", ""},
		{"grown-vocabulary", "llama-bf16", `"vocab_size": 48`, `"vocab_size": 52`},
		{"grown-vocabulary-tied", "llama-tied", `"vocab_size": 48`, `"vocab_size": 52`},
	} {
		want := strings.Replace(readText(t, fixtures, "bases", c.base, "config.json"), c.from, c.to, 1)
		if got := readText(t, mergeFixture(t, c.name), "config.json"); got != want {
			t.Errorf("%s: config.json is\n%s\nwant\n%s", c.name, got, want)
		}
	}
}

// TestIndexNamesTheNewHead: a sharded checkpoint stays loadable.
func TestIndexNamesTheNewHead(t *testing.T) {
	var index struct {
		Metadata struct {
			Size       int64 `json:"total_size"`
			Parameters int64 `json:"total_parameters"`
		}
		Map map[string]string `json:"weight_map"`
	}
	text := readText(t, mergeFixture(t, "tied-sharded-untie"), "model.safetensors.index.json")
	if err := json.Unmarshal([]byte(text), &index); err != nil {
		t.Fatal(err)
	}
	const head = 48 * 32 // elements of two bytes
	if m := index.Metadata; m.Size != 18624+2*head || m.Parameters != 9312+head {
		t.Errorf("the index says %d bytes and %d parameters, want %d and %d", m.Size, m.Parameters, 18624+2*head, 9312+head)
	}
	if got, want := index.Map["lm_head.weight"], "model-00001-of-00002.safetensors"; got != want || len(index.Map) != 12 {
		t.Errorf("the index has %d tensors, the head in %q, want 12 and %q", len(index.Map), got, want)
	}
}

// TestTiesAreNotUntiedBlindly: a tie that --tied cannot handle is refused with the reason.
func TestTiesAreNotUntiedBlindly(t *testing.T) {
	for _, c := range []struct {
		base, adapter string
		options       merge.Options
		word          string
	}{
		{"llama-bf16", "merge/lm-head", merge.Options{Reading: merge.Reading{Tied: merge.Untie}}, "does not tie"},
		{"llama-bf16", "merge/lm-head", merge.Options{Reading: merge.Reading{Tied: merge.Fold}}, "does not tie"},
		{"t5", "merge/t5", merge.Options{Reading: merge.Reading{Tied: merge.Untie}}, "scales"},
		{"llama-tied", "merge/tokens-dict", merge.Options{Reading: merge.Reading{Tied: merge.Fold}}, "both"},
		{"llama-tied", "merge/grown-vocabulary", merge.Options{GrowVocabulary: true}, "tied"},
	} {
		_, err := openOne(t, c.base, c.adapter, c.options)
		if err == nil || !errors.As(err, new(*fault.Error)) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("merging %s into %s with %+v: %v, want an error with %q", c.adapter, c.base, c.options, err, c.word)
		}
	}
}

// openOne plans the merge of the adapter of a case into a base.
func openOne(t *testing.T, base, adapter string, options merge.Options) (*merge.Plan, error) {
	t.Helper()
	c := fixture{Base: base, Adapters: []string{"adapter"}}
	c.Options.Tied, c.Options.GrowVocabulary = options.Tied, options.GrowVocabulary
	return c.open(t, filepath.Join(fixtures, adapter), options)
}

// TestTrainedTokensAreForBothEnds: every PEFT release from 0.15.0 to 0.21.2 (14 were read) gives
// trained tokens to both ends of a tied model, so nothing is ambiguous. Since 0.19.0 the ends stay
// apart if a table names both with different rows.
func TestTrainedTokensAreForBothEnds(t *testing.T) {
	dir := filepath.Join(fixtures, "merge", "tied-tokens-fold")
	merged := func(tied merge.Tied) string {
		c := readFixture(t, dir)
		c.Options.Tied = tied
		p, err := c.open(t, dir, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out")
		if _, err := p.Run(context.Background(), out); err != nil {
			t.Fatal(err)
		}
		return readText(t, out, "model.safetensors")
	}
	if got, want := merged(""), merged(merge.Fold); got != want {
		t.Error("trained tokens without a flag are another model than those of --tied fold, which is PEFT's")
	}
}

// TestTiesOfUnknownModels: a generative model without a head ties it, whatever its type and the
// names of its ends. --tied works for it.
func TestTiesOfUnknownModels(t *testing.T) {
	for _, c := range []struct{ config, embedding, changed, head string }{
		{`{"model_type":"new","architectures":["NewForCausalLM"]}`, "backbone.tokens", "lm_head", "lm_head.weight"},
		{`{"model_type":"whisper","architectures":["WhisperForConditionalGeneration"]}`, "model.decoder.embed_tokens", "proj_out", "proj_out.weight"},
		{`{"model_type":"new","architectures":["NewForCausalLM"],"vocab_size":4}`, "backbone.tokens", "backbone.tokens", "lm_head.weight"},
	} {
		for tied, want := range map[merge.Tied]string{"": "tied", merge.Untie: c.head, merge.Fold: ""} {
			dir := t.TempDir()
			adapter := filepath.Join(dir, "adapter")
			testkit.Write(t, filepath.Join(dir, "model.safetensors"), testkit.Encode(nil,
				testkit.Values(c.embedding+".weight", dtype.F32, []uint64{4, 2}, 1, 2, 3, 4, 5, 6, 7, 8), testkit.Values("backbone.layers.0.q.weight", dtype.F32, []uint64{2, 2}, 1, 2, 3, 4)))
			testkit.Write(t, filepath.Join(dir, "config.json"), []byte(c.config))
			a, b := "lora_A.weight", "lora_B.weight"
			shapeA, shapeB := []uint64{1, 2}, []uint64{4, 1}
			values := [2][]float64{{1, 0}, {1, 1, 1, 1}}
			if c.changed == c.embedding {
				a, b, shapeA, shapeB = "lora_embedding_A", "lora_embedding_B", []uint64{1, 4}, []uint64{2, 1}
				values[0], values[1] = []float64{1, 1, 1, 1}, []float64{1, 0}
			}
			testkit.WriteAdapter(t, adapter, 1, 1,
				testkit.Values("base_model.model."+c.changed+"."+a, dtype.F32, shapeA, values[0]...),
				testkit.Values("base_model.model."+c.changed+"."+b, dtype.F32, shapeB, values[1]...))
			src, err := convert.Open(t.Context(), adapter, convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { src.Close() })
			p, err := merge.Open(context.Background(), dir, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{Reading: merge.Reading{Tied: tied}})
			if tied == "" {
				if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(fault.Hint(err), "Options.Tied=untie") {
					t.Errorf("%s, %s: %v, want a refusal that says it is tied", c.config, c.changed, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, %s, --tied %s: %v", c.config, c.changed, tied, err)
				continue
			}
			out := filepath.Join(t.TempDir(), "out")
			if _, err := p.Run(context.Background(), out); err != nil {
				t.Fatal(err)
			}
			p.Close()
			base, err := checkpoint.Open(t.Context(), out)
			if err != nil {
				t.Fatal(err)
			}
			_, hasHead := base.Lookup(c.head)
			if says := base.Config.TieWordEmbeddings; hasHead != (tied == merge.Untie) || hasHead && (says == nil || *says) {
				t.Errorf("%s, %s, --tied %s: has a head %v, names %q", c.config, c.changed, tied, hasHead, base.Names())
			}
			base.Close()
		}
	}
}
