package merge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sort"
	"sync/atomic"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// Adapter is one adapter to merge.
type Adapter struct {
	Source format.Source // stays open until the plan has run; the caller closes it
	Name   string        // how messages and the stamp call it, such as its path
	Weight float64       // ω; 1 applies it as it was trained. Zero is refused: a merge of it would change nothing
}

// Options change how a merge runs, never its bytes, but for Reading, and for those that allow what is refused without them: Again,
// AnyBase, AllowNonFinite, GrowVocabulary and AddTensors. Where there are undo records, tensors are cut into whole blocks of theirs, whatever
// BlockBytes says.
type Options struct {
	Reading
	Workers        int               // goroutines; 0 is one per processor
	BlockBytes     int               // bytes of the base that a worker holds at a time; 0 is 1 MiB
	Replace        bool              // replace an existing output
	Again          bool              // merge an adapter that the base says it already has
	AnyBase        bool              // merge into a base that is not the one an adapter was made for
	GrowVocabulary bool              // add rows to embedding and head where an adapter has more
	AddTensors     bool              // add tensors that an adapter saves whole and the base lacks, or has in another shape
	AllowNonFinite bool              // go on where factors are not finite, or a finite weight becomes infinite
	Progress       func(bytes int64) // called from several goroutines with the bytes just written; nil is silent
	Tool           string            // name and version of the program, for the stamp
	Undo           io.Writer         // gets the undo record of the merge (spec/UNDO.md); nil writes none. It is one if Run returns nil
	UndoFile       string            // the place of an undo record that appears together with the output; "" writes none
}

// Plan is a merge that is ready to run, once. It has read headers only.
type Plan struct {
	ran      atomic.Bool
	base     *checkpoint.Checkpoint
	own      io.Closer // that was opened for this plan, and is closed with it; nil where the caller opened it
	adapters []Adapter
	options  Options
	targets  []*target // in the order of files and of data
	warnings []string
	files    []*outFile
	ids      []string          // content ids of the adapters
	records  []*Record         // of what is taken out, the latest merge first
	nRemoved int               // how many of the adapters, the first ones, are taken out
	restored []restored        // of each file, its header before what is taken out was merged
	side     map[string][]byte // files beside the weights that change
	names    *resolve.Base     // what resolving knows of the base
	shaped   *resolve.Shaped   // how the base differs from what is on the disk
}

// wantsRecord reports whether an undo record is to be written.
func (o *Options) wantsRecord() bool { return o.Undo != nil || o.UndoFile != "" }

// target is a tensor of the base that changes, and where it lies.
type target struct {
	*resolve.Change
	ref  checkpoint.Ref
	undo []step // what is taken out before that, the latest merge first
}

// changes reports whether something is put into the tensor.
func (t *target) changes() bool { return len(t.Terms) > 0 || t.Replace != nil || t.Rows != nil }

// Close closes the base of a plan that was opened by its path. One that the caller opened stays open.
func (p *Plan) Close() error {
	if p.own == nil {
		return nil
	}
	return p.own.Close()
}

// Warnings are what a user should know before the plan runs.
func (p *Plan) Warnings() []string { return p.warnings }

func (p *Plan) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

func (p *Plan) plan(ctx context.Context) error {
	if len(p.adapters) == 0 {
		return fault.New(fault.Mismatch, "no adapter to merge")
	}
	added := p.adapters[p.nRemoved:]
	if err := checkGiven(added); err != nil {
		return err
	}
	for _, a := range p.adapters {
		if err := format.Validate(a.Source.Manifest()); err != nil {
			return fault.InFile(err, a.Name)
		}
	}
	if err := p.shape(); err != nil {
		return err
	}
	byTensor := make(map[string]*target)
	if p.nRemoved > 0 {
		if err := p.addSteps(byTensor); err != nil {
			return err
		}
	}
	if err := p.checkBases(ctx, added, byTensor); err != nil {
		return err
	}
	changes, notes, err := resolve.Resolve(p.names, resolved(added), p.options.Reading.resolved())
	if err != nil {
		return err
	}
	p.warnings = append(p.warnings, notes...)
	for _, c := range changes {
		if err := p.addChange(c, byTensor); err != nil {
			return err
		}
	}
	if err := p.editIndex(); err != nil {
		return err
	}
	p.noteLinks()
	for _, t := range byTensor {
		if err := p.checkTarget(t); err != nil {
			return err
		}
		p.targets = append(p.targets, t)
	}
	sort.Slice(p.targets, func(i, j int) bool {
		a, b := p.targets[i].ref, p.targets[j].ref
		return a.File < b.File || a.File == b.File && a.Tensor.Off < b.Tensor.Off
	})
	ids, err := contentIDs(ctx, added) // those of what is taken out are known
	if err != nil {
		return err
	}
	p.ids = append(p.ids, ids...)
	if err := p.restoreHeaders(ctx); err != nil {
		return err
	}
	if err := p.checkStamps(); err != nil {
		return err
	}
	return p.layOut()
}

