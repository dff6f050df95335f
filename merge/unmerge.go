package merge

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/undo"
)

// Record is an undo record (spec/UNDO.md), opened for reading.
type Record struct {
	Name   string // how messages call it, such as its path
	record *undo.Record
	source format.Source
}

// OpenRecord opens the undo record of the given size in r, which is read only by ReadAt, also later.
func OpenRecord(name string, r io.ReaderAt, size int64) (*Record, error) {
	src, err := format.NewReader(r, size, format.ReaderOptions{})
	if err != nil {
		return nil, fault.InFile(err, name)
	}
	return NewRecord(name, src)
}

// NewRecord opens the undo record that a source holds. The source stays open as long as the record is used.
func NewRecord(name string, src format.Source) (*Record, error) {
	r, err := undo.Open(src)
	if err != nil {
		return nil, fault.InFile(err, name)
	}
	return &Record{Name: name, record: r, source: src}, nil
}

// Adapters lists what the merge of the record has put in, with its weights.
func (r *Record) Adapters() []StampAdapter {
	var all []StampAdapter
	for _, a := range r.record.Adapters {
		all = append(all, StampAdapter(a))
	}
	return all
}

// step is one merge that is taken out of a tensor again.
type step struct {
	record *undo.Record // nil where there is none, and the subtraction has to do
	name   string       // of the record
	tensor int          // in the record
	terms  []term       // what the prediction adds: the merge's terms with their signs turned
}

// Removal says what is to be taken out of a checkpoint.
type Removal struct {
	// Adapters are those that were merged; a weight of NaN stands for the one that the record or the checkpoint's own stamp says.
	Adapters []Adapter
	// Records are the undo records of the latest merges, in any order; all their adapters must be among Adapters.
	Records []*Record
	// Approximate allows to go without records: then adapters are subtracted, every element correctly rounded, and what rounding
	// has lost stays lost.
	Approximate bool
}

// OpenUnmerge plans to take adapters out of the merged checkpoint at path. With records the result is the checkpoint before these
// merges byte for byte, headers included, and proved by digest.
func OpenUnmerge(ctx context.Context, path string, remove Removal, options Options) (*Plan, error) {
	return openRemoval(ctx, path, remove, nil, options)
}

// OpenSwap plans to take adapters out of the merged checkpoint at path and to merge others in the same pass. The result is that of
// merging add into the checkpoint before the merges that are taken out. To keep an adapter of a record, name it on both sides.
func OpenSwap(ctx context.Context, path string, remove Removal, add []Adapter, options Options) (*Plan, error) {
	if len(add) == 0 {
		return nil, fault.New(fault.Mismatch, "no adapter to put in")
	}
	if remove.Approximate {
		return nil, fault.New(fault.Unsupported, "a swap needs the undo record: a result that stands on an approximate base is not the merge of anything")
	}
	return openRemoval(ctx, path, remove, add, options)
}

func openRemoval(ctx context.Context, path string, remove Removal, add []Adapter, options Options) (*Plan, error) {
	merged, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	p := &Plan{base: merged, options: options}
	err = p.planRemoval(ctx, remove, add)
	if err != nil {
		return nil, errors.Join(err, merged.Close())
	}
	return p, nil
}

func (p *Plan) planRemoval(ctx context.Context, remove Removal, add []Adapter) error {
	if len(remove.Adapters) == 0 {
		return fault.New(fault.Mismatch, "no adapter to take out")
	}
	if len(remove.Records) == 0 && !remove.Approximate {
		return fault.New(fault.Mismatch, "without the undo record of the merge the checkpoint before it cannot be restored: subtracting leaves some elements one step off").
			WithHint("give the record that merge --undo has written; --approximate subtracts all the same")
	}
	given := &Plan{adapters: remove.Adapters}
	if err := given.readIDs(ctx); err != nil {
		return err
	}
	if len(remove.Records) == 0 {
		if err := p.removeByStamp(remove.Adapters, given.ids); err != nil {
			return err
		}
	} else {
		chain, err := p.chain(remove.Records)
		if err != nil {
			return err
		}
		p.records = chain
		if err := p.removeByRecord(remove.Adapters, given.ids); err != nil {
			return err
		}
	}
	p.nRemoved = len(p.adapters)
	p.adapters = append(p.adapters, add...)
	return p.plan(ctx)
}

