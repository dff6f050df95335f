package merge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	inner "github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/outline"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// Open plans the merge of adapters into the checkpoint at path, a safetensors file or a directory.
// It reads headers only, and fails if it cannot use every tensor of every adapter exactly once. The
// caller closes the plan; adapters must stay open until it has run. ctx bounds only this call; Run
// takes its own. Wrong input is an error that wraps a kind of package format; an adapter without a
// Source and an unknown Reading are errors without a kind.
func Open(ctx context.Context, path string, adapters []Adapter, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *checkpoint.Checkpoint) (*Plan, error) {
		return New(ctx, b, adapters, options)
	})
}

// OpenUnmerge plans to remove adapters from the merged checkpoint at path. With undo records the
// result is the earlier checkpoint byte for byte, headers included, and checksums of every block
// have been compared.
func OpenUnmerge(ctx context.Context, path string, remove Removal, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *checkpoint.Checkpoint) (*Plan, error) {
		return NewUnmerge(ctx, b, remove, options)
	})
}

// OpenSwap plans to remove adapters from the merged checkpoint at path and to merge others in the
// same pass. The result equals a merge of add into the checkpoint before the removed merges. To
// keep an adapter that a record covers, name it in both remove and add.
func OpenSwap(ctx context.Context, path string, remove Removal, add []Adapter, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *checkpoint.Checkpoint) (*Plan, error) {
		return NewSwap(ctx, b, remove, add, options)
	})
}

// New is Open for an open base, which several plans may share. The caller closes it after they have
// run.
func New(
	ctx context.Context, base *checkpoint.Checkpoint, adapters []Adapter, options Options,
) (*Plan, error) {
	return newPlan(ctx, opened(base), removal{}, adapters, options)
}

// NewUnmerge is OpenUnmerge for an open checkpoint, which the caller closes after the plan has run.
func NewUnmerge(
	ctx context.Context, merged *checkpoint.Checkpoint, remove Removal, options Options,
) (*Plan, error) {
	return planRemoval(ctx, opened(merged), remove, nil, options)
}

// NewSwap is OpenSwap for an open checkpoint, which the caller closes after the plan has run.
func NewSwap(
	ctx context.Context, merged *checkpoint.Checkpoint, remove Removal, add []Adapter, options Options,
) (*Plan, error) {
	if len(add) == 0 {
		return nil, fault.New(fault.Mismatch, "no adapter to merge: a swap needs at least one new adapter")
	}
	if remove.Approximate {
		return nil, fault.New(fault.Unsupported, "a swap needs the undo record: subtracting restores the base only approximately, and every later merge would inherit the error")
	}
	return planRemoval(ctx, opened(merged), remove, add, options)
}

func opened(c *checkpoint.Checkpoint) *inner.Checkpoint { return (*inner.Handle)(c).Checkpoint() }

// planRemoval plans to remove adapters and then to merge others, if there are any.
func planRemoval(
	ctx context.Context, merged *inner.Checkpoint, remove Removal, add []Adapter, options Options,
) (*Plan, error) {
	removed, err := findRemoval(ctx, merged, remove)
	if err != nil {
		return nil, err
	}
	return newPlan(ctx, merged, removed, add, options)
}

