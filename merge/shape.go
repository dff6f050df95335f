package merge

import (
	"bytes"
	"maps"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
)

// shape adds, unties or grows tensors of the base as far as the options allow.
func (p *planner) shape(adapters *resolve.Checked, allowed resolve.Shaping) error {
	o := &p.options
	switch {
	case p.removed.is():
		return fault.New(fault.Unsupported, "removing an adapter cannot add, untie or grow tensors").WithHint("unmerge first, then merge")
	case p.base.IsPipeline():
		return fault.New(fault.Unsupported, "the base is a pipeline of several models, and this version adds, unties or grows tensors of a single model only").In(p.base.Path).
			WithHint("merge into the directory of the one model, such as the text encoder's")
	case (allowed.Untie || allowed.GrowVocabulary) && o.wantsRecord():
		return fault.New(fault.Unsupported, "an undo record cannot hold an added head or a grown vocabulary, only values").WithHint("merge without Options.Undo, and keep the base")
	}
	s, err := resolve.Shape(p.names, adapters, allowed)
	if err != nil {
		return err
	}
	if added := slices.Sorted(maps.Keys(s.Added)); len(added) > 0 && o.wantsRecord() {
		return fault.New(fault.Unsupported, "an undo record cannot hold tensors that a merge adds or reshapes, such as %s", fault.List(added, 3)).
			WithHint("merge without Options.Undo, and keep the base")
	}
	p.shaped, p.warnings = s, append(p.warnings, s.Notes...)
	if len(s.Edits) == 0 {
		return nil
	}
	if text := []byte(s.ConfigText); !bytes.Equal(text, p.names.ConfigText) {
		p.side[checkpoint.ConfigName] = text
	}
	p.names = s.Base
	base, err := reshaped(p.base, s.Edits)
	if err != nil {
		return err
	}
	p.base = base
	return p.editIndex()
}

// reshaped returns a view of the checkpoint with the edits applied.
func reshaped(base *checkpoint.Checkpoint, edits []resolve.Edit) (_ *checkpoint.Checkpoint, err error) {
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

// editIndex adds the new tensors to the shard index and corrects its sizes.
func (p *planner) editIndex() error {
	name, text, err := p.base.EditedIndex(len(p.shaped.Renamed) > 0)
	if name != "" && err == nil {
		p.side[name] = text
	}
	return err
}