// chain puts records in order, the latest merge first: the headers that the first has written are those of the checkpoint, and the
// headers before each are those that the next has written.
func (p *Plan) chain(records []*Record) ([]*Record, error) {
	now := make(map[int]undo.Header)
	for i, f := range p.base.Files {
		raw, err := rawHeader(f)
		if err != nil {
			return nil, err
		}
		now[i] = undo.HeaderOf(raw)
	}
	rest := slices.Clone(records)
	var chain []*Record
	for len(rest) > 0 {
		at := slices.IndexFunc(rest, func(r *Record) bool { return p.wrote(r.record, now) })
		if at < 0 {
			return nil, p.explainChain(chain, rest[0])
		}
		r := rest[at]
		for i := range r.record.Files {
			now[p.fileOf(r.record, i)] = r.record.Files[i].Before
		}
		chain, rest = append(chain, r), slices.Delete(rest, at, at+1)
	}
	return chain, nil
}

// wrote reports whether a merge has written the headers that are there now.
func (p *Plan) wrote(r *undo.Record, now map[int]undo.Header) bool {
	for i := range r.Files {
		f := p.fileOf(r, i)
		if f < 0 || now[f] != r.Files[i].After {
			return false
		}
	}
	return true
}

// fileOf finds file i of a record among those of the checkpoint, or returns −1. Where both have one, it is that, whatever its
// name is by now.
func (p *Plan) fileOf(r *undo.Record, i int) int {
	if len(r.Files) == 1 && len(p.base.Files) == 1 {
		return 0
	}
	return slices.IndexFunc(p.base.Files, func(f *checkpoint.File) bool { return f.Name == r.Files[i].Name })
}

func (p *Plan) explainChain(chain []*Record, r *Record) error {
	var names []string
	for _, a := range r.record.Adapters {
		names = append(names, quote(a.Name))
	}
	e := fault.New(fault.Mismatch, "the undo record is of another merge: it is for %s, and the headers that this merge has written are not those of the checkpoint", strings.Join(names, " and ")).In(r.Name)
	e.Rule = undo.RuleHeader
	if len(chain) > 0 {
		e.Msg = strings.Replace(e.Msg, "those of the checkpoint", "those from before "+chain[len(chain)-1].Name, 1)
	}
	var later []string
	for _, m := range History(p.base) {
		for _, a := range m.Adapters {
			if !slices.Contains(names, quote(a.Name)) {
				later = append(later, quote(a.Name))
			}
		}
	}
	if len(later) > 0 {
		slices.Sort(later)
		return e.WithHint("%s was merged as well; what came later is taken out first, or swapped: give its record and adapter, too", fault.List(slices.Compact(later), 3))
	}
	return e.WithHint("give the record that was written with this checkpoint, and the checkpoint as it was written")
}

