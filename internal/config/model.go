// Package config reads and changes the config.json of a transformers model. It works on texts,
// never on files.
package config

import (
	"cmp"
	"encoding/json"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// Model holds the fields of config.json that matter to programs that change weights. The zero value
// stands for a checkpoint without config.json.
type Model struct {
	Found              bool
	ModelType          string
	Architecture       string // as llama.cpp calls it, of a model in a GGUF file; "" for any other
	Architectures      []string
	TieWordEmbeddings  *bool  // nil if config.json does not say
	TextTie            *bool  // tie_word_embeddings of text_config; nil if absent
	VocabSize          uint64 // 0 if config.json does not say
	HeadSize           uint64 // rows of one attention head; 0 if config.json does not say
	NExperts           uint64 // of each layer; 0 if config.json does not say
	NBlocks            uint64 // num_hidden_layers; 0 if config.json does not say
	HiddenSize         uint64 // of the vector of a token; 0 if config.json does not say
	Widths             naming.Widths
	QuantizationMethod string
	Quantization       json.RawMessage // quantization_config, or quantization of MLX; nil if config.json has neither
	WeightShape        []uint64        // of the only weight, in the configuration of a layer of HQQ
	DType              string          // torch_dtype or dtype, of the text model if that has one; "" if config.json does not say
}

// Ties returns the facts of config.json about the tie between input embedding and output head. The
// caller adds the shapes of the tensors.
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
	MLX           json.RawMessage `json:"quantization"`
	Shape         json.RawMessage `json:"shape"`
	DType         json.RawMessage `json:"dtype"`
	TorchDType    json.RawMessage `json:"torch_dtype"`
	TieOfLFM2     *bool           `json:"tie_embedding"`
	VocabSize     json.RawMessage `json:"vocab_size"` // not a number in some models
	TextConfig    json.RawMessage `json:"text_config"`
	HeadSize      json.RawMessage `json:"head_dim"`
	HiddenSize    json.RawMessage `json:"hidden_size"`
	NHeads        json.RawMessage `json:"num_attention_heads"`
	HiddenGPT     json.RawMessage `json:"n_embd"`
	HiddenBLOOM   json.RawMessage `json:"n_embed"`
	NHeadsGPT     json.RawMessage `json:"n_head"`
	NKeyHeads     json.RawMessage `json:"linear_num_key_heads"`
	KeySize       json.RawMessage `json:"linear_key_head_dim"`
	NMambaHeads   json.RawMessage `json:"mamba_num_heads"`
	MambaSize     json.RawMessage `json:"mamba_head_dim"`
	MultiQuery    json.RawMessage `json:"multi_query_attention"`
	NExperts      json.RawMessage `json:"num_experts"`
	NLocalExperts json.RawMessage `json:"num_local_experts"`
	NBlocks       json.RawMessage `json:"num_hidden_layers"`
	NBlocksGPT    json.RawMessage `json:"n_layer"`
}

// dtype returns the name of the model's dtype, "" if unknown.
func (f *file) dtype() (name string) {
	for _, v := range []json.RawMessage{f.TorchDType, f.DType} {
		jsontext.Decode(v, &name)
	}
	return name
}

// vocabSize returns the number of tokens, 0 if unknown.
func (f *file) vocabSize() (n uint64) {
	jsontext.Decode(f.VocabSize, &n)
	return n
}

// headSize returns the rows of an attention head, 0 if unknown.
func (f *file) headSize() (n uint64) {
	jsontext.Decode(f.HeadSize, &n)
	width, heads := f.hiddenSize(), f.nHeads()
	if n == 0 && heads > 0 && width%heads == 0 {
		n = width / heads
	}
	return n
}

// hiddenSize returns the width of the model, 0 if unknown.
func (f *file) hiddenSize() uint64 { return number(f.HiddenSize, f.HiddenGPT, f.HiddenBLOOM) }

// nHeads returns the number of attention heads, 0 if unknown.
func (f *file) nHeads() uint64 { return number(f.NHeads, f.NHeadsGPT) }

