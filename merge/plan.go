package merge

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sync/atomic"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
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
	removed  removal   // what is taken out first
	adapters []Adapter // what is put in then
	ids      []string  // the content ids of these
	options  Options
	targets  []*target // in the order of files and of data
	warnings []string
	files    []*outFile
	side     map[string][]byte // files beside the weights that change
	shaped   *resolve.Shaped   // how the base differs from what is on the disk
}

// removal is what a plan takes out before it puts anything in.
type removal struct {
	adapters []Adapter // in the order of the records and of their merges
	ids      []string  // their content ids
	records  []*Record // the latest merge first; none subtracts
	notes    []string
}

// is reports whether anything is taken out.
func (r *removal) is() bool { return len(r.adapters) > 0 }

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

func (p *planner) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// planner makes a plan.
type planner struct {
	*Plan
	names   *resolve.Base      // what resolving knows of the base
	targets map[string]*target // by the names of their tensors
}

// newPlan plans what to take out of a base and what to put in then.
func newPlan(ctx context.Context, base *checkpoint.Checkpoint, removed removal, adapters []Adapter, options Options) (*Plan, error) {
	p := &planner{
		Plan:    &Plan{base: base, removed: removed, adapters: adapters, options: options, warnings: removed.notes},
		targets: make(map[string]*target),
	}
	if len(adapters) == 0 && !removed.is() {
		return nil, fault.New(fault.Mismatch, "no adapter to merge")
	}
	if err := checkGiven(adapters); err != nil {
		return nil, err
	}
	if err := p.resolve(ctx); err != nil {
		return nil, err
	}
	p.noteFiles()
	if err := p.sortTargets(); err != nil {
		return nil, err
	}
	var err error
	if p.ids, err = contentIDs(ctx, adapters); err != nil {
		return nil, err
	}
	before, err := p.restoreHeaders(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.checkStamps(before); err != nil {
		return nil, err
	}
	return p.Plan, p.layOut(before)
}

// resolve finds what happens to each tensor.
func (p *planner) resolve(ctx context.Context) error {
	if err := p.describeBase(); err != nil {
		return err
	}
	o := &p.options
	if allowed := (resolve.Shaping{Untie: o.Tied == Untie, GrowVocabulary: o.GrowVocabulary, AddTensors: o.AddTensors}); allowed != (resolve.Shaping{}) {
		if err := p.shape(allowed); err != nil {
			return err
		}
	}
	if p.removed.is() {
		if err := p.addSteps(); err != nil {
			return err
		}
	}
	for _, a := range p.adapters {
		if err := resolve.Check(resolve.Adapter(a), o.Reading.resolved()); err != nil {
			return err
		}
		if m := &a.Source.Manifest().Adapters[0]; len(m.Base.Fingerprints) > 0 && !o.AnyBase {
			if err := p.checkBase(ctx, m); err != nil {
				return fault.InFile(err, a.Name)
			}
		}
	}
	changes, notes, err := resolve.Resolve(p.names, resolved(p.adapters), p.options.Reading.resolved())
	if err != nil {
		return err
	}
	p.warnings = append(p.warnings, notes...)
	for _, c := range changes {
		if err := p.addChange(c); err != nil {
			return err
		}
	}
	return nil
}

// sortTargets lists the targets in the order of the files, and refuses what this version cannot do.
func (p *planner) sortTargets() error {
	for _, name := range slices.Sorted(maps.Keys(p.targets)) {
		t := p.targets[name]
		if err := p.checkTarget(t); err != nil {
			return err
		}
		p.Plan.targets = append(p.Plan.targets, t)
	}
	slices.SortFunc(p.Plan.targets, func(a, b *target) int {
		return cmp.Or(cmp.Compare(a.ref.File, b.ref.File), cmp.Compare(a.ref.Tensor.Off, b.ref.Tensor.Off), cmp.Compare(a.Name, b.Name))
	})
	return nil
}

// describeBase reads what resolving has to know of the base.
func (p *planner) describeBase() error {
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

// noteFiles says which files of the base's directory are copied from elsewhere, and which not at all.
func (p *planner) noteFiles() {
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

// addChange makes a change one of a target.
func (p *planner) addChange(c *resolve.Change) error {
	t := p.targets[c.Name]
	if t == nil {
		ref, _ := p.base.Lookup(c.Name)
		p.targets[c.Name] = &target{Change: c, ref: ref}
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
		if err := format.Validate(a.Source.Manifest()); err != nil {
			return fault.InFile(err, a.Name)
		}
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
func (p *planner) checkBlocks(t *target) error {
	_, nCols := t.Matrix()
	rowBytes := nCols * int64(t.ref.Tensor.DType.Size())
	if n := p.blockRows(t) * rowBytes; n > max(maxTogether, rowBytes) {
		return fault.New(fault.Unsupported, "the undo records have cut %q into blocks that fit together after %d bytes, the limit is %d", t.ref.Tensor.Name, n, maxTogether).
			WithHint("take the merges out one at a time")
	}
	return nil
}

// checkTarget looks for changes that this version cannot make together.
func (p *planner) checkTarget(t *target) error {
	if d := t.ref.Tensor.DType; p.options.wantsRecord() && t.changes() && !undo.Records(d) {
		return fault.New(fault.Unsupported, "the adapter replaces %q, of %v, which no undo record can hold", t.Name, d).WithHint("merge without --undo")
	}
	if len(t.undo) > 0 && t.HasResidual() {
		return fault.New(fault.Unsupported, "PiSSA and OLoRA need the original values of %q, and this swap restores them only while it runs", t.Name).
			WithHint("unmerge first, then merge")
	}
	return p.checkBlocks(t)
}

// bandRows is the height of a band.
func (t *target) bandRows() int64 {
	nRows, _ := t.Matrix()
	return nRows / int64(t.NBands)
}

// unchanged reports whether the base, the adapters and the records are what they were when they were
// opened.
func (p *Plan) unchanged() error {
	if err := p.base.Unchanged(); err != nil {
		return err
	}
	for _, a := range slices.Concat(p.removed.adapters, p.adapters) {
		if err := fileio.Unchanged(a.Source); err != nil {
			return err
		}
	}
	for _, r := range p.removed.records {
		if err := r.identity.Check(); err != nil {
			return err
		}
	}
	return nil
}

// Tied says what becomes of an output head that the base has tied to its input embedding, when an
// adapter changes one of the two.
type Tied string

// What can become of it; the zero value refuses.
const (
	Untie Tied = "untie" // the head becomes a tensor of its own, and config.json says so
	Fold  Tied = "fold"  // the change is made to the one tensor, and so to both
)

// Reading says how adapters are applied where their files do not. The zero value lets the files
// decide, and refuses what they leave open. An undo record remembers it, so that what was put in is
// taken out as it was put in.
type Reading struct {
	ExpertInput       int  // the dimension of square experts that lora_A reads, 1 or 2; 0 lets the adapter's release of PEFT decide
	ExpertsSlowest    bool // lora_B of stacked experts has one expert after the other, which PEFT does not write
	OutProjTwice      bool // add the update of out_proj of nn.MultiheadAttention twice, as PEFT up to 0.21 does
	RecomputeResidual bool // take out of the original base what PiSSA and OLoRA have taken out, computed again
	Tied              Tied // what to do with tied ends of which one changes; "" refuses
}

func (r Reading) resolved() resolve.Reading {
	return resolve.Reading{
		ExpertInput: r.ExpertInput, ExpertsSlowest: r.ExpertsSlowest, OutProjTwice: r.OutProjTwice,
		RecomputeResidual: r.RecomputeResidual, Tied: resolve.Tied(r.Tied),
	}
}
