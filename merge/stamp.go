package merge

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/undo"
)

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
