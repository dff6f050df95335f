package checkpoint

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/quant"
)

// SimulatedNF4 shows the linear weights as if the files stored them in NF4 of bitsandbytes, with
// one quantisation of blocks of 64, but for those of modules that skip names, or of output heads if
// it is nil. Closing either checkpoint closes the files of both.
func SimulatedNF4(c *Checkpoint, skip []string) (*Checkpoint, error) {
	q := &quantisation{stored: c}
	for _, name := range c.Names() {
		t := c.refs.tensor(name)
		if !isLinear(t) || isSkipped(c, strings.TrimSuffix(name, ".weight"), skip) {
			continue
		}
		q.weights = append(q.weights, quant.Weight{
			Name: name, Shape: t.Shape, DType: t.DType, Scheme: "NF4 of bitsandbytes, simulated", Parts: []string{name},
			Codec: quant.RoundTripNF4(t.DType, t.Elements()),
		})
	}
	return q.view()
}

// Loading is the way in which transformers loaded the model that an adapter was trained on.
type Loading struct {
	Skip     []string // llm_int8_skip_modules; nil is the default
	IsDouble bool     // bnb_4bit_use_double_quant
}

// LoadedIn4Bit reads a config.json beside an adapter, where some trainers keep that of the model.
// It returns nil if there is none, or none that says that the model was loaded in 4 bits.
func LoadedIn4Bit(adapter string) (*Loading, error) {
	dir, _, err := fileio.LocateOnDisk(adapter)
	if err != nil {
		return nil, err
	}
	c, err := readConfig(dir)
	if err != nil || c.QuantizationMethod != "bitsandbytes" {
		return nil, err
	}
	var q struct {
		IsIn4Bit bool     `json:"load_in_4bit"`
		Skip     []string `json:"llm_int8_skip_modules"`
		IsDouble bool     `json:"bnb_4bit_use_double_quant"`
	}
	if jsontext.Decode(c.Quantization, &q) != nil || !q.IsIn4Bit {
		return nil, nil
	}
	return &Loading{q.Skip, q.IsDouble}, nil
}

// isLinear reports whether a weight is that of torch.nn.Linear, which transformers' load_in_4bit
// quantises.
func isLinear(t *Tensor) bool {
	module, ok := strings.CutSuffix(t.Name, ".weight")
	switch t.DType {
	case dtype.F16, dtype.BF16, dtype.F32:
	default:
		return false
	}
	return ok && len(t.Shape) == 2 && t.Elements() > 0 && !naming.IsEmbedding(module) && !naming.IsInputEmbedding(module)
}

// isSkipped reports whether transformers leaves a linear module as it is. Without a list these are
// the output heads, and with one a head that is tied to an embedding.
func isSkipped(c *Checkpoint, module string, skip []string) bool {
	isHead := naming.IsHead(module) || naming.IsHeadSegment(naming.Leaf(module), c.Config.ModelType)
	if tie := c.Config.TieWordEmbeddings; skip == nil || tie != nil && *tie && isHead {
		return isHead
	}
	return slices.ContainsFunc(skip, func(name string) bool { return strings.Contains("."+module+".", "."+name+".") })
}
