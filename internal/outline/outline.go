// Package outline describes a checkpoint by the names, shapes and configuration that package
// resolve compares with an adapter.
package outline

import (
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/resolve"
)

// Of describes a checkpoint. It reads config.json, if there is one, and no values.
func Of(c *checkpoint.Checkpoint) (*resolve.Base, error) {
	n := 0
	for _, f := range c.Files {
		n += len(f.Tensors)
	}
	b := &resolve.Base{
		Path: c.Path, Tensors: make(map[string]resolve.Tensor, n), Config: c.Config,
		Unread: checkpoint.Unread(c),
	}
	for _, f := range c.Files {
		for i := range f.Tensors {
			t := &f.Tensors[i]
			b.Tensors[t.Name] = resolve.Tensor{DType: t.DType, Shape: t.Shape}
		}
	}
	if c.IsDir && slices.Contains(c.Side, checkpoint.ConfigName) {
		text, err := c.Dir.Read(checkpoint.ConfigName, checkpoint.MaxJSONBytes)
		if err != nil {
			return nil, err
		}
		b.ConfigText = text
	}
	return b, nil
}
