package merge

import (
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
)

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
