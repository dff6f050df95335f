package checkpoint

import (
	"context"
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
	// BaseAs is the scheme whose values the merge gave the base first, as merge.Options.BaseAs, and
	// BaseAsSkip lists the modules that it left as they were; nil stands for the output heads.
	BaseAs     string   `json:"base_as,omitempty"`
	BaseAsSkip []string `json:"base_as_skip,omitzero"`
	// Requantise tells how the merge chose new codes, as merge.Options: NearestCodes, or
	// StochasticCodes by Seed. It is "" if the merge kept no codes.
	Requantise string `json:"requantise,omitempty"`
	Seed       int64  `json:"seed,omitzero"`
}

// The values of Stamp.Requantise.
const (
	NearestCodes    = "nearest"
	StochasticCodes = "stochastic"
)

// OnBase names the BaseAs and the Requantise of the merge, for texts after the name of an adapter;
// "" if it had neither.
func (s *Stamp) OnBase() (text string) {
	if s.BaseAs != "" {
		text = " onto the base as " + s.BaseAs
	}
	switch s.Requantise {
	case "":
	case StochasticCodes:
		text += fmt.Sprintf(", with codes chosen at random (seed %d)", s.Seed)
	default:
		text += ", with the nearest codes"
	}
	return text
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
func (f *File) History() []Merged { return historyOf(f.Name, f.header.texts()) }

// History returns the merges that the header records for the file called file, in their order.
func (h *Header) History(file string) []Merged { return historyOf(file, h.parsed.texts()) }

func historyOf(file string, metadata map[string]string) (history []Merged) {
	for _, n := range stampNumbers(metadata) {
		m := Merged{File: file, Key: fmt.Sprint(stampPrefix, n)}
		if jsontext.Decode([]byte(metadata[m.Key]), &m.Stamp) == nil {
			history = append(history, m)
		}
	}
	return history
}

// Header is the part of a weight file before its data. It names the tensors and the merges that the
// file records.
type Header struct {
	Raw     []byte // as stored in the file
	parsed  heading
	tensors []Tensor // of ParseHeader alone
}

// Header reads the header of the file.
func (f *File) Header(ctx context.Context) (*Header, error) {
	raw := make([]byte, f.DataOff)
	if err := f.ReadAt(ctx, raw, 0); err != nil {
		return nil, err
	}
	return &Header{Raw: raw, parsed: f.header}, nil
}

// ParseHeader checks a header on its own, such as the header from before a merge. Errors name no
// path.
func ParseHeader(raw []byte) (*Header, error) {
	parse := parseSafetensors
	if isGGUF(raw) {
		parse = parseGGUF
	}
	h, tensors, err := parse(raw)
	if err != nil {
		return nil, err
	}
	return &Header{raw, h, tensors}, nil
}

// Fits reports whether h, a header of ParseHeader, describes the data of the file: the same
// tensors, each at the same place after the header.
func (f *File) Fits(h *Header) bool {
	if len(h.tensors) != len(f.Tensors) {
		return false
	}
	have := make(map[string]*Tensor, len(f.Tensors))
	for i := range f.Tensors {
		have[f.Tensors[i].Name] = &f.Tensors[i]
	}
	return !slices.ContainsFunc(h.tensors, func(t Tensor) bool {
		s := have[f.prefix+t.Name]
		return s == nil || s.DType != t.DType || s.Scheme != t.Scheme || !slices.Equal(s.Shape, t.Shape) || s.Off-f.DataOff != t.Off
	})
}

// Stamped returns the header with one more stamp after the others. The header grows by a multiple
// of 4096 bytes, so that the data stay aligned for file systems that share blocks between files.
func (h *Header) Stamped(s Stamp) ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return h.parsed.with(h.Raw, nextStamp(h.parsed.texts()), string(text))
}

// StampGrowth returns by how many bytes a stamp makes the header of the file longer. It reads
// nothing if the container lets it.
func (f *File) StampGrowth(ctx context.Context, s Stamp) (int64, error) {
	h, ok := f.header.(interface{ Growth(key, value string) int })
	if !ok {
		before, err := f.Header(ctx)
		if err != nil {
			return 0, err
		}
		after, err := before.Stamped(s)
		return int64(len(after) - len(before.Raw)), err
	}
	text, err := json.Marshal(s)
	return int64(h.Growth(nextStamp(f.header.texts()), string(text))), err
}

// nextStamp returns the key of one more stamp.
func nextStamp(metadata map[string]string) string {
	n := 1
	if numbers := stampNumbers(metadata); len(numbers) > 0 {
		n = numbers[len(numbers)-1] + 1
	}
	return fmt.Sprint(stampPrefix, n)
}

// Without returns a header without the stamp called key; see History.
func (h *Header) Without(key string) (*Header, error) {
	raw, err := h.parsed.without(h.Raw, key)
	if err != nil {
		return nil, err
	}
	return ParseHeader(raw)
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
