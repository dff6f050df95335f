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
// loratool.merge.1, .2, … in the order of the merges.
const stampPrefix = "loratool.merge."

// Stamp is the value of such a key, as JSON.
type Stamp struct {
	Tool     string         `json:"tool"`
	Adapters []StampAdapter `json:"adapters"`
	Added    []string       `json:"added,omitempty"`    // tensors that the base lacked, sorted
	Reshaped []string       `json:"reshaped,omitempty"` // tensors that the base had in another shape, sorted
}

// StampAdapter is one adapter of a stamp. Content is its content id (spec/FORMAT.md, section 13),
// which does not depend on how the adapter was stored.
type StampAdapter struct {
	Name    string  `json:"name"`
	Content string  `json:"content"`
	Weight  float64 `json:"weight"`
}

// Merged is one entry of a checkpoint's history.
type Merged struct {
	File string `json:"file"`
	Key  string `json:"key"`
	Stamp
}

// History lists what the stamps say was merged into the checkpoint, in the order of files and
// merges. A stamp that cannot be read is somebody else's.
func (c *Checkpoint) History() []Merged {
	history := []Merged{}
	for _, f := range c.Files {
		history = append(history, f.History()...)
	}
	return history
}

// History lists the stamps of the file, in the order of the merges.
func (f *File) History() []Merged { return historyOf(f.Name, f.header.Metadata) }

// History lists the stamps in the header of the named file, in the order of the merges.
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

// Stamped returns the bytes of the header with one more stamp, after the last one. They are longer
// by a multiple of 4096 bytes, so that a file system that can share blocks between files still can.
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

// Without returns a header of the same length without the stamp that has a key, as History lists
// them.
func (h *Header) Without(key string) (*Header, error) {
	return ParseHeader(h.parsed.WithoutMetadata(h.Raw, key))
}

// stampNumbers lists the numbers of the stamps, ascending. One that was taken out leaves a gap.
func stampNumbers(metadata map[string]string) (numbers []int) {
	for key := range metadata {
		if n, err := strconv.Atoi(strings.TrimPrefix(key, stampPrefix)); err == nil && n > 0 && key == fmt.Sprint(stampPrefix, n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}
