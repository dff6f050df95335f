package checkpoint

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/jsonobject"
)

// maxJSONBytes bounds the configuration and index files that are read whole; the largest indexes in the wild, of models
// with thousands of experts, have some megabytes.
const maxJSONBytes = 64 << 20

// Config is what config.json says that matters to whoever changes weights. The zero value is that of a checkpoint
// without one.
type Config struct {
	Found              bool
	ModelType          string
	Architectures      []string
	TieWordEmbeddings  *bool  // nil where config.json does not say
	TextTie            *bool  // tie_word_embeddings of text_config, nil where that does not say
	VocabSize          uint64 // 0 where config.json does not say
	QuantizationMethod string
}

type configFile struct {
	ModelType     string          `json:"model_type"`
	Architectures []string        `json:"architectures"`
	Tie           *bool           `json:"tie_word_embeddings"`
	Quantization  json.RawMessage `json:"quantization_config"`
	TieOfLFM2     *bool           `json:"tie_embedding"`
	VocabSize     json.RawMessage `json:"vocab_size"` // of some models it is no number
	TextConfig    json.RawMessage `json:"text_config"`
}

// vocabSize is the number of tokens, 0 where it is not said.
func (f *configFile) vocabSize() (n uint64) {
	json.Unmarshal(f.VocabSize, &n)
	return n
}

func readConfig(path string) (Config, error) {
	text, err := fileio.ReadFile(path, maxJSONBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, err
	}
	var f configFile
	if _, err := jsonobject.Decode(text, &f); err != nil {
		return Config{}, fault.New(fault.Corrupt, "not the configuration of a model: %v", err).In(path)
	}
	c := Config{Found: true, ModelType: f.ModelType, Architectures: f.Architectures, TieWordEmbeddings: f.Tie}
	if f.TieOfLFM2 != nil && strings.HasPrefix(f.ModelType, "lfm2") {
		c.TieWordEmbeddings = f.TieOfLFM2 // transformers puts it over the other field
	}
	c.VocabSize = f.vocabSize()
	if len(f.TextConfig) > 0 {
		var text configFile
		if _, err := jsonobject.Decode(f.TextConfig, &text); err != nil {
			return Config{}, fault.New(fault.Corrupt, "not the configuration of a model: text_config: %v", err).In(path)
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
		jsonobject.Decode(f.Quantization, &q) // only the name is wanted
		c.QuantizationMethod = q.Method
		if q.Method == "" {
			c.QuantizationMethod = "unnamed"
		}
	}
	return c, nil
}

// readIndex returns the shards that an index lists, each a plain name, and the shard of every tensor.
func readIndex(dir, name string) (shards []string, shardOf map[string]string, err error) {
	path := filepath.Join(dir, name)
	text, err := fileio.ReadFile(path, maxJSONBytes)
	if err != nil {
		return nil, nil, err
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if _, err := jsonobject.Decode(text, &index); err != nil {
		return nil, nil, fault.New(fault.Corrupt, "not an index of shards: %v", err).In(path)
	}
	if len(index.WeightMap) == 0 {
		return nil, nil, fault.New(fault.Corrupt, "the index has no weight_map").In(path)
	}
	distinct := make(map[string]bool)
	for _, shard := range index.WeightMap {
		distinct[shard] = true
	}
	shards = slices.Sorted(maps.Keys(distinct))
	for _, shard := range shards {
		if !filepath.IsLocal(shard) || strings.ContainsAny(shard, `\`) {
			return nil, nil, fault.New(fault.Corrupt, "the index names %q, which is not a file of its directory", shard).In(path)
		}
	}
	return shards, index.WeightMap, nil
}
