package merge

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
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

// contentIDs computes the content ids of adapters.
func contentIDs(ctx context.Context, adapters []Adapter) (ids []string, err error) {
	for _, a := range adapters {
		id, err := format.ContentID(ctx, a.Source)
		if err != nil {
			return nil, fault.InFile(err, a.Name)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// stamp returns the stamp of this merge.
func (p *planner) stamp() checkpoint.Stamp {
	s := checkpoint.Stamp{Tool: p.options.Tool}
	for i, a := range p.adapters {
		s.Adapters = append(s.Adapters, checkpoint.StampAdapter{Name: baseName(a.Name), Content: p.ids[i], Weight: a.Weight})
	}
	for _, name := range slices.Sorted(maps.Keys(p.shaped.Added)) {
		if p.shaped.Added[name] == nil {
			s.Added = append(s.Added, name)
		} else {
			s.Reshaped = append(s.Reshaped, name)
		}
	}
	return s
}

func baseName(path string) string {
	path = strings.TrimRight(strings.ReplaceAll(path, `\`, "/"), "/")
	return path[strings.LastIndex(path, "/")+1:]
}

// checkStamps refuses an adapter that the base already has, unless Options.Again is set. before
// holds the headers after the removals.
func (p *planner) checkStamps(before []restored) error {
	if p.options.Again {
		return nil
	}
	for i, id := range p.ids {
		if j := slices.Index(p.ids, id); j < i {
			return fault.New(fault.Mismatch, "%q and %q are the same adapter", p.adapters[j].Name, p.adapters[i].Name).
				WithHint("list it once with the sum of the weights, or set Options.Again to merge it twice")
		}
	}
	for k, f := range p.base.Files {
		history := f.History()
		if before[k].header != nil {
			history = before[k].header.History(f.Name)
		}
		for _, m := range history {
			for _, merged := range m.Adapters {
				if i := slices.Index(p.ids, merged.Content); i >= 0 {
					return fault.New(fault.Mismatch, "the checkpoint already contains the adapter %q (%s of %s, weight %v)",
						p.adapters[i].Name, m.Key, m.File, merged.Weight).In(p.base.Path).
						WithHint("merge into a base without it, or set Options.Again to add it once more")
				}
			}
		}
	}
	return nil
}

// restoreHeaders returns the headers of the files after the removals.
func (p *planner) restoreHeaders(ctx context.Context) ([]restored, error) {
	changed := make([]bool, len(p.base.Files))
	for _, t := range p.Plan.targets {
		changed[t.ref.File] = true
	}
	all := make([]restored, len(p.base.Files))
	for i, f := range p.base.Files {
		if !changed[i] && !p.options.wantsRecord() {
			continue
		}
		h, err := f.Header(ctx)
		if err != nil {
			return nil, err
		}
		all[i].identity = undo.HeaderOf(h.Raw)
		if changed[i] {
			all[i].header = h
		}
	}
	for _, r := range p.removed.records { // the earliest merge comes last and wins
		for i := range r.record.Files {
			if !r.record.Files[i].Changed() {
				continue
			}
			f := fileOf(p.base, r.record, i)
			h, err := r.headerBefore(i, p.base.Files[f])
			if err != nil {
				return nil, fault.InFile(err, r.Name)
			}
			all[f] = restored{r.record.Files[i].Before, h}
		}
	}
	if p.removed.is() && p.removed.records == nil {
		return all, removeStamps(all, p.removed.ids)
	}
	return all, nil
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
