package merge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Tied says what becomes of an output head that the base has tied to its input embedding, when an adapter changes one of the two.
type Tied string

const (
	Untie Tied = "untie" // the head becomes a tensor of its own, and config.json says so
	Fold  Tied = "fold"  // the change is made to the one tensor, and so to both
)

// reshape gives the base the tensors and rows that its vocabulary gets: a head of its own, and rows for new tokens. The checkpoint then
// reads as if it had been written so, and nothing else has to know.
func (p *Plan) reshape() error {
	if p.options.AddTensors {
		if p.nRemoved > 0 {
			return fault.New(fault.Unsupported, "tensors are added by merging, not by taking out").WithHint("unmerge first, then merge")
		}
		if err := p.addTensors(); err != nil {
			return err
		}
	}
	if p.options.Tied != Untie && !p.options.GrowVocabulary {
		return nil
	}
	switch {
	case p.nRemoved > 0:
		return fault.New(fault.Unsupported, "tensors are untied or grown by merging, not by taking out").WithHint("unmerge first, then merge")
	case p.options.wantsRecord():
		return fault.New(fault.Unsupported, "an undo record holds values, and not that a tensor was added or grew").WithHint("merge without --undo, and keep the base")
	}
	if p.options.Tied == Untie {
		if err := p.untie(); err != nil {
			return err
		}
	}
	if p.options.GrowVocabulary {
		return p.grow()
	}
	return nil
}

// untie makes the head a tensor of its own, with the values of the embedding.
func (p *Plan) untie() error {
	index := naming.Index(p.base.Names())
	embedding, head, err := p.tiedEnds(index)
	if err != nil {
		return err
	}
	if head == "" {
		_, why := naming.TiedHead(embedding, p.base.Config.ModelType)
		return fault.New(fault.Unsupported, "%s", why).In(p.base.Path).
			WithHint("untie the base with the tool that made it, or use --tied fold, if the change is meant for both ends")
	}
	if t := p.base.Config.ModelType; naming.ScalesTiedHead(t) {
		return fault.New(fault.Unsupported, "a %s model scales what goes into its head while it is tied, so that it is another model without the tie", t).
			WithHint("use --tied fold, if the change is meant for both ends")
	}
	name := head
	if actual := index.Actual(head); actual != "" {
		name = actual
	}
	changed, err := p.base.Reshape([]checkpoint.Change{{Name: name, From: index.Actual(embedding)}})
	if err != nil {
		return err
	}
	p.base, p.reshaped = changed, true
	no := false
	p.base.Config.TieWordEmbeddings = &no
	p.warn("the output head %q becomes a tensor of its own", name)
	return p.editTie()
}

// grow gives the embedding and the head as many rows as an adapter saves of them.
func (p *Plan) grow() error {
	index := naming.Index(p.base.Names())
	if p.options.Tied == Fold {
		if err := p.alias(index); err != nil {
			return err
		}
	}
	rows := make(map[string]uint64)
	for _, a := range p.adapters {
		for _, g := range p.grown(index, a.Source.Manifest()) {
			if other, ok := rows[g.Name]; ok && other != g.Rows {
				return fault.New(fault.Mismatch, "one adapter has %d rows for %q, another %d", other, g.Name, g.Rows)
			}
			rows[g.Name] = g.Rows
		}
	}
	var changes []checkpoint.Change
	var old, size uint64
	for name, n := range rows {
		ref, _ := p.base.Lookup(name)
		old, size = ref.Tensor.Shape[0], n
		changes = append(changes, checkpoint.Change{Name: name, From: name, Rows: n})
	}
	if len(changes) == 0 {
		return nil
	}
	ends := p.ends(index)
	for _, name := range p.base.Names() {
		ref, _ := p.base.Lookup(name)
		isEnd := isVocabulary(name) || name == index.Actual(ends.Embedding) || name == index.Actual(ends.Head)
		isVocabulary := isEnd && len(ref.Tensor.Shape) > 0 && ref.Tensor.Shape[0] == old
		if _, ok := rows[name]; isVocabulary && !ok {
			return fault.New(fault.Unsupported, "the vocabulary grows from %d to %d tokens, and the adapter has no values for the new rows of %q", old, size, name).
				WithHint("save the adapter with save_embedding_layers=True; if the two ends are tied, use --tied fold")
		}
	}
	var err error
	if p.base, err = p.base.Reshape(changes); err != nil {
		return err
	}
	p.reshaped = true
	p.warn("the vocabulary grows from %d to %d tokens", old, size)
	return p.edit("vocab_size", fmt.Sprint(old), fmt.Sprint(size))
}

