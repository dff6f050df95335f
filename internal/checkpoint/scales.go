package checkpoint

import (
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/quant"
)

// ScalesOf returns a reader of the scale of each element of a quantised weight, in F64, or nil for
// any other tensor.
func ScalesOf(c *Checkpoint, name string) Reader {
	if c.quantisation == nil {
		return nil
	}
	for i := range c.quantisation.weights {
		w := c.quantisation.weights[i]
		if w.Name != name {
			continue
		}
		if w.Codec = quant.Scales(w.Codec); w.Codec == nil {
			return nil
		}
		return c.quantisation.decoder(&w, dtype.F64)
	}
	return nil
}
