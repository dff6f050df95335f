package merge

import (
	"context"
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/undo"
)

// restored is the header that a file had before what is taken out was merged.
type restored struct {
	identity undo.Header
	header   *checkpoint.Header // nil for a file that does not change
}

// restoreHeaders reads the headers of the files, as they are before anything is put in.
func (p *Plan) restoreHeaders(ctx context.Context) error {
	changed := make([]bool, len(p.base.Files))
	for _, t := range p.targets {
		changed[t.ref.File] = true
	}
	p.restored = make([]restored, len(p.base.Files))
	for i, f := range p.base.Files {
		if !changed[i] && !p.options.wantsRecord() {
			continue
		}
		h, err := f.Header(ctx)
		if err != nil {
			return err
		}
		p.restored[i].identity = undo.HeaderOf(h.Raw)
		if changed[i] {
			p.restored[i].header = h
		}
	}
	for _, r := range p.records { // the earliest merge comes last and has the last word
		for i := range r.record.Files {
			if !r.record.Files[i].Changed() {
				continue
			}
			f := p.fileOf(r.record, i)
			h, err := r.headerBefore(i, p.base.Files[f])
			if err != nil {
				return fault.InFile(err, r.Name)
			}
			p.restored[f] = restored{r.record.Files[i].Before, h}
		}
	}
	if p.nRemoved > 0 && p.records == nil {
		return p.removeStamps()
	}
	return nil
}

// headerBefore is the header that file i of a record had before the merge; f is the file now.
func (r *Record) headerBefore(i int, f *checkpoint.File) (*checkpoint.Header, error) {
	raw, err := r.record.HeaderBytes(i)
	if err != nil {
		return nil, err
	}
	h, err := checkpoint.ParseHeader(raw)
	if err == nil && !f.Fits(h) {
		err = &fault.Error{Kind: fault.Corrupt, Rule: undo.RuleBefore, Msg: fmt.Sprintf("the header before the merge has other tensors than %s", f.Path)}
	}
	return h, err
}

// removeStamps takes from the headers the stamps of the merge that is taken out, the last ones.
func (p *Plan) removeStamps() error {
	for i := range p.restored {
		r := &p.restored[i]
		if r.header == nil {
			continue
		}
		history := r.header.History("")
		if len(history) == 0 {
			continue
		}
		last := &history[len(history)-1]
		if !slices.ContainsFunc(last.Adapters, func(a StampAdapter) bool { return slices.Contains(p.ids[:p.nRemoved], a.Content) }) {
			continue
		}
		var err error
		if r.header, err = r.header.Without(last.Key); err != nil {
			return err
		}
	}
	return nil
}