// grown lists what an adapter saves with more rows than the base has.
func (p *Plan) grown(index *naming.Base, m *format.Manifest) (all []checkpoint.Change) {
	var saved []format.Beside
	var names []string
	for i := range m.Adapters {
		for _, b := range m.Adapters[i].Beside {
			if b.Action == format.Replace && isVocabulary(b.Target) {
				saved = append(saved, b)
				names = append(names, b.Target)
			}
		}
	}
	mapping, _, _ := index.Match(names)
	for _, b := range saved {
		actual, ok := mapping.Lookup(b.Target)
		if !ok {
			continue // resolving says so
		}
		ref, _ := p.base.Lookup(actual)
		have, want := m.Tensors[b.Tensor].Shape, ref.Tensor.Shape
		if len(have) == len(want) && len(have) > 0 && have[0] > want[0] && want[0] > 0 && slices.Equal(have[1:], want[1:]) {
			all = append(all, checkpoint.Change{Name: actual, Rows: have[0]})
		}
	}
	return all
}

// sameBlob compares two tensors.
func sameBlob(a, b blob) (bool, error) {
	s, t := a.tensor(), b.tensor()
	if s.DType != t.DType || !slices.Equal(s.Shape, t.Shape) {
		return false, nil
	}
	p, q := make([]byte, min(s.NBytes(), pieceBytes)), make([]byte, min(s.NBytes(), pieceBytes))
	for off := int64(0); off < s.NBytes(); off += pieceBytes {
		n := min(pieceBytes, s.NBytes()-off)
		if err := errors.Join(a.source.ReadBlobAt(p[:n], a.index, off), b.source.ReadBlobAt(q[:n], b.index, off)); err != nil {
			return false, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// addMirror makes the change of a tied tensor to the head as well, where the base stores it a second time.
func (p *Plan) addMirror(byTensor map[string]*target) {
	from, to := p.mirror[0], p.mirror[1]
	if t := byTensor[from]; t != nil && to != "" {
		ref, _ := p.base.Lookup(to)
		other := byTensor[to]
		if other == nil {
			other = &target{ref: ref, module: naming.Module(to), nBands: 1}
			byTensor[to] = other
		}
		other.terms, other.dora, other.replace, other.rows = t.terms, t.dora, t.replace, t.rows
	}
}

// editTie notes that the ends are no longer tied, in each place that a release of transformers reads.
func (p *Plan) editTie() error {
	const field = "tie_word_embeddings"
	if err := p.edit(field, "true", "false"); err != nil || p.side == nil {
		return err
	}
	text := p.side[configName]
	if _, ok := valueAt(text, "text_config"); ok { // transformers 4 asks the text half, whose class has a default of its own
		text = setValue(text, "false", "text_config", field)
	}
	if _, ok := valueAt(text, "tie_embedding"); ok { // LFM2
		text = setValue(text, "false", "tie_embedding")
	}
	p.side[configName] = text
	return nil
}

const configName = "config.json"

// edit notes that a field of config.json changes from one value to another, wherever it has that value.
func (p *Plan) edit(field, from, to string) error {
	const name = configName
	if !p.base.IsDir || !slices.Contains(p.base.Side, name) {
		p.warn("set %s to %s in the model's config.json", field, to)
		return nil
	}
	text, err := p.sideText(name)
	if err != nil {
		return err
	}
	n := 0
	for _, path := range [][]string{{field}, {"text_config", field}} {
		if value, ok := valueAt(text, path...); ok && value == from {
			text = setValue(text, to, path...)
			n++
		}
	}
	if n == 0 {
		text = setValue(text, to, field)
	}
	p.side[name] = text
	return nil
}

// editIndex adds the tensors that are new to the index of shards, and corrects its sizes.
func (p *Plan) editIndex() error {
	name := p.base.IndexName()
	if name == "" || !p.reshaped {
		return nil
	}
	text, err := p.sideText(name)
	if err != nil {
		return err
	}
	var index struct {
		WeightMap map[string]json.RawMessage `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return fault.InFile(err, filepath.Join(p.base.Path, name))
	}
	if len(p.renamed) > 0 {
		files := make(map[string]string)
		for _, tensor := range p.base.Names() {
			files[tensor] = p.base.FileOf(tensor)
		}
		text, index.WeightMap = setValue(text, indented(files), "weight_map"), nil
	}
	var nBytes, nElements int64
	for _, tensor := range p.base.Names() {
		ref, _ := p.base.Lookup(tensor)
		nBytes += ref.Tensor.NBytes
		nElements += ref.Tensor.Elements()
		if _, ok := index.WeightMap[tensor]; !ok && index.WeightMap != nil {
			text = setValue(text, quoteJSON(p.base.FileOf(tensor)), "weight_map", tensor)
		}
	}
	for key, total := range map[string]int64{"total_size": nBytes, "total_parameters": nElements} {
		if _, ok := valueAt(text, "metadata", key); ok {
			text = setValue(text, fmt.Sprint(total), "metadata", key)
		}
	}
	p.side[name] = text
	return nil
}

// sideText is the text of a file beside the weights, as it is changed so far.
func (p *Plan) sideText(name string) ([]byte, error) {
	if p.side == nil {
		p.side = make(map[string][]byte)
	}
	if text, ok := p.side[name]; ok {
		return text, nil
	}
	return os.ReadFile(filepath.Join(p.base.Path, name))
}

func quoteJSON(s string) string {
	text, _ := json.Marshal(s) // of a string, no error
	return string(text)
}

// valueAt returns the text of the value at a path of keys.
func valueAt(text []byte, path ...string) (string, bool) {
	from, to, ok := span(text, path[0])
	switch {
	case !ok:
		return "", false
	case len(path) > 1:
		return valueAt(text[from:to], path[1:]...)
	}
	return string(text[from:to]), true
}

// setValue returns an object with another value at a path of keys, which is added if it is not there; all other bytes stay.
func setValue(text []byte, value string, path ...string) []byte {
	from, to, ok := span(text, path[0])
	switch {
	case ok && len(path) > 1:
		value = string(setValue(text[from:to], value, path[1:]...))
	case !ok && len(path) > 1:
		value = string(setValue([]byte("{}"), value, path[1:]...))
	}
	if ok {
		return slices.Concat(text[:from], []byte(value), text[to:])
	}
	open := bytes.IndexByte(text, '{') + 1
	rest := text[open:]
	first := bytes.IndexByte(rest, '"')
	if first < 0 { // an empty object
		return slices.Concat(text[:open], []byte(quoteJSON(path[0])+": "+value), rest)
	}
	return slices.Concat(text[:open], rest[:first], []byte(quoteJSON(path[0])+": "+value+","), rest)
}

// span finds the value of a key of an object.
func span(text []byte, key string) (from, to int, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return 0, 0, false
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return 0, 0, false
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return 0, 0, false
		}
		if name == key {
			to := int(dec.InputOffset())
			return to - len(value), to, true
		}
	}
	return 0, 0, false
}
