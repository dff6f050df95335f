package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"

	"github.com/loratool/loratool/internal/jsontext"
)

// index is the text of an index as the output has it.
type index struct {
	stored string // the name of its file
	text   []byte
}

// showIndex renames the index of a model whose shards have other names in the output, and writes it
// anew. Until then Side has the names of the directory.
func (m *model) showIndex(c *Checkpoint) error {
	stored := m.folder + m.list
	shown := nameIn(c, stored)
	isRenamed := func(shard string) bool { return nameIn(c, shard) != shard }
	if m.index == nil || shown == stored && !slices.ContainsFunc(m.shards, isRenamed) {
		return nil
	}
	text, err := c.Dir.Read(stored, MaxJSONBytes)
	if err != nil {
		return err
	}
	var sum totals
	var held []place
	for _, f := range c.Files {
		if f.prefix != m.prefix() {
			continue
		}
		for i := range f.Tensors {
			t := &f.Tensors[i]
			held = append(held, place{strings.TrimPrefix(t.Name, f.prefix), strings.TrimPrefix(f.Name, m.folder)})
			sum.add(t)
		}
	}
	text = anew(text, held, &sum)
	if c.indexes == nil {
		c.indexes = make(map[string]index)
	}
	c.indexes[shown] = index{stored, text}
	c.Side[slices.Index(c.Side, stored)] = shown
	return nil
}

// OpenSide opens a file of Side. The caller closes it. An index that names files anew is in memory.
func (c *Checkpoint) OpenSide(name string) (*fileio.Input, error) {
	i, ok := c.indexes[name]
	if !ok {
		return c.Dir.Open(name)
	}
	return &fileio.Input{
		ReaderAt: bytes.NewReader(i.text), Closer: io.NopCloser(nil), Path: c.Dir.Path(i.stored), Size: int64(len(i.text)),
	}, nil
}

// EditedIndex returns the name and the text of the index of a sharded checkpoint, updated for the
// tensors that a view shows: it adds the tensors that the index lacks and corrects the sizes. If
// isRenamed is set, it writes the whole weight_map anew. name is "" if there is no index.
func (c *Checkpoint) EditedIndex(isRenamed bool) (name string, text []byte, err error) {
	if name = indexName(c); name == "" {
		return "", nil, nil
	}
	path := c.Dir.Path(name)
	if i, ok := c.indexes[name]; ok {
		text, path = i.text, c.Dir.Path(i.stored)
	} else if text, err = c.Dir.Read(name, MaxJSONBytes); err != nil {
		return "", nil, err
	}
	text, err = reindex(c, text, isRenamed)
	return name, text, fault.InFile(err, path)
}

// reindex updates the text of an index.
func reindex(c *Checkpoint, text []byte, isRenamed bool) ([]byte, error) {
	var sum totals
	held := make([]place, 0, c.refs.n())
	for _, f := range c.Files {
		for i := range f.Tensors {
			held = append(held, place{f.Tensors[i].Name, f.Name})
			sum.add(&f.Tensors[i])
		}
	}
	if isRenamed {
		return anew(text, held, &sum), nil
	}
	var index struct {
		WeightMap map[string]json.RawMessage `json:"weight_map"`
	}
	if err := jsontext.Decode(text, &index); err != nil {
		return nil, err
	}
	slices.SortFunc(held, place.compare)
	for _, p := range held {
		if _, ok := index.WeightMap[p.tensor]; !ok {
			text = jsontext.Set(text, jsontext.Quote(p.file), "weight_map", p.tensor)
		}
	}
	return sum.set(text), nil
}

// place says which file holds a tensor.
type place struct{ tensor, file string }

func (p place) compare(other place) int { return strings.Compare(p.tensor, other.tensor) }

// anew returns the text of an index with another weight_map, indented as transformers writes it. It
// edits the short text first: the map of a large model has megabytes.
func anew(text []byte, held []place, sum *totals) []byte {
	text = sum.set(jsontext.Set(text, "{}", "weight_map"))
	slices.SortFunc(held, place.compare)
	const between, colon = ",\n    ", ": "
	size := 0
	for _, p := range held {
		size += len(between) + len(p.tensor) + len(colon) + len(p.file) + len(`""""`)
	}
	var b strings.Builder
	b.Grow(size)
	b.WriteString("{")
	for i, p := range held {
		b.WriteString(between[1-min(i, 1):]) // no comma before the first one
		for _, s := range []string{jsontext.Quote(p.tensor), colon, jsontext.Quote(p.file)} {
			b.WriteString(s)
		}
	}
	b.WriteString("\n  }")
	return jsontext.Set(text, b.String(), "weight_map")
}

// totals are the sizes that an index may state.
type totals struct{ nBytes, nElements int64 }

func (s *totals) add(t *Tensor) {
	s.nBytes += t.NBytes
	s.nElements += t.Elements()
}

// set corrects the sizes that the text of an index states.
func (s *totals) set(text []byte) []byte {
	for key, total := range map[string]int64{"total_size": s.nBytes, "total_parameters": s.nElements} {
		if _, ok := jsontext.Value(text, "metadata", key); ok {
			text = jsontext.Set(text, fmt.Sprint(total), "metadata", key)
		}
	}
	return text
}

// FileOf returns the name of the file that holds a tensor.
func (c *Checkpoint) FileOf(name string) string {
	ref, _ := c.Lookup(name)
	return c.Files[ref.File].Name
}

// indexName returns the name of the index of a sharded checkpoint, or "".
func indexName(c *Checkpoint) string {
	for _, name := range containers[0].files {
		if slices.Contains(c.Side, name+indexSuffix) {
			return name + indexSuffix
		}
	}
	return ""
}

// Misnames reports whether out is the name of a file of another container than the output of a
// single file has, and says which that is. Users of safetensors may choose other names.
func (c *Checkpoint) Misnames(out string) (is string, misnamed bool) {
	ext := strings.ToLower(path.Ext(out))
	isPickle := shownName(path.Base(out)) != path.Base(out)
	switch {
	case c.IsDir:
		return "", false
	case inGGUF(c.Files[0]):
		return "a GGUF file", isPickle || ext == ".safetensors" || ext == ".lora"
	}
	return "a safetensors file", ext == ".gguf" || ext == ".lora" || c.Files[0].isConverted && isPickle
}
