package merge

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/undo"
)

// OpenRecord proves the undo record of the given size in r, all of it, and opens it. r is read only
// by ReadAt, also later.
func OpenRecord(ctx context.Context, name string, r io.ReaderAt, size int64) (*Record, error) {
	id, err := fileio.IdentityOf(r)
	if err != nil {
		return nil, err
	}
	if _, err := format.Verify(ctx, r, size, format.ReaderOptions{}); err != nil {
		return nil, fault.InFile(err, name)
	}
	src, err := format.NewReader(r, size, format.ReaderOptions{})
	if err != nil {
		return nil, fault.InFile(err, name)
	}
	x, err := undo.Open(src)
	if err != nil {
		return nil, fault.InFile(err, name)
	}
	return &Record{Name: name, record: x, identity: id}, nil
}

// Removal says what is to be taken out of a checkpoint.
type Removal struct {
	// Adapters are those that were merged; a weight of NaN stands for the one that the record or
	// the checkpoint's own stamp says.
	Adapters []Adapter
	// Records are the undo records of the latest merges, in any order; all their adapters must be
	// among Adapters.
	Records []*Record
	// Approximate allows to go without records: then adapters are subtracted, every element
	// correctly rounded, and what rounding has lost stays lost.
	Approximate bool
}

// findRemoval finds out which merges of a checkpoint are meant.
func findRemoval(ctx context.Context, base *checkpoint.Checkpoint, remove Removal) (r removal, err error) {
	if len(remove.Adapters) == 0 {
		return r, fault.New(fault.Mismatch, "no adapter to take out")
	}
	if len(remove.Records) == 0 && !remove.Approximate && len(base.History()) == 0 {
		return r, fault.New(fault.Mismatch, "the checkpoint has no stamp of a merge, so that there is nothing to take out").In(base.Path).
			WithHint("give a checkpoint that merge has written")
	}
	if len(remove.Records) == 0 && !remove.Approximate {
		return r, fault.New(fault.Mismatch, "without the undo record of the merge the checkpoint before it cannot be restored: subtracting leaves some elements one step off").
			WithHint("give the record that merge wrote to Options.Undo; Removal.Approximate subtracts all the same")
	}
	for _, a := range remove.Adapters {
		if err := format.Validate(a.Source.Manifest()); err != nil {
			return r, fault.InFile(err, a.Name)
		}
	}
	ids, err := contentIDs(ctx, remove.Adapters)
	if err != nil {
		return r, err
	}
	if len(remove.Records) == 0 {
		return r, r.findByStamp(base, remove.Adapters, ids)
	}
	if r.records, err = chain(ctx, base, remove.Records); err != nil {
		return r, err
	}
	return r, r.findByRecord(remove.Adapters, ids)
}

// chain puts records in order, the latest merge first: the headers that the first has written are
// those of the checkpoint, and the headers before each are those that the next has written.
func chain(ctx context.Context, base *checkpoint.Checkpoint, records []*Record) ([]*Record, error) {
	now := make(map[int]undo.Header)
	for i, f := range base.Files {
		h, err := f.Header(ctx)
		if err != nil {
			return nil, err
		}
		now[i] = undo.HeaderOf(h.Raw)
	}
	rest := slices.Clone(records)
	var chain []*Record
	for len(rest) > 0 {
		at := slices.IndexFunc(rest, func(r *Record) bool { return wrote(base, r.record, now) })
		if at < 0 {
			return nil, explainChain(base, chain, rest[0])
		}
		r := rest[at]
		for i := range r.record.Files {
			now[fileOf(base, r.record, i)] = r.record.Files[i].Before
		}
		chain, rest = append(chain, r), slices.Delete(rest, at, at+1)
	}
	return chain, nil
}

// wrote reports whether a merge has written the headers that are there now.
func wrote(base *checkpoint.Checkpoint, r *undo.Record, now map[int]undo.Header) bool {
	if len(r.Files) != len(base.Files) {
		return false
	}
	for i := range r.Files {
		f := fileOf(base, r, i)
		if f < 0 || now[f] != r.Files[i].After {
			return false
		}
	}
	return true
}

func explainChain(base *checkpoint.Checkpoint, chain []*Record, r *Record) error {
	var names []string
	for _, a := range r.record.Adapters {
		names = append(names, fault.Quote(a.Name))
	}
	e := fault.New(fault.Mismatch, "the undo record is of another merge: it is for %s, and the headers that this merge has written are not those of the checkpoint", strings.Join(names, " and ")).In(r.Name)
	e.Rule = undo.RuleHeader
	if len(chain) > 0 {
		e.Msg = strings.Replace(e.Msg, "those of the checkpoint", "those from before "+chain[len(chain)-1].Name, 1)
	}
	var later []string
	for _, m := range base.History() {
		for _, a := range m.Adapters {
			if !slices.Contains(names, fault.Quote(a.Name)) {
				later = append(later, a.Name)
			}
		}
	}
	if len(later) > 0 {
		slices.Sort(later)
		return e.WithHint("%s was merged as well; what came later is taken out first, or swapped: give its record and adapter, too", fault.List(slices.Compact(later), 3))
	}
	return e.WithHint("give the record that was written with this checkpoint, and the checkpoint as it was written")
}

