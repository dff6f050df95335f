package merge

import (
	"bytes"
	"maps"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
)

// shape reads what resolving has to know of the base, and gives the base the tensors that the options
// allow the adapters to bring.
func (p *planner) shape() error {
	if err := p.describeBase(); err != nil {
		return err
	}
	o := &p.options
	allowed := resolve.Shaping{Untie: o.Tied == Untie, GrowVocabulary: o.GrowVocabulary, AddTensors: o.AddTensors}
	switch {
	case allowed == resolve.Shaping{}:
		return nil
	case p.removed.is():
		return fault.New(fault.Unsupported, "tensors are added, untied or grown by merging, not by taking out").WithHint("unmerge first, then merge")
	case (allowed.Untie || allowed.GrowVocabulary) && o.wantsRecord():
		return fault.New(fault.Unsupported, "an undo record holds values, and not that a tensor was added or grew").WithHint("merge without --undo, and keep the base")
	}
	s, err := resolve.Shape(p.names, resolved(p.adapters), o.Reading.resolved(), allowed)
	if err != nil {
		return err
	}
	if added := slices.Sorted(maps.Keys(s.Added)); len(added) > 0 && o.wantsRecord() {
		return fault.New(fault.Unsupported, "an undo record holds values, and not that a tensor was added or had another shape: %s", fault.List(added, 3)).
			WithHint("merge without --undo, and keep the base")
	}
	p.shaped, p.warnings = s, append(p.warnings, s.Notes...)
	if len(s.Edits) == 0 {
		return nil
	}
	if text := []byte(s.ConfigText); !bytes.Equal(text, p.names.ConfigText) {
		p.side[configName] = text
	}
	p.names = s.Base
	return p.reshape(s.Edits)
}

// describeBase reads what resolving has to know of the base.
func (p *planner) describeBase() error {
	b := &resolve.Base{Path: p.base.Path, Tensors: make(map[string]resolve.Tensor), Config: p.base.Config}
	for _, name := range p.base.Names() {
		ref, _ := p.base.Lookup(name)
		b.Tensors[name] = resolve.Tensor{DType: ref.Tensor.DType, Shape: ref.Tensor.Shape}
	}
	if p.base.IsDir && slices.Contains(p.base.Side, configName) {
		text, err := p.base.Dir.Read(configName, checkpoint.MaxJSONBytes)
		if err != nil {
			return err
		}
		b.ConfigText = text
	}
	p.names, p.side, p.shaped = b, make(map[string][]byte), &resolve.Shaped{Base: b}
	return nil
}

const configName = "config.json"

// reshape makes the checkpoint read as if it had been written with the edits.
func (p *planner) reshape(edits []resolve.Edit) (err error) {
	for _, e := range edits {
		if e.Rename != nil {
			p.base, err = p.base.Rename(e.Rename)
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
		if err == nil && changes != nil {
			p.base, err = p.base.Reshape(changes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// editIndex adds the tensors that are new to the index of shards, and corrects its sizes.
func (p *planner) editIndex() error {
	name := p.base.IndexName()
	if name == "" || len(p.shaped.Edits) == 0 {
		return nil
	}
	text, err := p.base.Dir.Read(name, checkpoint.MaxJSONBytes)
	if err != nil {
		return err
	}
	p.side[name], err = p.base.Reindex(text, len(p.shaped.Renamed) > 0)
	return fault.InFile(err, p.base.Dir.Path(name))
}
