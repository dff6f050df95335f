package merge

import (
	"bytes"
	"maps"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/outline"
	"github.com/loratool/loratool/internal/resolve"
)

// shape adds, unties or grows tensors of the base as far as the options allow.
func (p *planner) shape(adapters *resolve.Checked, allowed resolve.Shaping) error {
	o := &p.options
	switch {
	case p.removed.is():
		return fault.New(fault.Unsupported, "removing an adapter cannot add, untie or grow tensors").WithHint("unmerge first, then merge")
	case (allowed.Untie || allowed.GrowVocabulary) && o.wantsRecord():
		return fault.New(fault.Unsupported, "an undo record cannot hold an added head or a grown vocabulary, only values").WithHint("merge without Options.Undo, and keep the base")
	}
	s, base, err := outline.Shape(p.base, p.names, adapters, allowed)
	if err != nil {
		return err
	}
	if added := slices.Sorted(maps.Keys(s.Added)); len(added) > 0 && o.wantsRecord() {
		return fault.New(fault.Unsupported, "an undo record cannot hold tensors that a merge adds or reshapes, such as %s", fault.List(added, 3)).
			WithHint("merge without Options.Undo, and keep the base")
	}
	if p.base.Config.Architecture != "" && slices.ContainsFunc(s.Edits, isMoreThanUntying) {
		return fault.New(fault.Unsupported, "the base is a GGUF file, and this version adds or grows tensors of other checkpoints only").In(p.base.Path).
			WithHint("merge into the checkpoint for transformers, and convert the merged one with llama.cpp")
	}
	p.shaped, p.effects = s, append(p.effects, s.Notes...)
	if len(s.Edits) == 0 {
		return nil
	}
	if text := []byte(s.ConfigText); !bytes.Equal(text, p.names.ConfigText) {
		p.side[checkpoint.ConfigName] = text
	}
	p.names, p.base = s.Base, base
	return p.editIndex(len(p.shaped.Renamed) > 0)
}

// isMoreThanUntying reports whether an edit does more than give a tensor a second name.
func isMoreThanUntying(e resolve.Edit) bool {
	return e.Rename != nil || slices.ContainsFunc(e.Tensors, func(t resolve.NewTensor) bool { return t.Zeros != nil || t.Rows > 0 })
}

// editIndex adds the new tensors to the shard index and corrects its sizes. It writes the list of
// tensors anew if some are renamed or gone.
func (p *planner) editIndex(isAnew bool) error {
	name, text, err := p.base.EditedIndex(isAnew)
	if name != "" && err == nil {
		p.side[name] = text
	}
	return err
}

// present returns the name that the output gives to a tensor of the base.
func present(p *planner, name string) string {
	if renamed, ok := p.shaped.Renamed[name]; ok {
		return renamed
	}
	return name
}

// feeds reports whether the values of a weight go into a tensor that the plan adds or reshapes.
func feeds(p *planner, name string) bool {
	name = present(p, name)
	return slices.ContainsFunc(p.shaped.Edits, func(e resolve.Edit) bool {
		return slices.ContainsFunc(e.Tensors, func(t resolve.NewTensor) bool { return t.From == name || t.Name == name })
	})
}
