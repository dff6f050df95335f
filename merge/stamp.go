package merge

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
)

// What the metadata of a merged file says was merged into it.
type (
	Stamp        = checkpoint.Stamp
	StampAdapter = checkpoint.StampAdapter
	Merged       = checkpoint.Merged
)

// History lists what the stamps of the checkpoint at path, a file or a directory, say was merged into it, in the order of files and
// merges. It reads headers only. A stamp that cannot be read is somebody else's. Errors wrap a kind of package format.
func History(ctx context.Context, path string) ([]Merged, error) {
	c, err := checkpoint.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	return c.History(), c.Close()
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

// stamp is what the files say of this merge.
func (p *Plan) stamp() Stamp {
	s := Stamp{Tool: p.options.Tool}
	for i := p.nRemoved; i < len(p.adapters); i++ {
		a := &p.adapters[i]
		s.Adapters = append(s.Adapters, StampAdapter{Name: baseName(a.Name), Content: p.ids[i], Weight: a.Weight})
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

// checkStamps refuses to merge an adapter that the base says it already has.
func (p *Plan) checkStamps() error {
	if p.options.Again {
		return nil
	}
	for i, id := range p.ids {
		if j := slices.Index(p.ids[p.nRemoved:], id) + p.nRemoved; i > j && j >= p.nRemoved {
			return fault.New(fault.Mismatch, "%q and %q are the same adapter", p.adapters[j].Name, p.adapters[i].Name).
				WithHint("give it once, with the sum of the weights; to merge it twice, use --again")
		}
	}
	var history []Merged
	for i, f := range p.base.Files {
		if before := p.restored[i].header; before != nil {
			history = append(history, before.History(f.Name)...)
		} else {
			history = append(history, f.History()...)
		}
	}
	for _, m := range history {
		for _, merged := range m.Adapters {
			for i, id := range p.ids {
				if i >= p.nRemoved && merged.Content == id {
					return fault.New(fault.Mismatch, "the adapter %q has been merged into this checkpoint already (%s of %s, weight %v)",
						p.adapters[i].Name, m.Key, m.File, merged.Weight).In(p.base.Path).
						WithHint("merge into the base without it; to add it once more, use --again")
				}
			}
		}
	}
	return nil
}
