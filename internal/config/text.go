package config

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/loratool/loratool/internal/jsontext"
)

// Text is the text of a config.json. Its methods return a changed text that differs only in the
// values they set.
type Text []byte

// Replace changes a field from one value to another wherever it has that value: at the top level
// and in text_config. If it is in neither place, Replace sets it at the top level.
func (t Text) Replace(field, from, to string) Text {
	replaced := false
	for _, path := range [][]string{{field}, {"text_config", field}} {
		if value, ok := jsontext.Value(t, path...); ok && value == from {
			t, replaced = jsontext.Set(t, to, path...), true
		}
	}
	if !replaced {
		t = jsontext.Set(t, to, field)
	}
	return t
}

// Untie states that input embedding and output head are separate tensors, in every place that some
// release of transformers reads.
func (t Text) Untie() Text {
	const field = "tie_word_embeddings"
	t = t.Replace(field, "true", "false")
	if _, ok := jsontext.Value(t, "text_config"); ok { // transformers 4 reads the field of text_config, whose class has its own default
		t = jsontext.Set(t, "false", "text_config", field)
	}
	if _, ok := jsontext.Value(t, "tie_embedding"); ok { // LFM2's name for the field
		t = jsontext.Set(t, "false", "tie_embedding")
	}
	return t
}

// SetClass sets the class of the model.
func (t Text) SetClass(class string) Text {
	return jsontext.Set(t, jsontext.Indented([]string{class}), "architectures")
}

// defaultLabels is the number of labels that transformers assumes if a configuration does not say.
const defaultLabels = 2

// NLabels returns the number of labels.
func (t Text) NLabels() uint64 {
	var names map[string]json.RawMessage
	if value, ok := jsontext.Value(t, "id2label"); ok && jsontext.Decode([]byte(value), &names) == nil && names != nil {
		return uint64(len(names))
	}
	if value, ok := jsontext.Value(t, "num_labels"); ok {
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			return n
		}
	}
	return defaultLabels
}

// SetLabels sets n labels, with the names that transformers gives by default.
func (t Text) SetLabels(n uint64) Text {
	names, numbers := []byte("{"), []byte("{")
	for i := range n {
		separator := ",\n    "
		if i == 0 {
			separator = "\n    "
		}
		names = fmt.Appendf(names, `%s"%d": "LABEL_%d"`, separator, i, i)
		numbers = fmt.Appendf(numbers, `%s"LABEL_%d": %d`, separator, i, i)
	}
	t = jsontext.Set(t, string(names)+"\n  }", "id2label")
	t = jsontext.Set(t, string(numbers)+"\n  }", "label2id")
	for _, field := range []string{"num_labels", "_num_labels"} {
		if _, ok := jsontext.Value(t, field); ok {
			t = jsontext.Set(t, fmt.Sprint(n), field)
		}
	}
	return t
}
