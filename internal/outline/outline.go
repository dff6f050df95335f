// Package outline describes a checkpoint by the names, shapes and configuration that package
// resolve compares with an adapter.
package outline

import (
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
)

// Of describes a checkpoint. It reads config.json, if there is one, and no values.
func Of(c *checkpoint.Checkpoint) (*resolve.Base, error) {
	n := 0
	for _, f := range c.Files {
		n += len(f.Tensors)
	}
	b := &resolve.Base{
		Path: c.Path, Tensors: make(map[string]resolve.Tensor, n), Listed: make([]string, 0, n), Config: c.Config,
		Unread: checkpoint.Unread(c), Refused: make(map[string]error),
		IsDecodable: checkpoint.IsQuantised(c),
	}
	for _, u := range checkpoint.UnreadableOf(c) {
		b.Refused[u.Name] = u.Err
	}
	for _, f := range c.Files {
		for i := range f.Tensors {
			t := &f.Tensors[i]
			b.Tensors[t.Name] = resolve.Tensor{DType: t.DType, Shape: t.Shape}
			b.Listed = append(b.Listed, t.Name)
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

// Shape gives the checkpoint, described by b, the tensors and rows that adapters need and the
// caller allows. It returns a view of the checkpoint that has them.
func Shape(
	c *checkpoint.Checkpoint, b *resolve.Base, adapters *resolve.Checked, allowed resolve.Shaping,
) (*resolve.Shaped, *checkpoint.Checkpoint, error) {
	if c.IsPipeline() {
		return nil, nil, fault.New(fault.Unsupported, "the base is a pipeline of several models, and this version adds, unties or grows tensors of a single model only").In(c.Path).
			WithHint("merge into the directory of the one model, such as the text encoder's")
	}
	s, err := resolve.Shape(b, adapters, allowed)
	if err != nil {
		return nil, nil, err
	}
	view, err := Reshaped(c, s.Edits)
	return s, view, err
}

// Reshaped returns a view of the checkpoint with the edits applied.
func Reshaped(base *checkpoint.Checkpoint, edits []resolve.Edit) (_ *checkpoint.Checkpoint, err error) {
	for _, e := range edits {
		if e.Rename != nil {
			if base, err = base.Rename(e.Rename); err != nil {
				return nil, err
			}
		}
		var changes []checkpoint.Change
		for _, t := range e.Tensors {
			c := checkpoint.Change{Name: t.Name, From: t.From, Rows: t.Rows}
			if z := t.Zeros; z != nil {
				n, _ := z.DType.NBytes(uint64(z.Elements()))
				c.Zeros = &checkpoint.Tensor{DType: z.DType, Shape: z.Shape, NBytes: n}
			}
			changes = append(changes, c)
		}
		if changes == nil {
			continue
		}
		if base, err = base.Reshape(changes); err != nil {
			return nil, err
		}
	}
	return base, nil
}
