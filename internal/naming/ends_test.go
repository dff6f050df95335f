package naming_test

import (
	_ "embed"
	"encoding/json"
	"testing"

	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/naming"
)

//go:embed ends.json
var endsOfTransformers []byte

// careful are the model types of which Ends says less than transformers knows, and why: none of
// them ties its ends, and merge at most asks for a decision that it would not need.
var careful = map[string]string{
	"bigbird_pegasus": "config.json says that they are tied, and the class does not tie them",
	"cpmant":          "config.json says that they are tied, and the embedding has more rows than the head",
	"rembert":         "the head is wider than the embedding, and no list knows its name",
	"encoder-decoder": "there are two models with an embedding each",
	"fsmt":            "there are two embeddings, and one of them is the head",
}

// TestEndsAreThoseOfTransformers: the ends of models as transformers builds and saves them, with
// the config.json of the release and with that of older ones, which left a tie out where it was the
// default.
func TestEndsAreThoseOfTransformers(t *testing.T) {
	var models []struct {
		Config          map[string]any
		Shapes          map[string][]uint64
		Embedding, Head string
		Tied            bool
	}
	if err := json.Unmarshal(endsOfTransformers, &models); err != nil {
		t.Fatal(err)
	}
	if len(models) < 60 {
		t.Fatalf("%d models, want at least 60", len(models))
	}
	for _, m := range models {
		check := func(what string) {
			text, err := json.Marshal(m.Config)
			if err != nil {
				t.Fatal(err)
			}
			c, err := config.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			model := c.Ties()
			for name, shape := range m.Shapes {
				model.Shapes[naming.StripWrappers(name)] = shape
			}
			want := naming.Ends{Embedding: naming.StripWrappers(m.Embedding), Head: naming.StripWrappers(m.Head), Tied: m.Tied}
			got := model.Ends()
			why := got.Why
			if careful[c.ModelType] != "" {
				if m.Tied || got.Embedding != "" && got.Embedding != want.Embedding {
					t.Errorf("%s, %s: %+v, want at most %+v", c.ModelType, what, got, want)
				}
				if got == want {
					t.Errorf("%s is found as it is: take it out of the list of those that are not", c.ModelType)
				}
				return
			}
			if got.Why = ""; got != want || m.Tied && why != "" {
				t.Errorf("%s, %s: %+v (%s), want %+v", c.ModelType, what, got, why, want)
			}
		}
		check("as it is")
		if m.Tied {
			delete(m.Config, "tie_word_embeddings")
			check("without tie_word_embeddings")
		}
	}
}
