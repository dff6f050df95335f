package checkpoint

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/jsontext"
)

// stampPrefix begins the metadata keys under which a merged file lists its merges:
// loratool.merge.1, loratool.merge.2, … in their order.
const stampPrefix = "loratool.merge."

// Stamp is the JSON value of such a key.
type Stamp struct {
	Tool     string         `json:"tool"`
	Adapters []StampAdapter `json:"adapters"`
	Added    []string       `json:"added,omitempty"`    // tensors that the base lacked, sorted
	Reshaped []string       `json:"reshaped,omitempty"` // tensors that had another shape in the base, sorted
}

// StampAdapter is one adapter in a stamp. Content is its content id (spec/FORMAT.md, section 13),
// which does not depend on how the adapter was stored.
type StampAdapter struct {
	Name    string  `json:"name"`
	Content string  `json:"content"`
	Weight  float64 `json:"weight"`
}

// Merged is one merge in a checkpoint's history.
type Merged struct {
	File string `json:"file"`
	Key  string `json:"key"`
	Stamp
}

// History returns the merges that the stamps record, in the order of files and merges. It ignores a
// stamp that it cannot read: another program wrote it.
func (c *Checkpoint) History() []Merged {
	history := []Merged{}
	for _, f := range c.Files {
		history = append(history, f.History()...)
	}
	return history
}

// History returns the merges of the file, in their order.
func (f *File) History() []Merged { return historyOf(f.Name, f.header.Metadata) }

// History returns the merges that the header records for the file called file, in their order.
func (h *Header) History(file string) []Merged { return historyOf(file, h.parsed.Metadata) }

func historyOf(file string, metadata map[string]string) (history []Merged) {
	for _, n := range stampNumbers(metadata) {
		m := Merged{File: file, Key: fmt.Sprint(stampPrefix, n)}
		if jsontext.Decode([]byte(metadata[m.Key]), &m.Stamp) == nil {
			history = append(history, m)
		}
	}
	return history
}

// Stamped returns the header with one more stamp after the others. The header grows by a multiple
// of 4096 bytes, so that the data stay aligned for file systems that share blocks between files.
func (h *Header) Stamped(s Stamp) ([]byte, error) {
	n := 1
	if numbers := stampNumbers(h.parsed.Metadata); len(numbers) > 0 {
		n = numbers[len(numbers)-1] + 1
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return h.parsed.WithMetadata(h.Raw, fmt.Sprint(stampPrefix, n), string(text)), nil
}

// Without returns a header of the same length without the stamp called key; see History.
func (h *Header) Without(key string) (*Header, error) {
	return ParseHeader(h.parsed.WithoutMetadata(h.Raw, key))
}

// stampNumbers returns the numbers of the stamps, ascending. A removed stamp leaves a gap.
func stampNumbers(metadata map[string]string) (numbers []int) {
	for key := range metadata {
		if n, err := strconv.Atoi(strings.TrimPrefix(key, stampPrefix)); err == nil && n > 0 && key == fmt.Sprint(stampPrefix, n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}
