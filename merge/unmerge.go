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

// OpenRecord opens the undo record of size bytes in r and verifies all of it. It reads r by ReadAt
// only, and keeps reading it until the plans that use the record have run.
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

// Removal says which adapters to remove from a checkpoint.
type Removal struct {
	// Adapters are the merged adapters. Weight NaN takes the weight from the record or from the
	// checkpoint's stamp.
	Adapters []Adapter
	// Records are the undo records of the latest merges, in any order. Adapters must include every
	// adapter that they name.
	Records []*Record
	// Approximate allows a removal without records. It subtracts the adapters and rounds each
	// element correctly, but cannot recover digits that the merge rounded away.
	Approximate bool
}

// findRemoval finds the merges to remove.
func findRemoval(ctx context.Context, base *checkpoint.Checkpoint, remove Removal) (r removal, err error) {
	if len(remove.Adapters) == 0 {
		return r, fault.New(fault.Mismatch, "no adapter to remove")
	}
	if len(remove.Records) == 0 && !remove.Approximate && len(base.History()) == 0 {
		return r, fault.New(fault.Mismatch, "the checkpoint carries no stamp of a merge, so there is nothing to remove").In(base.Path).
			WithHint("use a checkpoint that merge wrote")
	}
	if len(remove.Records) == 0 && !remove.Approximate {
		return r, fault.New(fault.Mismatch, "there is no undo record, and without the one of this merge subtracting leaves some elements a step or more off").In(base.Path).
			WithHint("if the merge wrote a record elsewhere, name it with Removal.Records; if it wrote none, set Removal.Approximate to subtract all the same")
	}
	for _, a := range remove.Adapters {
		if err := checkSource(a); err != nil {
			return r, err
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

// chain sorts records, the latest merge first. The latest merge wrote the headers of the
// checkpoint's files; each earlier merge wrote the headers that the next record calls "before".
func chain(ctx context.Context, base *checkpoint.Checkpoint, records []*Record) ([]*Record, error) {
	now := make(map[int]undo.Header)
	for i, f := range checkpoint.Stored(base).Files {
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

// wrote reports whether the record's merge wrote the current headers.
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

// explainChain names the first record that does not fit, the headers it should have matched, and
// later merges that are still in the checkpoint: the usual reason is that the user forgot one.
func explainChain(base *checkpoint.Checkpoint, chain []*Record, r *Record) error {
	var names []string
	for _, a := range r.record.Adapters {
		names = append(names, fault.Quote(a.Name))
	}
	e := fault.New(fault.Mismatch, "the undo record belongs to another merge: it is for %s, and the headers that this merge wrote are not those of the checkpoint", strings.Join(names, " and ")).In(r.Name)
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
		return e.WithHint("%s was merged as well; remove or swap later merges first, or give their records and adapters too", fault.List(slices.Compact(later), 3))
	}
	return e.WithHint("use the record written with this checkpoint, and the checkpoint as merge wrote it")
}

// findByRecord removes the adapters of the records, in the order of the records.
func (r *removal) findByRecord(given []Adapter, ids []string) error {
	used := make([]bool, len(given))
	for _, x := range r.records {
		for _, a := range x.record.Adapters {
			i := slices.Index(ids, a.Content)
			if i < 0 {
				return fault.New(fault.Mismatch, "the undo record needs the adapter %s, content %.16s…; got %s", fault.Quote(a.Name), a.Content, describe(given, ids)).In(x.Name).
					WithHint("give that adapter as it was when merged; to keep it in the checkpoint, swap it with itself")
			}
			if w := given[i].Weight; !math.IsNaN(w) && w != a.Weight {
				return fault.New(fault.Mismatch, "the adapter was merged with the weight %v, not %v", a.Weight, w).In(given[i].Name).
					WithHint("set Adapter.Weight=NaN: the record knows the weight")
			}
			used[i] = true
			r.adapters = append(r.adapters, Adapter{Source: given[i].Source, Name: given[i].Name, Weight: a.Weight})
			r.ids = append(r.ids, a.Content)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return fault.New(fault.Mismatch, "none of the undo records covers the adapter %s, content %.16s…", fault.Quote(given[i].Name), ids[i]).
			WithHint("give the record of the merge that added it, or leave the adapter out")
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

// findByStamp removes the given adapters with the weights from the checkpoint's stamps. One merge
// must have added exactly these, and it must be the latest merge into every file that it changed:
// subtraction would mistake the effect of a later merge for theirs.
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
			return fault.New(fault.Mismatch, "%s was merged into %s after the adapter you are removing", fault.Quote(history[len(history)-1].Adapters[0].Name), f.Name).
				WithHint("remove the latest merge first")
		case !slices.Equal(contentsOf(history[at].Adapters), slices.Sorted(slices.Values(ids))):
			return fault.New(fault.Mismatch, "the latest merge into %s added %s", f.Name, fault.List(namesOf(history[at].Adapters), 3)).
				WithHint("give all of them and no others")
		}
		latest = &history[at]
	}
	if latest == nil && stamped {
		return fault.New(fault.Mismatch, "the checkpoint's stamps do not list %s", fault.Quote(given[0].Name)).WithHint("Checkpoint.History shows what they list")
	}
	if latest != nil && latest.BaseAs != "" {
		r.notes = append(r.notes, fmt.Sprintf("the merge gave the base the values of %s first, and these stay: nothing here has the base's own", latest.BaseAs))
	}
	for i, a := range given {
		weight := a.Weight
		if latest != nil {
			weight = latest.Adapters[slices.IndexFunc(latest.Adapters, func(s checkpoint.StampAdapter) bool { return s.Content == ids[i] })].Weight
		} else {
			r.notes = append(r.notes, fmt.Sprintf("the checkpoint has no stamp for %s; if another tool merged it and rounded more than once, more elements may differ than are counted", fault.Quote(a.Name)))
			if math.IsNaN(weight) {
				weight = 1
			}
		}
		if !math.IsNaN(a.Weight) && a.Weight != weight {
			return fault.New(fault.Mismatch, "the adapter was merged with the weight %v, not %v", weight, a.Weight).In(a.Name).WithHint("set Adapter.Weight=NaN: the checkpoint knows the weight")
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