// findByRecord makes the adapters of the records those that are taken out, in the order of the
// records.
func (r *removal) findByRecord(given []Adapter, ids []string) error {
	used := make([]bool, len(given))
	for _, x := range r.records {
		for _, a := range x.record.Adapters {
			i := slices.Index(ids, a.Content)
			if i < 0 {
				return fault.New(fault.Mismatch, "the undo record is for the adapter %s, content %.16s…, which is not given; given is %s", fault.Quote(a.Name), a.Content, describe(given, ids)).In(x.Name).
					WithHint("give that adapter, as it was when it was merged; to keep it in the checkpoint, swap it with itself")
			}
			if w := given[i].Weight; !math.IsNaN(w) && w != a.Weight {
				return fault.New(fault.Mismatch, "the adapter was merged with the weight %v, not %v", a.Weight, w).In(given[i].Name).
					WithHint("set Adapter.Weight=NaN: the record knows it")
			}
			used[i] = true
			r.adapters = append(r.adapters, Adapter{Source: given[i].Source, Name: given[i].Name, Weight: a.Weight})
			r.ids = append(r.ids, a.Content)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return fault.New(fault.Mismatch, "the adapter %s, content %.16s…, was not merged by what the undo records undo", fault.Quote(given[i].Name), ids[i]).
			WithHint("give the record of the merge that put it in, or leave it out")
	}
	return nil
}

func describe(given []Adapter, ids []string) string {
	var all []string
	for i, a := range given {
		all = append(all, fault.Quote(a.Name)+", content "+ids[i][:16]+"…")
	}
	return strings.Join(all, "; ")
}

// findByStamp makes the given adapters those that are taken out, with the weights that the
// checkpoint's own stamps have. They must be those of one merge, and the latest of the files that
// it changed: what came later would be taken for theirs.
func (r *removal) findByStamp(base *checkpoint.Checkpoint, given []Adapter, ids []string) error {
	isGiven := func(a checkpoint.StampAdapter) bool { return slices.Contains(ids, a.Content) }
	var latest *checkpoint.Merged
	stamped := false
	for _, f := range base.Files {
		history := f.History()
		stamped = stamped || len(history) > 0
		at := len(history) - 1
		for at >= 0 && !slices.ContainsFunc(history[at].Adapters, isGiven) {
			at--
		}
		switch {
		case at < 0:
			continue
		case at < len(history)-1:
			return fault.New(fault.Mismatch, "%s was merged into %s later than what is to be taken out", fault.Quote(history[len(history)-1].Adapters[0].Name), f.Name).
				WithHint("take out the latest merge first")
		case !slices.Equal(contentsOf(history[at].Adapters), slices.Sorted(slices.Values(ids))):
			return fault.New(fault.Mismatch, "the latest merge into %s has put in %s together", f.Name, fault.List(namesOf(history[at].Adapters), 3)).
				WithHint("give all of them, and no others")
		}
		latest = &history[at]
	}
	if latest == nil && stamped {
		return fault.New(fault.Mismatch, "the checkpoint names what was merged into it, and %s is not among that", fault.Quote(given[0].Name)).WithHint("merge.History shows it")
	}
	for i, a := range given {
		weight := a.Weight
		if latest != nil {
			weight = latest.Adapters[slices.IndexFunc(latest.Adapters, func(s checkpoint.StampAdapter) bool { return s.Content == ids[i] })].Weight
		} else {
			r.notes = append(r.notes, fmt.Sprintf("the checkpoint does not say that %s was merged into it; if that was done with more than one rounding, more elements may differ than are counted", fault.Quote(a.Name)))
			if math.IsNaN(weight) {
				weight = 1
			}
		}
		if !math.IsNaN(a.Weight) && a.Weight != weight {
			return fault.New(fault.Mismatch, "the adapter was merged with the weight %v, not %v", weight, a.Weight).In(a.Name).WithHint("set Adapter.Weight=NaN: the checkpoint knows it")
		}
		a.Weight = weight
		r.adapters, r.ids = append(r.adapters, a), append(r.ids, ids[i])
	}
	return nil
}

// contentsOf lists content ids, sorted.
func contentsOf(adapters []checkpoint.StampAdapter) (ids []string) {
	for _, a := range adapters {
		ids = append(ids, a.Content)
	}
	slices.Sort(ids)
	return ids
}

func namesOf(adapters []checkpoint.StampAdapter) (names []string) {
	for _, a := range adapters {
		names = append(names, a.Name)
	}
	return names
}
