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
	w := c.quantisation.weight(name)
	if w == nil {
		return nil
	}
	scales := *w
	if scales.Codec = quant.Scales(w.Codec); scales.Codec == nil {
		return nil
	}
	return c.quantisation.decoder(&scales, dtype.F64)
}
