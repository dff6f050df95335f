package resolve

import (
	"fmt"
	"maps"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Shaping says which tensors the base may get before adapters are applied.
type Shaping struct {
	Untie          bool // the head becomes a tensor of its own
	GrowVocabulary bool // embedding and head get as many rows as an adapter saves of them
	AddTensors     bool // tensors that adapters save whole, and that the base lacks or has in another shape
}

// Shaped is a base with the tensors that adapters need. Resolve works on it as if the base had been
// stored this way.
type Shaped struct {
	*Base
	Edits   []Edit              // in their order
	Added   map[string][]uint64 // former shapes of new tensors by their present names; nil if the base lacked the tensor
	Renamed map[string]string   // from the names of tensors on disk to their present names
	Notes   []string
}

// Shape gives the base the tensors and rows that adapters need and the caller allows.
func Shape(b *Base, adapters *Checked, allowed Shaping) (*Shaped, error) {
	s := &shaper{Shaped: Shaped{Base: b, Added: make(map[string][]uint64), Renamed: make(map[string]string)}, Checked: adapters}
	if allowed.AddTensors {
		if err := s.addTensors(); err != nil {
			return nil, err
		}
	}
	if allowed.Untie {
		if err := s.untie(); err != nil {
			return nil, err
		}
	}
	if allowed.GrowVocabulary {
		if err := s.grow(); err != nil {
			return nil, err
		}
	}
	s.Notes = s.notes.list()
	return &s.Shaped, nil
}

// shaper is a Shaped in the making.
type shaper struct {
	Shaped
	*Checked
	notes notes
}

func (s *shaper) edit(e Edit) {
	s.Base = s.Base.apply(e)
	s.Edits = append(s.Edits, e)
}

// configure changes config.json, or notes the values to set if there is none to change.
func (s *shaper) configure(edit func(text config.Text) config.Text, otherwise string) {
	after := *s.Base
	switch {
	case s.ConfigText == nil && s.isGGUF(): // the keys do not say
	case s.ConfigText == nil:
		s.notes.add("%s", otherwise)
	default:
		after.ConfigText = edit(s.ConfigText)
	}
	s.Base = &after
}

// untie makes the head a tensor of its own, with the values of the embedding.
func (s *shaper) untie() error {
	sheet, err := newSheet(s.Base, s.Checked)
	if err != nil {
		return err
	}
	embedding, head, err := sheet.tiedEnds()
	if err != nil {
		return err
	}
	if head == "" {
		_, why := naming.TiedHead(embedding, s.Config.ModelType)
		return fault.New(fault.Unsupported, "%s", why).In(s.Path).
			WithHint("untie the base with the tool that made it, or set Options.Tied=fold, if the change is meant for both ends")
	}
	if t := s.Config.ModelType; naming.ScalesTiedHead(t) {
		return fault.New(fault.Unsupported, "a %s model scales the input of its head while the head is tied, so untying it makes another model", t).
			WithHint("set Options.Tied=fold, if the change is meant for both ends")
	}
	name := head
	if actual := sheet.names.Actual(head); actual != "" {
		name = actual
	} else if s.isGGUF() {
		if name, err = s.headOfGGUF(head); err != nil {
			return err
		}
	}
	s.edit(Edit{Tensors: []NewTensor{{Name: name, From: sheet.names.Actual(embedding)}}})
	no := false
	s.Base.Config.TieWordEmbeddings = &no
	s.notes.add("the output head %q becomes a tensor of its own", name)
	s.configure(config.Text.Untie, "set tie_word_embeddings to false in the model's config.json")
	return nil
}

// headOfGGUF returns the name of an untied head in a GGUF file.
func (s *shaper) headOfGGUF(head string) (string, error) {
	m := naming.LlamaCppNamed(s.Config.Architecture)
	if m == nil || !m.HasHead() {
		return "", fault.New(fault.Unsupported, "the head of the architecture %q is always the embedding in llama.cpp, or this version does not know its name", s.Config.Architecture).In(s.Path).
			WithHint("set Options.Tied=fold, if the change is meant for both ends")
	}
	name, ok := m.Tensor(naming.Module(head))
	if !ok {
		return "", fault.New(fault.Unsupported, "the name of %q in llama.cpp is not known here", head).In(s.Path)
	}
	return name, nil
}

// grow gives the embedding and the head as many rows as an adapter saves for them.
func (s *shaper) grow() error {
	sheet, err := newSheet(s.Base, s.Checked)
	if err != nil {
		return err
	}
	rows := make(map[string]uint64)
	for _, a := range s.adapters {
		for name, n := range sheet.grown(&a) {
			if other, ok := rows[name]; ok && other != n {
				return fault.New(fault.Mismatch, "two adapters save %q with different numbers of rows: %d and %d", name, other, n)
			}
			rows[name] = n
		}
	}
	if f := sheet.fold; f != nil && f.copies[1] != "" && rows[f.copies[0]] > 0 {
		rows[f.copies[1]] = rows[f.copies[0]] // the head that the base stores beside the embedding
	}
	if len(rows) == 0 {
		return nil
	}
	var e Edit
	var old, size uint64
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		old, size = s.Tensors[name].Shape[0], rows[name]
		e.Tensors = append(e.Tensors, NewTensor{Name: name, From: name, Rows: size})
	}
	ends := sheet.ends()
	for _, name := range s.Names() {
		shape := s.Tensors[name].Shape
		isEnd := isVocabulary(name) || name == sheet.names.Actual(ends.Embedding) || name == sheet.names.Actual(ends.Head)
		if _, ok := rows[name]; isEnd && len(shape) > 0 && shape[0] == old && !ok {
			return fault.New(fault.Unsupported, "the vocabulary grows from %d to %d tokens, and the adapter has no values for the new rows of %q", old, size, name).
				WithHint("save the adapter with save_embedding_layers=True; if the two ends are tied, set Options.Tied=fold")
		}
	}
	s.edit(e)
	s.notes.add("the vocabulary grows from %d to %d tokens", old, size)
	s.configure(func(t config.Text) config.Text { return t.Replace("vocab_size", fmt.Sprint(old), fmt.Sprint(size)) },
		fmt.Sprintf("set vocab_size to %d in the model's config.json", size))
	return nil
}

// grown returns the numbers of rows of tensors that an adapter saves with more rows than the base
// has, by the base's names.
func (s *sheet) grown(g *given) map[string]uint64 {
	var saved []format.Beside
	var names []string
	for _, b := range g.model.Beside {
		if b.Action == format.Replace && isVocabulary(b.Target) {
			saved = append(saved, b)
			names = append(names, b.Target)
		}
	}
	mapping := s.names.Best(names)
	rows := make(map[string]uint64)
	for _, b := range saved {
		actual, ok := mapping.Lookup(b.Target)
		if !ok {
			continue // Resolve reports the error
		}
		have, want := g.blob(b.Tensor).Tensor().Shape, s.base.Tensors[actual].Shape
		if len(have) == len(want) && len(have) > 0 && have[0] > want[0] && want[0] > 0 && slices.Equal(have[1:], want[1:]) {
			rows[actual] = have[0]
		}
	}
	return rows
}