// number returns the first of several values that is a number other than 0, or 0.
func number(values ...json.RawMessage) (n uint64) {
	for _, v := range values {
		if n == 0 {
			jsontext.Decode(v, &n)
		}
	}
	return n
}

// widths returns the numbers that divide weights.
func (f *file) widths() naming.Widths {
	w := naming.Widths{
		Heads: f.nHeads(), HeadSize: f.headSize(), KeyHeads: number(f.NKeyHeads), KeySize: number(f.KeySize),
		Mamba: number(f.NMambaHeads), MambaSize: number(f.MambaSize),
	}
	jsontext.Decode(f.MultiQuery, &w.MultiQuery)
	return w
}

// nExperts returns the number of experts in each layer, 0 if unknown.
func (f *file) nExperts() uint64 { return number(f.NExperts, f.NLocalExperts) }

// Parse reads a config.json. Keys must be spelled exactly. Fields that Model does not need may have
// any value.
func Parse(text []byte) (Model, error) {
	var f file
	if err := jsontext.Decode(text, &f); err != nil {
		return Model{}, fault.New(fault.Corrupt, "not a model configuration: %v", err)
	}
	c := Model{Found: true, ModelType: f.ModelType, Architectures: f.Architectures, TieWordEmbeddings: f.Tie}
	if f.TieOfLFM2 != nil && strings.HasPrefix(f.ModelType, "lfm2") {
		c.TieWordEmbeddings = f.TieOfLFM2 // transformers lets this field override the other one
	}
	c.VocabSize, c.HeadSize, c.NExperts = f.vocabSize(), f.headSize(), f.nExperts()
	c.HiddenSize, c.Widths, c.NBlocks = f.hiddenSize(), f.widths(), number(f.NBlocks, f.NBlocksGPT)
	c.DType = f.dtype()
	if len(f.TextConfig) > 0 {
		var text file
		if err := jsontext.Decode(f.TextConfig, &text); err != nil {
			return Model{}, fault.New(fault.Corrupt, "not a model configuration: text_config: %v", err)
		}
		c.TextTie = text.Tie
		if c.TieWordEmbeddings == nil {
			c.TieWordEmbeddings = text.Tie
		}
		c.VocabSize = max(c.VocabSize, text.vocabSize())
		c.HeadSize, c.NExperts = cmp.Or(text.headSize(), c.HeadSize), cmp.Or(text.nExperts(), c.NExperts)
		c.HiddenSize, c.Widths = cmp.Or(text.hiddenSize(), c.HiddenSize), text.widths().Or(c.Widths)
		c.NBlocks = cmp.Or(number(text.NBlocks, text.NBlocksGPT), c.NBlocks)
		c.DType = cmp.Or(text.dtype(), c.DType)
		if len(f.Quantization) == 0 {
			f.Quantization = text.Quantization
		}
	}
	c.Widths.ModelType = c.ModelType
	c.setQuantisation(&f)
	return c, nil
}

// setQuantisation sets the statements about the quantisation. Configurations of MLX have them
// twice.
func (c *Model) setQuantisation(f *file) {
	jsontext.Decode(f.Shape, &c.WeightShape)
	var q struct {
		Method string `json:"quant_method"`
		Canon  string `json:"method"` // of GPTQModel
	}
	switch {
	case isMLX(f.MLX):
		c.QuantizationMethod, c.Quantization = "mlx", f.MLX
	case len(f.Quantization) > 0 && string(f.Quantization) != "null":
		jsontext.Decode(f.Quantization, &q) // only the name matters
		c.QuantizationMethod, c.Quantization = cmp.Or(q.Method, q.Canon, "unnamed"), f.Quantization
	}
}

// isMLX reports whether a value is that of quantization in a configuration of MLX.
func isMLX(text []byte) bool {
	var q struct {
		Bits json.RawMessage `json:"bits"`
		Size json.RawMessage `json:"group_size"`
	}
	return jsontext.Decode(text, &q) == nil && (q.Bits != nil || q.Size != nil)
}
