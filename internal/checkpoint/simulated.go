package checkpoint

import (
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/quant"
)

// SimulatedNF4 shows plain weights as if the files stored them in NF4 of bitsandbytes, with one
// quantisation of blocks of 64. Closing either checkpoint closes the files of both.
func SimulatedNF4(c *Checkpoint, names []string) (*Checkpoint, error) {
	q := &quantisation{stored: c}
	for _, name := range names {
		t := c.refs[name].Tensor
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