// openPlan opens the checkpoint at path for one plan, which closes it.
func openPlan(
	ctx context.Context, path string, plan func(*checkpoint.Checkpoint) (*Plan, error),
) (*Plan, error) {
	b, err := checkpoint.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	p, err := plan(b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	p.own = b
	return p, nil
}

// newPlan plans the removals and then the merge.
func newPlan(
	ctx context.Context, base *inner.Checkpoint, removed removal, adapters []Adapter, options Options,
) (*Plan, error) {
	p := &planner{
		Plan:     &Plan{base: base, stored: inner.Stored(base), removed: removed, adapters: adapters, options: options, warnings: removed.notes},
		targets:  make(map[string]*target),
		restored: make(map[int]restored),
	}
	if len(adapters) == 0 && !removed.is() {
		return nil, fault.New(fault.Mismatch, "no adapter to merge")
	}
	if err := errors.Join(options.Check(), checkGiven(adapters)); err != nil {
		return nil, err
	}
	if err := p.resolve(ctx); err != nil {
		return nil, err
	}
	if d := p.decoding; d != nil {
		if err := d.settle(ctx, p); err != nil {
			return nil, err
		}
	}
	p.noteFiles()
	if err := p.sortTargets(); err != nil {
		return nil, err
	}
	before, err := p.restoreHeaders(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.checkStamps(ctx, before); err != nil {
		return nil, err
	}
	p.shaped.Base = nil // the plan needs only what differs from it
	return p.Plan, p.layOut(ctx, before)
}

// checkSource refuses an adapter without a source or with an invalid manifest.
func checkSource(a Adapter) error {
	if a.Source == nil {
		return fmt.Errorf("merge: the adapter %q has no Source; open one with package convert, or build "+
			"one with format.NewBuilder", a.Name)
	}
	return fault.InFile(format.Validate(a.Source.Manifest()), a.Name)
}

// checkGiven refuses missing sources, invalid manifests and weights.
func checkGiven(adapters []Adapter) error {
	for _, a := range adapters {
		if err := checkSource(a); err != nil {
			return err
		}
		switch w := a.Weight; {
		case w == 0:
			return fault.New(fault.Mismatch, "the adapter's weight is 0, which would change nothing").In(a.Name).
				WithHint("leave the adapter out, or use another weight; 1 applies it as trained")
		case math.IsNaN(w) || math.IsInf(w, 0):
			return fault.New(fault.Mismatch, "the adapter's weight is %v, want a finite number", w).In(a.Name)
		}
	}
	return nil
}

// resolve finds every tensor that changes.
func (p *planner) resolve(ctx context.Context) error {
	if err := p.describeBase(); err != nil {
		return err
	}
	o := &p.options
	adapters, err := resolve.Check(resolved(p.adapters), resolve.Reading(o.Reading))
	if err != nil {
		return err
	}
	if allowed := (resolve.Shaping{Untie: o.Tied == Untie, GrowVocabulary: o.GrowVocabulary, AddTensors: o.AddTensors}); allowed != (resolve.Shaping{}) {
		if err := p.shape(ctx, adapters, allowed); err != nil {
			return err
		}
	}
	if p.removed.is() {
		if err := p.addSteps(ctx); err != nil {
			return err
		}
	}
	for _, a := range p.adapters {
		if m := &a.Source.Manifest().Adapters[0]; len(m.Base.Fingerprints) > 0 && !o.AnyBase {
			if err := p.checkBase(ctx, m); err != nil {
				return fault.InFile(err, a.Name)
			}
		}
	}
	changes, notes, err := resolve.Resolve(p.names, adapters)
	if err != nil {
		return err
	}
	p.warnings = append(p.warnings, notes...)
	if len(p.targets) == 0 {
		p.targets = make(map[string]*target, len(changes))
	}
	for _, c := range changes {
		if err := p.addChange(c); err != nil {
			return err
		}
	}
	return nil
}

// describeBase collects the names, shapes and configuration that package resolve needs.
func (p *planner) describeBase() error {
	if p.options.BaseAs != "" {
		if err := simulate(p); err != nil {
			return err
		}
	}
	b, err := outline.Of(p.base)
	if err != nil {
		return err
	}
	p.names, p.side, p.shaped = b, make(map[string][]byte), &resolve.Shaped{Base: b}
	switch {
	case inner.IsQuantised(p.base):
		showDecoded(p)
	case p.options.Requantise:
		return fault.New(fault.Mismatch, "no weight of the base is quantised, and Options.Requantise is for weights that are").In(p.base.Path).
			WithHint("merge without Options.Requantise")
	case p.options.OutDType != dtype.Invalid || p.options.Dequantise:
		p.announce("no weight of the base is quantised, so none is decoded")
	}
	return nil
}

// addChange records a change of a tensor, creating its target if there is none.
func (p *planner) addChange(c *resolve.Change) error {
	var t *target
	if p.removed.is() {
		t = p.targets[c.Name]
	}
	if t == nil {
		ref, _ := p.base.Lookup(c.Name)
		p.targets[c.Name] = &target{Change: c, ref: ref}
		return nil
	}
	if c.Stacked != t.Stacked {
		hasTerms := func(s step) bool { return len(s.terms) > 0 }
		if c.Stacked && slices.ContainsFunc(t.undo, hasTerms) || t.Stacked && len(c.Terms)+len(c.Deltas) > 0 {
			return resolve.StackedAndNot(c.Name)
		}
		c.Stacked, c.NBands = true, max(1, int(c.Shape[0]))
	}
	t.Change = c
	return nil
}

// noteFiles warns about links that lead out of the base's directory, and about files that are not
// copied.
func (p *planner) noteFiles() {
	for _, note := range p.base.Notes {
		p.warn("%s", note)
	}
	for _, name := range p.base.Beyond {
		p.announce("%q is a link that leads out of the base's directory; its target is copied", name)
	}
	for _, name := range p.base.Left {
		p.announce("%q is not copied: it does not belong to the merged model", name)
	}
}

// sortTargets sorts the targets by file and offset, and refuses unsupported ones.
func (p *planner) sortTargets() error {
	type placed struct { // beside the target, so that a comparison stays within the list
		file int
		off  int64
		*target
	}
	all := make([]placed, 0, len(p.targets))
	for _, t := range p.targets {
		all = append(all, placed{t.ref.File, t.ref.Tensor.Off, t})
	}
	slices.SortFunc(all, func(a, b placed) int {
		if c := cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.off, b.off)); c != 0 {
			return c
		}
		return cmp.Compare(a.Name, b.Name) // of two without elements
	})
	p.Plan.targets = make([]*target, len(all))
	for i, t := range all {
		p.Plan.targets[i] = t.target
		if err := p.checkTarget(t.target); err != nil {
			return err
		}
	}
	return nil
}

