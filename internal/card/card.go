// Package card reads the front matter of a model card: the YAML between two lines of dashes at the
// beginning of README.md, with the keys that huggingface.co documents
// (https://huggingface.co/docs/hub/model-cards).
package card

import (
	"bytes"

	"github.com/goccy/go-yaml"
)

// Card holds the facts of a card that this module uses. Missing facts are empty.
type Card struct {
	License    string
	BaseModels []string // repositories, such as meta-llama/Llama-3.2-1B
	Datasets   []string
}

// maxBytes bounds the front matter. The longest ones, with results of evaluations, have some tens
// of kilobytes.
const maxBytes = 1 << 17

// Parse reads the front matter of a card. A card without one, and one that is not valid YAML, has
// no facts: people write cards by hand, and nothing depends on them.
func Parse(text []byte) Card {
	var front struct {
		License   any `yaml:"license"`
		BaseModel any `yaml:"base_model"`
		Datasets  any `yaml:"datasets"`
	}
	matter := frontMatter(text)
	if len(matter) == 0 || len(matter) > maxBytes || bytes.ContainsAny(matter, "&*") && hasAnchors(matter) {
		return Card{}
	}
	if yaml.Unmarshal(matter, &front) != nil {
		return Card{}
	}
	c := Card{BaseModels: texts(front.BaseModel), Datasets: texts(front.Datasets)}
	if all := texts(front.License); len(all) > 0 {
		c.License = all[0]
	}
	return c
}

// frontMatter returns the lines between the dashes, nil if there are none.
func frontMatter(text []byte) []byte {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
	rest, ok := bytes.CutPrefix(text, []byte("---\n"))
	if !ok {
		return nil
	}
	matter, _, ok := bytes.Cut(rest, []byte("\n---"))
	if !ok {
		return nil
	}
	return matter
}

// hasAnchors reports whether a value begins with an anchor or an alias. Cards do not use them, and
// a few lines of nested aliases expand to gigabytes.
func hasAnchors(matter []byte) bool {
	for line := range bytes.Lines(matter) {
		for _, field := range bytes.Fields(line) {
			if field[0] == '&' || field[0] == '*' {
				return true
			}
		}
	}
	return false
}

// texts returns a text, or the texts of a list.
func texts(v any) (all []string) {
	switch v := v.(type) {
	case string:
		if v != "" {
			all = append(all, v)
		}
	case []any:
		for _, x := range v {
			if s, ok := x.(string); ok && s != "" {
				all = append(all, s)
			}
		}
	}
	return all
}
