package checkpoint

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/safetensors"
)

// stampPrefix begins the metadata keys under which a merged file says what was merged into it: loratool.merge.1, .2, … in the
// order of the merges.
const stampPrefix = "loratool.merge."

// Stamp is the value of such a key, as JSON.
type Stamp struct {
	Tool     string         `json:"tool"`
	Adapters []StampAdapter `json:"adapters"`
	Added    []string       `json:"added,omitempty"`    // tensors that the base lacked, sorted
	Reshaped []string       `json:"reshaped,omitempty"` // tensors that the base had in another shape, sorted
}

// StampAdapter is one adapter of a stamp. Content is its content id (spec/FORMAT.md, section 13), which does not depend on
// how the adapter was stored.
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

// History lists what the stamps say was merged into the checkpoint, in the order of files and merges. A stamp that cannot be read
// is somebody else's.
func (c *Checkpoint) History() []Merged {
	history := []Merged{}
	for _, f := range c.Files {
		history = append(history, HistoryOf(f.Name, f.Header)...)
	}
	return history
}

// HistoryOf lists what the stamps of one header say.
func HistoryOf(file string, h *safetensors.Header) (history []Merged) {
	for _, n := range stampNumbers(h.Metadata) {
		m := Merged{File: file, Key: fmt.Sprint(stampPrefix, n)}
		if json.Unmarshal([]byte(h.Metadata[m.Key]), &m.Stamp) == nil {
			history = append(history, m)
		}
	}
	return history
}

// NextStampKey is the key after the last one.
func NextStampKey(metadata map[string]string) string {
	n := 1
	if numbers := stampNumbers(metadata); len(numbers) > 0 {
		n = numbers[len(numbers)-1] + 1
	}
	return fmt.Sprint(stampPrefix, n)
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
