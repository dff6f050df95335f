package merge

import (
	"context"
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/undo"
)

// Merged is one entry of a checkpoint's history: the stamp that one merge left in one file.
type Merged struct {
	File string `json:"file"` // file within the checkpoint
	Key  string `json:"key"`  // key within the file's metadata
	Stamp
}

// Stamp is a merge's own entry in the metadata of the files that it changed.
type Stamp struct {
	Tool     string         `json:"tool"`               // name and version of the program
	Adapters []StampAdapter `json:"adapters"`           // merged together
	Added    []string       `json:"added,omitempty"`    // tensors that the base lacked, sorted
	Reshaped []string       `json:"reshaped,omitempty"` // tensors that the base had in another shape, sorted
}

// StampAdapter is one adapter of a stamp.
type StampAdapter struct {
	Name    string  `json:"name"`
	Content string  `json:"content"` // content id (format.ContentID), independent of the adapter's dialect
	Weight  float64 `json:"weight"`
}

// historyOf converts a checkpoint's history to this package's types.
func historyOf(c *checkpoint.Checkpoint) []Merged {
	all := []Merged{}
	for _, m := range c.History() {
		adapters := make([]StampAdapter, len(m.Adapters))
		for i, a := range m.Adapters {
			adapters[i] = StampAdapter(a)
		}
		all = append(all, Merged{m.File, m.Key, Stamp{m.Tool, adapters, m.Added, m.Reshaped}})
	}
	return all
}

// History lists the merges that the checkpoint at path, a file or directory, records in its stamps,
// in the order of files and merges. It reads headers only, and ignores stamps that it cannot parse,
// since other tools may use the same keys. Errors wrap a kind of package format.
func History(ctx context.Context, path string) ([]Merged, error) {
	c, err := checkpoint.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	return historyOf(c), c.Close()
}

// headerBefore returns the header that file i of a record had before the merge. f is the file as it
// is now.
func (r *Record) headerBefore(i int, f *checkpoint.File) (*checkpoint.Header, error) {
	raw, err := r.record.HeaderBytes(i)
	if err != nil {
		return nil, err
	}
	h, err := checkpoint.ParseHeader(raw)
	if err == nil && !f.Fits(h) {
		err = &fault.Error{Kind: fault.Corrupt, Rule: undo.RuleBefore, Msg: fmt.Sprintf("the header from before the merge lists other tensors than %s has", f.Path)}
	}
	return h, err
}

// removeStamps deletes the latest stamp of the given adapters from the headers.
func removeStamps(all []restored, ids []string) error {
	for i := range all {
		r := &all[i]
		if r.header == nil {
			continue
		}
		history := r.header.History("")
		if len(history) == 0 {
			continue
		}
		last := &history[len(history)-1]
		if !slices.ContainsFunc(last.Adapters, func(a checkpoint.StampAdapter) bool { return slices.Contains(ids, a.Content) }) {
			continue
		}
		var err error
		if r.header, err = r.header.Without(last.Key); err != nil {
			return err
		}
	}
	return nil
}
