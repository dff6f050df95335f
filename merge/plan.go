package merge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"strings"
	"sync/atomic"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
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
	ran        atomic.Bool
	base       *checkpoint.Checkpoint
	adapters   []Adapter
	options    Options
	targets    []*target // in the order of files and of data
	warnings   []string
	files      []*outFile
	ids        []string          // content ids of the adapters
	records    []*Record         // of what is taken out, the latest merge first
	nRemoved   int               // how many of the adapters, the first ones, are taken out
	restored   []*restored       // of each file, its header before what is taken out was merged
	side       map[string][]byte // files beside the weights that change
	folded     map[bool]bool     // whether the head (true) and the embedding (false) change, where they are folded
	foldedEnds [2]string         // the embedding and the head then, by their names without wrappers
	mirror     [2]string         // the embedding and the second copy of it that the head is
	added      map[string]saved  // tensors that the base lacked, or had in another shape, by their names in the output
	renamed    map[string]string // tensors of the base that have other names in the output
	reshaped   bool              // whether the base has other tensors than on the disk
}

// wantsRecord reports whether an undo record is to be written.
func (o *Options) wantsRecord() bool { return o.Undo != nil || o.UndoFile != "" }

// target is a tensor of the base that changes. It is seen as a matrix, cut by rows into bands of equal height that each have terms of
// their own: one per expert where the tensor stacks experts, and one alone everywhere else.
type target struct {
	ref     checkpoint.Ref
	module  string
	stacked bool // three dimensions that stand for a stack of matrices
	nBands  int
	terms   []term
	dora    *magnitude // rescales the updated weight
	replace *blob      // the tensor of an adapter that stands in for the base's
	rows    *rows
	undo    []step // what is taken out before that, the latest merge first
}

// changes reports whether something is put into the tensor.
func (t *target) changes() bool { return len(t.terms) > 0 || t.replace != nil || t.rows != nil }

// term is one update s·B·A, seen as Left (rows×r) times Right (r×cols) in the orientation of the base's tensor.
type term struct {
	adapter     int
	module      string
	band        int
	scale       float64 // S = ω·s
	transposed  bool    // the base stores the weight n×m, so Left is Aᵀ and Right Bᵀ
	rank        int
	left, right factor
	residual    *residual // in their place: a part of the base that is taken out
}

// blob is a tensor of a source.
type blob struct {
	source format.Source
	index  int
}

func (b blob) tensor() *format.Tensor { return &b.source.Manifest().Tensors[b.index] }

// rows are rows of a tensor that are replaced: row order[i] of the base by row i of the blob.
type rows struct {
	blob
	order []int64
}

// Open plans the merge of adapters into the checkpoint at path. It fails, before anything is written, if any tensor of an
// adapter could not be used exactly once. The caller closes the plan. Errors wrap a kind of package format.
func Open(ctx context.Context, path string, adapters []Adapter, options Options) (*Plan, error) {
	base, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	p := &Plan{base: base, adapters: adapters, options: options}
	if err := p.plan(ctx); err != nil {
		return nil, errors.Join(err, base.Close())
	}
	return p, nil
}

// Close closes the base.
func (p *Plan) Close() error { return p.base.Close() }

// Warnings are what a user should know before the plan runs.
func (p *Plan) Warnings() []string { return p.warnings }

func (p *Plan) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

func (p *Plan) plan(ctx context.Context) error {
	if len(p.adapters) == 0 {
		return fault.New(fault.Mismatch, "no adapter to merge")
	}
	if err := checkGiven(p.adapters[p.nRemoved:]); err != nil {
		return err
	}
	for _, a := range p.adapters {
		if err := format.Validate(a.Source.Manifest()); err != nil {
			return fault.InFile(err, a.Name)
		}
	}
	if err := p.reshape(); err != nil {
		return err
	}
	byTensor := make(map[string]*target)
	if err := p.addSteps(ctx, byTensor); err != nil {
		return err
	}
	if err := p.addAdapters(ctx, p.nRemoved, len(p.adapters), byTensor); err != nil {
		return err
	}
	if err := p.editIndex(); err != nil {
		return err
	}
	for _, name := range p.base.Beyond {
		p.warn("%q of the base is a link that leads out of its directory: what lies there is copied", name)
	}
	for _, name := range p.base.Left {
		p.warn("%q is not copied: it is no part of the merged model", name)
	}
	for _, t := range byTensor {
		if err := t.check(); err != nil {
			return err
		}
		if d := t.ref.Tensor.DType; p.options.wantsRecord() && t.changes() && !undo.Records(d) {
			return fault.New(fault.Unsupported, "the adapter replaces %q, of %v, which no undo record can hold", t.ref.Tensor.Name, d).WithHint("merge without --undo")
		}
		if err := p.checkBlocks(t); err != nil {
			return err
		}
		p.targets = append(p.targets, t)
	}
	sort.Slice(p.targets, func(i, j int) bool {
		a, b := p.targets[i].ref, p.targets[j].ref
		return a.File < b.File || a.File == b.File && a.Tensor.Off < b.Tensor.Off
	})
	ids, err := contentIDs(ctx, p.adapters[p.nRemoved:]) // those of what is taken out are known
	if err != nil {
		return err
	}
	p.ids = append(p.ids, ids...)
	if err := p.restoreHeaders(); err != nil {
		return err
	}
	if err := p.checkStamps(); err != nil {
		return err
	}
	return p.layOut()
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
	_, nCols := t.shape()
	rowBytes := nCols * int64(t.ref.Tensor.DType.Size())
	if n := p.blockRows(t) * rowBytes; n > max(maxTogether, rowBytes) {
		return fault.New(fault.Unsupported, "the undo records have cut %q into blocks that fit together after %d bytes, the limit is %d", t.ref.Tensor.Name, n, maxTogether).
			WithHint("take the merges out one at a time")
	}
	return nil
}

