package resolve

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// change is the change of the tensor for a name of the adapter's, made at first use. How its values
// are stored is not asked for a tensor that is only copied.
func (r *resolver) change(name string, copied bool) (*Change, error) {
	actual, _ := r.mapping.Lookup(name) // resolve has found every name
	if r.fold != nil {
		if err := (tied{r}).checkFolded(name); err != nil {
			return nil, err
		}
	}
	if c := r.changes[actual]; c != nil {
		return c, nil
	}
	if !copied {
		if err := r.base.checkStorage(actual); err != nil {
			return nil, err
		}
	}
	module := naming.Module(actual)
	if r.fold == nil && (r.looksUp || naming.MayBeEnd(module)) {
		if err := (tied{r}).check(actual); err != nil {
			return nil, err
		}
	}
	c := &Change{Name: actual, Module: module, Tensor: r.base.Tensors[actual], NBands: 1}
	r.changes[actual] = c
	return c, nil
}

// checkStorage refuses a tensor whose values are not plain floats.
func (b *Base) checkStorage(name string) error {
	quantised := ""
	if m := b.Config.QuantizationMethod; m != "" {
		quantised = fmt.Sprintf(" (quantised: config.json says %s)", m)
	}
	module := naming.Module(name)
	for _, companion := range []string{name + "_scale", name + "_scale_inv", name + ".absmax", name + ".quant_map", name + ".SCB", module + ".scales"} {
		if _, ok := b.Tensors[companion]; ok {
			quantised = fmt.Sprintf(" (quantised: beside it lies %q)", companion)
		}
	}
	d := b.Tensors[name].DType
	if !d.IsFloat() || quantised != "" && d.Size() < 2 {
		return fault.New(fault.Unsupported, "tensor %q of the base is stored as %v%s; F64, F32, F16 and BF16 can be merged into", name, d, quantised).
			WithHint(naming.Dequantise)
	}
	if quantised != "" && !strings.Contains(quantised, "config.json") {
		return fault.New(fault.Unsupported, "tensor %q of the base is not plain%s", name, quantised).
			WithHint(naming.Dequantise)
	}
	return nil
}
