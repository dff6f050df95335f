package convert

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
)

// collector gathers the parts of an adapter from the tensors of its file.
type collector struct {
	tensors  []format.Tensor
	manifest *format.Manifest
	out      format.Adapter
}

func (c *collector) note(format string, args ...any) {
	c.manifest.Notes = append(c.manifest.Notes, fmt.Sprintf(format, args...))
}

func (c *collector) require(feature format.Feature, where string) {
	c.out.Requires = append(c.out.Requires, requirement(feature, where))
}

func (c *collector) opaque(i int) {
	c.out.Beside = append(c.out.Beside, format.Beside{
		Action: format.Opaque, Target: c.tensors[i].Name, Tensor: i,
	})
}

// sorted returns the adapter with its lists in the order that spec/FORMAT.md requires.
func (c *collector) sorted() format.Adapter {
	a := &c.out
	slices.SortFunc(a.Layers, func(x, y format.Layer) int { return strings.Compare(x.Module, y.Module) })
	slices.SortFunc(a.Beside, func(x, y format.Beside) int { return cmp.Compare(x.Tensor, y.Tensor) })
	slices.SortFunc(a.Requires, func(x, y format.Requirement) int {
		return cmp.Or(cmp.Compare(x.Feature, y.Feature), cmp.Compare(x.Where, y.Where))
	})
	a.Requires = slices.Compact(a.Requires)
	slices.Sort(c.manifest.Notes)
	isDoRA := func(r format.Requirement) bool { return r.Feature == format.FeatureDoRA }
	if a.Method == format.MethodLoRA && slices.ContainsFunc(a.Requires, isDoRA) {
		a.Method = format.MethodDoRA
	}
	return *a
}
