package merge

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// Open plans the merge of adapters into the checkpoint at path. It fails, before anything is
// written, if any tensor of an adapter could not be used exactly once. The caller closes the plan.
// Errors wrap a kind of package format.
func Open(ctx context.Context, path string, adapters []Adapter, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *Base) (*Plan, error) { return b.Merge(ctx, adapters, options) })
}

// OpenUnmerge plans to take adapters out of the merged checkpoint at path. With records the result
// is the checkpoint before these merges byte for byte, headers included, and proved by digest.
func OpenUnmerge(ctx context.Context, path string, remove Removal, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *Base) (*Plan, error) { return b.Unmerge(ctx, remove, options) })
}

// OpenSwap plans to take adapters out of the merged checkpoint at path and to merge others in the
// same pass. The result is that of merging add into the checkpoint before the merges that are taken
// out. To keep an adapter of a record, name it on both sides.
func OpenSwap(ctx context.Context, path string, remove Removal, add []Adapter, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *Base) (*Plan, error) { return b.Swap(ctx, remove, add, options) })
}

// Base is an opened base model, or a merged one. Only headers and configurations have been read.
// Several plans may use it at once. The caller closes it when they have run.
type Base struct{ checkpoint *checkpoint.Checkpoint }

// OpenBase opens the checkpoint at path: a safetensors file, or a directory with one or with shards
// and their index. Errors wrap a kind of package format, or are I/O errors.
func OpenBase(ctx context.Context, path string) (*Base, error) {
	return newBase(checkpoint.Open(ctx, path))
}

// OpenBaseFS is OpenBase for a file or a directory of an fs.FS; "." is its root. Files that
// implement io.ReaderAt are read by position, from several goroutines. Any other is read into
// memory whole.
func OpenBaseFS(ctx context.Context, files fs.FS, name string) (*Base, error) {
	return newBase(checkpoint.OpenFS(ctx, files, name))
}

// OpenBaseReader opens a safetensors file of size bytes that has nothing beside it, such as one in
// memory. Messages call it name. r is read by position, from several goroutines, until the base is
// closed; it is not closed itself.
func OpenBaseReader(ctx context.Context, name string, r io.ReaderAt, size int64) (*Base, error) {
	return newBase(checkpoint.New(ctx, name, r, size))
}

func newBase(c *checkpoint.Checkpoint, err error) (*Base, error) {
	if err != nil {
		return nil, err
	}
	return &Base{c}, nil
}

// Close closes the files of the base.
func (b *Base) Close() error { return b.checkpoint.Close() }

// History lists what the stamps of the base say was merged into it; see the function History.
func (b *Base) History() []Merged { return historyOf(b.checkpoint) }

// Merge is Open for a base that is open already.
func (b *Base) Merge(ctx context.Context, adapters []Adapter, options Options) (*Plan, error) {
	return newPlan(ctx, b.checkpoint, removal{}, adapters, options)
}

// Unmerge is OpenUnmerge for a checkpoint that is open already.
func (b *Base) Unmerge(ctx context.Context, remove Removal, options Options) (*Plan, error) {
	return b.remove(ctx, remove, nil, options)
}

// Swap is OpenSwap for a checkpoint that is open already.
func (b *Base) Swap(ctx context.Context, remove Removal, add []Adapter, options Options) (*Plan, error) {
	if len(add) == 0 {
		return nil, fault.New(fault.Mismatch, "no adapter to put in")
	}
	if remove.Approximate {
		return nil, fault.New(fault.Unsupported, "a swap needs the undo record: a result that stands on an approximate base is not the merge of anything")
	}
	return b.remove(ctx, remove, add, options)
}

func (b *Base) remove(ctx context.Context, remove Removal, add []Adapter, options Options) (*Plan, error) {
	removed, err := findRemoval(ctx, b.checkpoint, remove)
	if err != nil {
		return nil, err
	}
	return newPlan(ctx, b.checkpoint, removed, add, options)
}

// openPlan opens the base at path for a plan, which closes it.
func openPlan(ctx context.Context, path string, plan func(*Base) (*Plan, error)) (*Plan, error) {
	b, err := OpenBase(ctx, path)
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

// describeBase reads what resolving has to know of the base.
func (p *planner) describeBase() error {
	b := &resolve.Base{Path: p.base.Path, Tensors: make(map[string]resolve.Tensor), Config: p.base.Config}
	for _, f := range p.base.Files {
		for i := range f.Tensors {
			t := &f.Tensors[i]
			b.Tensors[t.Name] = resolve.Tensor{DType: t.DType, Shape: t.Shape}
		}
	}
	if p.base.IsDir && slices.Contains(p.base.Side, checkpoint.ConfigName) {
		text, err := p.base.Dir.Read(checkpoint.ConfigName, checkpoint.MaxJSONBytes)
		if err != nil {
			return err
		}
		b.ConfigText = text
	}
	p.names, p.side, p.shaped = b, make(map[string][]byte), &resolve.Shaped{Base: b}
	return nil
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

// checkTarget looks for changes that this version cannot make together.
func (p *planner) checkTarget(t *target) error {
	if d := t.ref.Tensor.DType; p.options.wantsRecord() && t.changes() && !undo.Records(d) {
		return fault.New(fault.Unsupported, "the adapter replaces %q, of %v, which no undo record can hold", t.Name, d).WithHint("merge without Options.Undo")
	}
	if len(t.undo) > 0 && t.HasResidual() {
		return fault.New(fault.Unsupported, "PiSSA and OLoRA need the original values of %q, and this swap restores them only while it runs", t.Name).
			WithHint("unmerge first, then merge")
	}
	return p.checkBlocks(t)
}

// maxTogether is how much of a tensor is worked on at a time, at most, because records have cut it
// in different ways.
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

// noteFiles says which files of the base's directory are copied from elsewhere, and which not at
// all.
func (p *planner) noteFiles() {
	for _, name := range p.base.Beyond {
		p.warn("%q of the base is a link that leads out of its directory: what lies there is copied", name)
	}
	for _, name := range p.base.Left {
		p.warn("%q is not copied: it is no part of the merged model", name)
	}
}