// addAdapters adds the adapters of one merge, from to to−1.
func (p *Plan) addAdapters(ctx context.Context, from, to int, byTensor map[string]*target) error {
	index := naming.Index(p.base.Names())
	p.mirror = [2]string{}
	if p.options.Tied == Fold && from < to {
		if err := p.alias(index); err != nil {
			return err
		}
	}
	for i := from; i < to; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.addAdapter(ctx, i, index, byTensor); err != nil {
			return fault.InFile(err, p.adapters[i].Name)
		}
	}
	p.addMirror(byTensor)
	return nil
}

// addAdapter pairs every tensor of one adapter with the tensor of the base that it changes.
func (p *Plan) addAdapter(ctx context.Context, i int, index *naming.Base, byTensor map[string]*target) error {
	manifest := p.adapters[i].Source.Manifest()
	for _, note := range manifest.Notes {
		p.warn("%s", note)
	}
	if len(manifest.Adapters) != 1 {
		return fault.New(fault.Unsupported, "a bundle of %d adapters", len(manifest.Adapters)).WithHint("convert the one that is meant to a file of its own")
	}
	a := &manifest.Adapters[0]
	if why, hint := Refusals(p.withoutResiduals(a)); len(why) > 0 {
		return fault.New(fault.Unsupported, "the adapter cannot be merged: %s", strings.Join(why, "; ")).WithHint("%s", hint)
	}
	if err := p.checkBase(ctx, a, byTensor); err != nil {
		return err
	}
	r := &resolver{plan: p, index: i, adapter: a, manifest: manifest, names: index, byTensor: byTensor}
	return r.resolve()
}

// check looks for changes to one tensor that do not go together.
func (t *target) check() error {
	name := t.ref.Tensor.Name
	if t.rows != nil && (t.replace != nil && t.replace.source != t.rows.source || len(t.terms) > 0) {
		return fault.New(fault.Unsupported, "%q is to get trained token rows and another change as well, and their order is not defined", name)
	}
	if err := t.checkResidual(); err != nil {
		return err
	}
	if t.dora != nil && (nLayers(t.terms) > 1 || t.rows != nil) {
		return fault.New(fault.Unsupported, "%q gets the magnitudes of DoRA from %q and another change as well, and which comes first changes the result", name, t.dora.module).
			WithHint("merge one adapter, then the other into what comes out")
	}
	if t.dora != nil && t.dora.ofColumns && len(t.undo) > 0 {
		return fault.New(fault.Unsupported, "%q gets the magnitudes of DoRA, whose norms take a pass over the tensor that is there when the other adapter is out", name).
			WithHint("unmerge first, then merge")
	}
	if t.replace != nil && len(t.terms) > 0 && t.replace.tensor().DType != t.ref.Tensor.DType {
		return fault.New(fault.Unsupported, "%q is replaced by a tensor in %v and updated as well, while the base stores %v",
			name, t.replace.tensor().DType, t.ref.Tensor.DType)
	}
	return nil
}

// shape returns a tensor as a matrix: a vector is one row, and stacked matrices stand one below the other.
func (t *target) shape() (nRows, nCols int64) {
	s := t.ref.Tensor.Shape
	if len(s) < 2 {
		return 1, t.ref.Tensor.Elements()
	}
	nRows = int64(s[0])
	if t.stacked {
		nRows *= int64(s[1])
	}
	if nRows == 0 {
		return 0, 0
	}
	return nRows, t.ref.Tensor.Elements() / nRows
}

// bandRows is the height of a band.
func (t *target) bandRows() int64 {
	nRows, _ := t.shape()
	return nRows / int64(t.nBands)
}

// ofBand picks the terms of a band.
func ofBand(terms []term, band int) []term {
	return slices.DeleteFunc(slices.Clone(terms), func(x term) bool { return x.band != band })
}

// nLayers counts the layers that the terms are of.
func nLayers(terms []term) int {
	type layer struct {
		adapter int
		module  string
	}
	all := make(map[layer]bool)
	for _, x := range terms {
		all[layer{x.adapter, x.module}] = true
	}
	return len(all)
}

// wide reports whether the fast pass of some terms has to run in float64: for float32 and float64 results, and for float64
// factors, and for DoRA.
func (t *target) wide(terms []term) bool {
	d := t.ref.Tensor.DType
	if d == dtype.F32 || d == dtype.F64 || t.dora != nil {
		return true
	}
	for i := range terms {
		term := &terms[i]
		if term.residual != nil {
			return true
		}
		for _, f := range []factor{term.left, term.right} {
			if f.source != nil && f.tensor().DType == dtype.F64 {
				return true
			}
		}
	}
	return false
}
