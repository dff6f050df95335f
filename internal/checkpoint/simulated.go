package checkpoint

import (
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/quant"
)

// SimulatedNF4 shows the linear weights as if the files stored them in NF4 of bitsandbytes, with
// one quantisation of blocks of 64. Closing either checkpoint closes the files of both.
func SimulatedNF4(c *Checkpoint) (*Checkpoint, error) {
	q := &quantisation{stored: c}
	for _, name := range c.Names() {
		t := c.refs[name].Tensor
		if !isLinear(t, c.Config.ModelType) {
			continue
		}
		q.weights = append(q.weights, quant.Weight{
			Name: name, Shape: t.Shape, DType: t.DType, Scheme: "NF4 of bitsandbytes, simulated", Parts: []string{name},
			Codec: quant.RoundTripNF4(t.DType, t.Elements()),
		})
	}
	q.index()
	v := *c
	v.quantisation = q
	return v.View(func(_ int, f *File) []Shown {
		return q.shown(f, func(*quant.Weight) dtype.Type { return dtype.F64 })
	})
}

// isLinear reports whether bitsandbytes quantises a weight when transformers loads a model: that of
// torch.nn.Linear, unless it is an output head, or is tied to an embedding.
func isLinear(t *Tensor, modelType string) bool {
	module, ok := strings.CutSuffix(t.Name, ".weight")
	switch t.DType {
	case dtype.F16, dtype.BF16, dtype.F32:
	default:
		return false
	}
	return ok && len(t.Shape) == 2 && t.Elements() > 0 && !naming.IsEmbedding(module) && !naming.IsInputEmbedding(module) &&
		!naming.IsHead(module) && !naming.IsHeadSegment(naming.Leaf(module), modelType)
}