// noteLinks says which files of the base's directory are copied from elsewhere, and which not at all.
func (p *Plan) noteLinks() {
	for _, name := range p.base.Beyond {
		p.warn("%q of the base is a link that leads out of its directory: what lies there is copied", name)
	}
	for _, name := range p.base.Left {
		p.warn("%q is not copied: it is no part of the merged model", name)
	}
}

// resolved are adapters as package resolve wants them.
func resolved(adapters []Adapter) []resolve.Adapter {
	all := make([]resolve.Adapter, len(adapters))
	for i, a := range adapters {
		all[i] = resolve.Adapter(a)
	}
	return all
}

// shape reads what resolving has to know of the base, and gives the base the tensors that the options
// allow the adapters to bring.
func (p *Plan) shape() error {
	if err := p.describeBase(); err != nil {
		return err
	}
	o := &p.options
	allowed := resolve.Shaping{Untie: o.Tied == Untie, GrowVocabulary: o.GrowVocabulary, AddTensors: o.AddTensors}
	switch {
	case allowed == resolve.Shaping{}:
		return nil
	case p.nRemoved > 0:
		return fault.New(fault.Unsupported, "tensors are added, untied or grown by merging, not by taking out").WithHint("unmerge first, then merge")
	case (allowed.Untie || allowed.GrowVocabulary) && o.wantsRecord():
		return fault.New(fault.Unsupported, "an undo record holds values, and not that a tensor was added or grew").WithHint("merge without --undo, and keep the base")
	}
	s, err := resolve.Shape(p.names, resolved(p.adapters), o.Reading.resolved(), allowed)
	if err != nil {
		return err
	}
	if added := slices.Sorted(maps.Keys(s.Added)); len(added) > 0 && o.wantsRecord() {
		return fault.New(fault.Unsupported, "an undo record holds values, and not that a tensor was added or had another shape: %s", fault.List(added, 3)).
			WithHint("merge without --undo, and keep the base")
	}
	p.shaped, p.warnings = s, append(p.warnings, s.Notes...)
	if len(s.Edits) == 0 {
		return nil
	}
	if text := []byte(s.ConfigText); !bytes.Equal(text, p.names.ConfigText) {
		p.side[configName] = text
	}
	p.names = s.Base
	return p.reshape(s.Edits)
}

// describeBase reads what resolving has to know of the base.
func (p *Plan) describeBase() error {
	b := &resolve.Base{Path: p.base.Path, Tensors: make(map[string]resolve.Tensor), Config: p.base.Config}
	for _, name := range p.base.Names() {
		ref, _ := p.base.Lookup(name)
		b.Tensors[name] = resolve.Tensor{DType: ref.Tensor.DType, Shape: ref.Tensor.Shape}
	}
	if p.base.IsDir && slices.Contains(p.base.Side, configName) {
		text, err := p.base.Dir.Read(configName, checkpoint.MaxJSONBytes)
		if err != nil {
			return err
		}
		b.ConfigText = text
	}
	p.names, p.side, p.shaped = b, make(map[string][]byte), &resolve.Shaped{Base: b}
	return nil
}

const configName = "config.json"