// removeByRecord makes the adapters of the records those that are taken out, in the order of the records.
func (p *Plan) removeByRecord(given []Adapter, ids []string) error {
	used := make([]bool, len(given))
	for _, r := range p.records {
		for _, a := range r.record.Adapters {
			i := slices.Index(ids, a.Content)
			if i < 0 {
				return fault.New(fault.Mismatch, "the undo record is for the adapter %s, content %.16s…, which is not given; given is %s", quote(a.Name), a.Content, describe(given, ids)).In(r.Name).
					WithHint("give that adapter, as it was when it was merged; to keep it in the checkpoint, swap it with itself")
			}
			if w := given[i].Weight; !math.IsNaN(w) && w != a.Weight {
				return fault.New(fault.Mismatch, "the adapter was merged with the weight %v, not %v", a.Weight, w).In(given[i].Name).
					WithHint("leave --weight out: the record knows it")
			}
			used[i] = true
			p.adapters = append(p.adapters, Adapter{Source: given[i].Source, Name: given[i].Name, Weight: a.Weight})
			p.ids = append(p.ids, a.Content)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return fault.New(fault.Mismatch, "the adapter %s, content %.16s…, was not merged by what the undo records undo", quote(given[i].Name), ids[i]).
			WithHint("give the record of the merge that put it in, or leave it out")
	}
	return nil
}

func describe(given []Adapter, ids []string) string {
	var all []string
	for i, a := range given {
		all = append(all, quote(a.Name)+", content "+ids[i][:16]+"…")
	}
	return strings.Join(all, "; ")
}

// removeByStamp makes the given adapters those that are taken out, with the weights of the checkpoint's own stamps.
func (p *Plan) removeByStamp(given []Adapter, ids []string) error {
	for i, a := range given {
		weights := make(map[float64]bool)
		for _, m := range History(p.base) {
			for _, s := range m.Adapters {
				if s.Content == ids[i] {
					weights[s.Weight] = true
				}
			}
		}
		switch {
		case len(weights) == 0:
			p.warn("the checkpoint does not say that %s was merged into it", quote(a.Name))
			if math.IsNaN(a.Weight) {
				a.Weight = 1
			}
		case math.IsNaN(a.Weight) && len(weights) == 1:
			for w := range weights {
				a.Weight = w
			}
		case math.IsNaN(a.Weight):
			return fault.New(fault.Mismatch, "%s was merged several times, with different weights", quote(a.Name)).WithHint("give --weight")
		case !weights[a.Weight]:
			return fault.New(fault.Mismatch, "%s was not merged with the weight %v, says the checkpoint", quote(a.Name), a.Weight).WithHint("leave --weight out")
		}
		p.adapters = append(p.adapters, a)
		p.ids = append(p.ids, ids[i])
	}
	return nil
}

// addSteps adds to the targets what is taken out of them.
func (p *Plan) addSteps(ctx context.Context, index *naming.Base, byTensor map[string]*target) error {
	if p.nRemoved == 0 {
		return nil
	}
	warnings, anyBase := p.warnings, p.options.AnyBase
	p.options.AnyBase = true // the checkpoint has other values than the base that the adapters remember
	defer func() { p.warnings, p.options.AnyBase = warnings, anyBase }()
	if p.records == nil {
		merged := make(map[string]*target)
		if err := p.addAdapters(ctx, 0, p.nRemoved, index, merged); err != nil {
			return err
		}
		return p.subtract(merged, byTensor)
	}
	first := 0
	for _, r := range p.records {
		merged := make(map[string]*target)
		if err := p.addAdapters(ctx, first, first+len(r.record.Adapters), index, merged); err != nil {
			return err
		}
		if err := p.addRecord(r, first, merged, byTensor); err != nil {
			return fault.InFile(err, r.Name)
		}
		first += len(r.record.Adapters)
	}
	return nil
}

// subtract adds steps without a record.
func (p *Plan) subtract(merged, byTensor map[string]*target) error {
	for name, t := range merged {
		if t.dora != nil {
			return fault.New(fault.Unsupported, "DoRA has rescaled %q, and the norms of what was there before are in its undo record only", name).
				WithHint("give the record that merge --undo has written, or take the tensor from the base")
		}
		if t.replace != nil || t.rows != nil {
			return fault.New(fault.Unsupported, "the merge has replaced values of %q, and what was there before is in its undo record only", name).
				WithHint("give the record that merge --undo has written, or take the tensor from the base")
		}
		p.addStep(byTensor, t, step{terms: negative(t.terms)})
	}
	return nil
}

// addRecord adds the steps of one record, which must be what this version makes of the same adapters.
func (p *Plan) addRecord(r *Record, firstAdapter int, merged, byTensor map[string]*target) error {
	for i := range r.record.Tensors {
		d := &r.record.Tensors[i]
		ref, ok := p.base.Lookup(d.Name)
		if !ok || ref.File != p.fileOf(r.record, d.File) || ref.Tensor.DType.String() != d.DType || !slices.Equal(ref.Tensor.Shape, d.Shape) {
			return fault.New(fault.Mismatch, "the undo record is of another checkpoint: it has %q as %s of shape %d, and this checkpoint has no such tensor", d.Name, d.DType, d.Shape)
		}
		t := merged[d.Name]
		if t == nil {
			return otherReading(d.Name)
		}
		delete(merged, d.Name)
		s := step{record: r.record, name: r.Name, tensor: i}
		if d.Predict == undo.Subtract {
			if !sameTerms(t.terms, d.Terms, firstAdapter) {
				return otherReading(d.Name)
			}
			s.terms = negative(t.terms)
		}
		p.addStep(byTensor, t, s)
	}
	for name := range merged {
		return otherReading(name)
	}
	return nil
}

func otherReading(name string) error {
	return fault.New(fault.Unsupported, "the version of loratool that wrote the undo record has applied the adapter to %q in another way than this one would", name).
		WithHint("use that version; verify names it")
}

func sameTerms(have []term, want []undo.Term, firstAdapter int) bool {
	return slices.EqualFunc(have, want, func(t term, u undo.Term) bool {
		return t.adapter-firstAdapter == u.Adapter && t.module == u.Module && t.scale == u.Scale
	})
}

func negative(terms []term) []term {
	n := slices.Clone(terms)
	for i := range n {
		n[i].scale = -n[i].scale
	}
	return n
}

func (p *Plan) addStep(byTensor map[string]*target, merged *target, s step) {
	name := merged.ref.Tensor.Name
	t := byTensor[name]
	if t == nil {
		t = &target{ref: merged.ref, module: merged.module, stacked: merged.stacked, nBands: merged.nBands}
		byTensor[name] = t
	}
	t.undo = append(t.undo, s)
}

// restored is the header that a file had before what is taken out was merged.
type restored struct {
	identity undo.Header
	raw      []byte // nil for a file that does not change
	header   *safetensors.Header
}

// restoreHeaders reads the headers of the files, as they are before anything is put in.
func (p *Plan) restoreHeaders() error {
	changed := make([]bool, len(p.base.Files))
	for _, t := range p.targets {
		changed[t.ref.File] = true
	}
	p.restored = make([]*restored, len(p.base.Files))
	for i, f := range p.base.Files {
		p.restored[i] = &restored{header: f.Header}
		if !changed[i] && p.options.Undo == nil {
			continue
		}
		raw, err := rawHeader(f)
		if err != nil {
			return err
		}
		p.restored[i].identity = undo.HeaderOf(raw)
		if changed[i] {
			p.restored[i].raw = raw
		}
	}
	for _, r := range p.records { // the earliest merge comes last and has the last word
		for i := range r.record.Files {
			if !r.record.Files[i].Changed() {
				continue
			}
			raw, err := r.record.HeaderBytes(i)
			if err != nil {
				return fault.InFile(err, r.Name)
			}
			h, err := safetensors.ReadAlone(raw)
			if err != nil {
				return fault.InFile(err, r.Name)
			}
			f := p.fileOf(r.record, i)
			if !sameTensors(h, p.base.Files[f].Header) {
				return fault.New(fault.Mismatch, "the header in the undo record has other tensors than %s", p.base.Files[f].Path).In(r.Name)
			}
			p.restored[f] = &restored{r.record.Files[i].Before, raw, h}
		}
	}
	if p.nRemoved > 0 && p.records == nil {
		return p.removeStamps()
	}
	return nil
}

// removeStamps takes from the headers what they say about the adapters that are taken out.
func (p *Plan) removeStamps() error {
	for _, r := range p.restored {
		if r.raw == nil {
			continue
		}
		for _, m := range historyOf("", r.header) {
			if slices.ContainsFunc(m.Adapters, func(a StampAdapter) bool { return !slices.Contains(p.ids[:p.nRemoved], a.Content) }) {
				if slices.ContainsFunc(m.Adapters, func(a StampAdapter) bool { return slices.Contains(p.ids[:p.nRemoved], a.Content) }) {
					p.warn("the stamp %s also names adapters that stay, and is kept as it is", m.Key)
				}
				continue
			}
			raw := r.header.WithoutMetadata(r.raw, m.Key)
			h, err := safetensors.ReadAlone(raw)
			if err != nil {
				return err
			}
			r.raw, r.header = raw, h
		}
	}
	return nil
}

func rawHeader(f *checkpoint.File) ([]byte, error) {
	raw := make([]byte, f.Header.DataOff)
	_, err := io.ReadFull(io.NewSectionReader(f.Data, 0, int64(len(raw))), raw)
	return raw, fault.InFile(err, f.Path)
}

// sameTensors reports whether two headers have the same tensors in the same order of their data.
func sameTensors(a, b *safetensors.Header) bool {
	byName := func(h *safetensors.Header) []safetensors.Tensor {
		all := slices.Clone(h.Tensors)
		sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
		return all
	}
	return slices.EqualFunc(byName(a), byName(b), func(s, t safetensors.Tensor) bool {
		return s.Name == t.Name && s.DType == t.DType && slices.Equal(s.Shape, t.Shape) && s.Off-a.DataOff == t.Off-b.DataOff
	})
}
