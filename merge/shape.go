package merge

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/outline"
	"github.com/loratool/loratool/internal/resolve"
)

// shape adds, unties or grows tensors of the base as far as the options allow.
func (p *planner) shape(ctx context.Context, adapters *resolve.Checked, allowed resolve.Shaping) error {
	if p.removed.is() {
		return fault.New(fault.Unsupported, "removing an adapter cannot add, untie or grow tensors").WithHint("unmerge first, then merge")
	}
	s, base, err := outline.Shape(p.base, p.names, adapters, allowed)
	if err != nil {
		return err
	}
	if p.options.wantsRecord() && len(s.Edits) > 0 {
		if err := checkShaped(ctx, p, s); err != nil {
			return err
		}
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

// checkShaped refuses a shape that an undo record cannot take back.
func checkShaped(ctx context.Context, p *planner, s *resolve.Shaped) error {
	const keep = "merge without Options.Undo, and keep the base"
	var reshaped []string
	for name, was := range s.Added {
		if was != nil {
			reshaped = append(reshaped, name)
		}
	}
	slices.Sort(reshaped)
	switch {
	case len(reshaped) > 0:
		return fault.New(fault.Unsupported, "an undo record cannot bring back tensors that a merge replaces by others of another shape, such as %s", fault.List(reshaped, 3)).WithHint(keep)
	case len(s.Renamed) > 0:
		return fault.New(fault.Unsupported, "an undo record cannot bring back the names of tensors that a merge renames, such as %q", slices.Min(slices.Collect(maps.Keys(s.Renamed)))).WithHint(keep)
	case p.decoding != nil:
		return fault.New(fault.Unsupported, "weights of the base are quantised, and this version records added tensors and rows for other bases only").In(p.base.Path).WithHint(keep)
	}
	path, err := checkpoint.Unpadded(ctx, p.stored)
	if path != "" {
		return fault.New(fault.Unsupported, "bytes between the tensors or behind them are not those of common writers of GGUF, and an undo record cannot bring them back").In(path).WithHint(keep)
	}
	return err
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