// reshape makes the checkpoint read as if it had been written with the edits.
func (p *Plan) reshape(edits []resolve.Edit) (err error) {
	for _, e := range edits {
		if e.Rename != nil {
			p.base, err = p.base.Rename(e.Rename)
		}
		var changes []checkpoint.Change
		for _, t := range e.Tensors {
			c := checkpoint.Change{Name: t.Name, From: t.From, Rows: t.Rows}
			if z := t.Zeros; z != nil {
				n, _ := z.DType.NBytes(uint64(z.Elements()))
				c.Zeros = &checkpoint.Tensor{DType: z.DType, Shape: z.Shape, NBytes: n}
			}
			changes = append(changes, c)
		}
		if err == nil && changes != nil {
			p.base, err = p.base.Reshape(changes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// editIndex adds the tensors that are new to the index of shards, and corrects its sizes.
func (p *Plan) editIndex() error {
	name := p.base.IndexName()
	if name == "" || len(p.shaped.Edits) == 0 {
		return nil
	}
	text, err := p.base.Dir.Read(name, checkpoint.MaxJSONBytes)
	if err != nil {
		return err
	}
	p.side[name], err = p.base.Reindex(text, len(p.shaped.Renamed) > 0)
	return fault.InFile(err, p.base.Dir.Path(name))
}

// addChange makes a change one of a target.
func (p *Plan) addChange(c *resolve.Change, byTensor map[string]*target) error {
	t := byTensor[c.Name]
	if t == nil {
		ref, _ := p.base.Lookup(c.Name)
		byTensor[c.Name] = &target{Change: c, ref: ref}
		return nil
	}
	if c.Stacked != t.Stacked {
		hasTerms := func(s step) bool { return len(s.terms) > 0 }
		if c.Stacked && slices.ContainsFunc(t.undo, hasTerms) || t.Stacked && len(c.Terms) > 0 {
			return resolve.StackedAndNot(c.Name)
		}
		c.Stacked, c.NBands = true, max(1, int(c.Shape[0]))
	}
	t.Change = c
	return nil
}

// checkGiven refuses adapters that cannot be merged as the caller gives them.
func checkGiven(adapters []Adapter) error {
	for _, a := range adapters {
		switch w := a.Weight; {
		case w == 0:
			return fault.New(fault.Mismatch, "the adapter's weight is 0, so that it would change nothing").In(a.Name).
				WithHint("leave the adapter out, or give it another weight; 1 applies it as it was trained")
		case math.IsNaN(w) || math.IsInf(w, 0):
			return fault.New(fault.Mismatch, "the adapter's weight is %v; a weight is a finite number", w).In(a.Name)
		}
	}
	return nil
}

// maxTogether is how much of a tensor is worked on at a time, at most, because records have cut it in different ways.
const maxTogether = 256 << 20

// checkBlocks refuses records whose blocks only fit together after more than that.
func (p *Plan) checkBlocks(t *target) error {
	_, nCols := t.Matrix()
	rowBytes := nCols * int64(t.ref.Tensor.DType.Size())
	if n := p.blockRows(t) * rowBytes; n > max(maxTogether, rowBytes) {
		return fault.New(fault.Unsupported, "the undo records have cut %q into blocks that fit together after %d bytes, the limit is %d", t.ref.Tensor.Name, n, maxTogether).
			WithHint("take the merges out one at a time")
	}
	return nil
}

// checkTarget looks for changes that this version cannot make together.
func (p *Plan) checkTarget(t *target) error {
	if d := t.ref.Tensor.DType; p.options.wantsRecord() && t.changes() && !undo.Records(d) {
		return fault.New(fault.Unsupported, "the adapter replaces %q, of %v, which no undo record can hold", t.Name, d).WithHint("merge without --undo")
	}
	switch {
	case len(t.undo) == 0:
	case t.HasResidual():
		return fault.New(fault.Unsupported, "PiSSA and OLoRA need the original values of %q, and this swap restores them only while it runs", t.Name).
			WithHint("unmerge first, then merge")
	case t.DoRA != nil && t.DoRA.OfColumns:
		return fault.New(fault.Unsupported, "%q gets the magnitudes of DoRA, whose norms take a pass over the tensor that is there when the other adapter is out", t.Name).
			WithHint("unmerge first, then merge")
	}
	return p.checkBlocks(t)
}

// bandRows is the height of a band.
func (t *target) bandRows() int64 {
	nRows, _ := t.Matrix()
	return nRows / int64(t.NBands)
}

// ofBand picks the terms of a band.
func ofBand(terms []resolve.Term, band int) []resolve.Term {
	return slices.DeleteFunc(slices.Clone(terms), func(x resolve.Term) bool { return x.Band != band })
}

// wide reports whether the fast pass of some terms has to run in float64: for float32 and float64 results, and for float64
// factors, and for DoRA.
func (t *target) wide(terms []resolve.Term) bool {
	d := t.DType
	if d == dtype.F32 || d == dtype.F64 || t.DoRA != nil {
		return true
	}
	for i := range terms {
		term := &terms[i]
		if term.Residual != resolve.NoResidual {
			return true
		}
		for _, f := range []resolve.Factor{term.Left, term.Right} {
			if f.Source != nil && f.Tensor().DType == dtype.F64 {
				return true
			}
		}
	}
	return false
}
