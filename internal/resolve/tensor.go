package resolve

import (
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
