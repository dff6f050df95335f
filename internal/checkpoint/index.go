package checkpoint

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/jsontext"
)

// Reindex returns the text of an index, updated for the checkpoint: it adds the tensors that the
// index lacks and corrects the sizes. If isRenamed is set, it writes the whole weight_map anew.
func (c *Checkpoint) Reindex(text []byte, isRenamed bool) ([]byte, error) {
	var index struct {
		WeightMap json.RawMessage `json:"weight_map"`
	}
	if err := jsontext.Decode(text, &index); err != nil {
		return nil, err
	}
	known := make(map[string]json.RawMessage)
	if err := jsontext.Decode(index.WeightMap, &known); err != nil {
		return nil, err
	}
	if isRenamed {
		files := make(map[string]string)
		for _, name := range c.Names() {
			files[name] = c.FileOf(name)
		}
		text, known = jsontext.Set(text, jsontext.Indented(files), "weight_map"), nil
	}
	var nBytes, nElements int64
	for _, name := range c.Names() {
		t := c.refs[name].Tensor
		nBytes += t.NBytes
		nElements += t.Elements()
		if _, ok := known[name]; !ok && known != nil {
			text = jsontext.Set(text, jsontext.Quote(c.FileOf(name)), "weight_map", name)
		}
	}
	for key, total := range map[string]int64{"total_size": nBytes, "total_parameters": nElements} {
		if _, ok := jsontext.Value(text, "metadata", key); ok {
			text = jsontext.Set(text, fmt.Sprint(total), "metadata", key)
		}
	}
	return text, nil
}

// FileOf returns the name of the file that holds a tensor.
func (c *Checkpoint) FileOf(name string) string { return c.Files[c.refs[name].File].Name }

// IndexName returns the name of the index of a sharded checkpoint, or "".
func (c *Checkpoint) IndexName() string {
	for _, name := range containers[0].files {
		if slices.Contains(c.Side, name+indexSuffix) {
			return name + indexSuffix
		}
	}
	return ""
}
