package merge_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fault"
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

// TestConfigFollowsTheVocabulary: config.json says what has become of the model, and every other byte of it stays.
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

// TestIndexNamesTheNewHead: a sharded checkpoint stays one that can be loaded.
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
	const head = 48 * 32 // elements, of two bytes
	if m := index.Metadata; m.Size != 18624+2*head || m.Parameters != 9312+head {
		t.Errorf("the index says %d bytes and %d parameters, want %d and %d", m.Size, m.Parameters, 18624+2*head, 9312+head)
	}
	if got, want := index.Map["lm_head.weight"], "model-00001-of-00002.safetensors"; got != want || len(index.Map) != 12 {
		t.Errorf("the index has %d tensors, the head in %q, want 12 and %q", len(index.Map), got, want)
	}
}

// TestTiesAreNotUntiedBlindly: what --tied cannot do is refused, with the reason.
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
		{"llama-tied", "merge/lm-head", merge.Options{Reading: merge.Reading{Tied: merge.Untie}, Undo: new(strings.Builder)}, "undo record"},
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
