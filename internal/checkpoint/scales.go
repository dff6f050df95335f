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
	i, ok := c.quantisation.weight(name)
	if !ok {
		return nil
	}
	v := c.quantisation.decoder(i, dtype.F64)
	scales := *v.weight
	if scales.Codec = quant.Scales(scales.Codec); scales.Codec == nil {
		return nil
	}
	v.weight = &scales
	return &v
}
