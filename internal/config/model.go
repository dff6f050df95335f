// Package config reads and changes the config.json of a model of transformers. It
// knows texts, no files.
package config

import (
	"encoding/json"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// Model is the part of config.json that matters to programs that change weights. The zero value is
// that of a checkpoint without one.
type Model struct {
	Found              bool
	ModelType          string
	Architectures      []string
	TieWordEmbeddings  *bool  // nil where config.json does not say
	TextTie            *bool  // tie_word_embeddings of text_config, nil where that does not say
	VocabSize          uint64 // 0 where config.json does not say
	QuantizationMethod string
}

// Ties are the words of config.json about the tie between the two ends of a model. The caller adds
// the shapes of its tensors.
func (m *Model) Ties() naming.Model {
	return naming.Model{
		Shapes: make(map[string][]uint64), Configured: m.Found,
		ModelType: m.ModelType, Architectures: m.Architectures,
		Tie: m.TieWordEmbeddings, TextTie: m.TextTie, VocabSize: m.VocabSize,
	}
}

type file struct {
	ModelType     string          `json:"model_type"`
	Architectures []string        `json:"architectures"`
	Tie           *bool           `json:"tie_word_embeddings"`
	Quantization  json.RawMessage `json:"quantization_config"`
	TieOfLFM2     *bool           `json:"tie_embedding"`
	VocabSize     json.RawMessage `json:"vocab_size"` // of some models it is no number
	TextConfig    json.RawMessage `json:"text_config"`
}

// vocabSize is the number of tokens, 0 where it is not said.
func (f *file) vocabSize() (n uint64) {
	jsontext.Decode(f.VocabSize, &n)
	return n
}

// Parse reads a config.json. Its keys count as they are spelled, and what the fields of Model do
// not need may be anything.
func Parse(text []byte) (Model, error) {
	var f file
	if err := jsontext.Decode(text, &f); err != nil {
		return Model{}, fault.New(fault.Corrupt, "not the configuration of a model: %v", err)
	}
	c := Model{Found: true, ModelType: f.ModelType, Architectures: f.Architectures, TieWordEmbeddings: f.Tie}
	if f.TieOfLFM2 != nil && strings.HasPrefix(f.ModelType, "lfm2") {
		c.TieWordEmbeddings = f.TieOfLFM2 // transformers puts it over the other field
	}
	c.VocabSize = f.vocabSize()
	if len(f.TextConfig) > 0 {
		var text file
		if err := jsontext.Decode(f.TextConfig, &text); err != nil {
			return Model{}, fault.New(fault.Corrupt, "not the configuration of a model: text_config: %v", err)
		}
		c.TextTie = text.Tie
		if c.TieWordEmbeddings == nil {
			c.TieWordEmbeddings = text.Tie
		}
		c.VocabSize = max(c.VocabSize, text.vocabSize())
	}
	if len(f.Quantization) > 0 && string(f.Quantization) != "null" {
		var q struct {
			Method string `json:"quant_method"`
		}
		jsontext.Decode(f.Quantization, &q) // only the name is wanted
		c.QuantizationMethod = q.Method
		if q.Method == "" {
			c.QuantizationMethod = "unnamed"
		}
	}
	return c, nil
}