// checkTarget refuses combinations of changes that this version does not support.
func (p *planner) checkTarget(t *target) error {
	if d := t.ref.Tensor.DType; p.options.wantsRecord() && t.changes() && !undo.Records(d) {
		return fault.New(fault.Unsupported, "the adapter replaces %q, and an undo record cannot hold its dtype %v", t.Name, d).WithHint("merge without Options.Undo")
	}
	if len(t.undo) > 0 && t.HasResidual() {
		return fault.New(fault.Unsupported, "PiSSA and OLoRA need the original values of %q, and this swap restores them only while it runs", t.Name).
			WithHint("unmerge first, then merge")
	}
	return p.checkBlocks(t)
}

// maxTogether is the most bytes of one tensor that are processed together. Undo records with
// different block sizes can force large blocks.
const maxTogether = 256 << 20

// checkBlocks refuses records whose common block is larger than maxTogether.
func (p *planner) checkBlocks(t *target) error {
	_, nCols := t.Matrix()
	rowBytes := nCols * int64(t.ref.Tensor.DType.Size())
	if n := p.blockRows(t) * rowBytes; n > max(maxTogether, rowBytes) {
		return fault.New(fault.Unsupported, "the undo records cut %q into blocks of different sizes, whose common block has %d bytes; the limit is %d", t.ref.Tensor.Name, n, maxTogether).
			WithHint("remove the merges one at a time")
	}
	return nil
}

// restoreHeaders returns the headers of the files after the removals, for plans that remove merges
// or record theirs. Any other plan needs no header before it runs.
func (p *planner) restoreHeaders(ctx context.Context) ([]restored, error) {
	if !p.removed.is() && !p.options.wantsRecord() {
		return make([]restored, len(p.base.Files)), nil
	}
	changed := filesOf(p, func(*target) bool { return true })
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
	for i, r := range p.restored {
		all[i] = r
	}
	if p.removed.is() && p.removed.records == nil {
		return all, removeStamps(all, p.removed.ids)
	}
	return all, nil
}

// filesOf reports which files have such targets. If any part of a split of GGUF files has one, the
// first part has its stamp, too: llama-gguf-split keeps the keys of that part alone when it joins
// them.
func filesOf(p *planner, is func(*target) bool) []bool {
	has := make([]bool, len(p.base.Files))
	for _, t := range p.Plan.targets {
		if is(t) {
			has[t.ref.File] = true
			has[0] = has[0] || inner.IsSplit(p.base)
		}
	}
	return has
}

// checkStamps refuses an adapter that the base already has, unless Options.Again is set. before
// holds the headers after the removals.
func (p *planner) checkStamps(ctx context.Context, before []restored) error {
	if p.options.Again {
		return nil
	}
	isStamped := func(f *inner.File) bool { return len(f.History()) > 0 }
	if len(p.adapters) < 2 && !slices.ContainsFunc(p.base.Files, isStamped) {
		return nil
	}
	if err := identify(ctx, p.Plan); err != nil {
		return err
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

// layOut plans the output files and their headers. before holds the base's headers after the
// removals.
func (p *planner) layOut(ctx context.Context, before []restored) error {
	byFile := make(map[int][]*target)
	for _, t := range p.Plan.targets {
		byFile[t.ref.File] = append(byFile[t.ref.File], t)
	}
	isStamped := filesOf(p, (*target).changes)
	for i, in := range p.base.Files {
		f := &outFile{in: in, before: before[i], targets: byFile[i], isStamped: isStamped[i]}
		f.hasHeader = f.isStamped || f.before.header != nil
		switch {
		case f.before.header != nil:
			header, err := newHeader(ctx, p.Plan, f)
			if err != nil {
				return err
			}
			f.shift = int64(len(header)) - in.DataOff
		case f.isStamped:
			var err error
			if f.shift, err = in.StampGrowth(ctx, stampOf(p.Plan)); err != nil {
				return err
			}
		}
		p.files = append(p.files, f)
	}
	return nil
}

// newHeader returns the header of an output file, for a file that has another one than the base's.
func newHeader(ctx context.Context, p *Plan, f *outFile) ([]byte, error) {
	h := f.before.header
	if h == nil {
		var err error
		if h, err = f.in.Header(ctx); err != nil {
			return nil, err
		}
	}
	if !f.isStamped {
		return h.Raw, nil
	}
	return h.Stamped(stampOf(p))
}

// stampOf returns the stamp of this merge. Until the adapters are identified, it has the right
// length only.
func stampOf(p *Plan) inner.Stamp {
	s := inner.Stamp{Tool: p.options.Tool, BaseAs: p.options.BaseAs, BaseAsSkip: p.options.BaseAsSkip}
	switch {
	case p.options.Stochastic:
		s.Requantise, s.Seed = inner.StochasticCodes, p.options.Seed
	case p.options.Requantise:
		s.Requantise = inner.NearestCodes
	}
	for i, a := range p.adapters {
		content := unknownID
		if p.ids != nil {
			content = p.ids[i]
		}
		s.Adapters = append(s.Adapters, inner.StampAdapter{Name: baseName(a.Name), Content: content, Weight: a.Weight})
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
