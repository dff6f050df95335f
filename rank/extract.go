package rank

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	inner "github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Reasons for skipping a tensor.
const (
	whyExcluded = "excluded"
	whyTrunk    = "only in the base: the tuned checkpoint's class has no head"
	whyGone     = "only in the base"
	whyNew      = "only in the tuned checkpoint"
	// whyNotCompared follows whyGone and whyNew for tensors of image models.
	whyNotCompared = ", under this name; not compared"
	whyAverage     = "a running average of the weights that training keeps"

	whyTied     = "tied to the embedding, which both checkpoints have"
	whyBudget   = "the budget was spent on other layers"
	whyTooSmall = "the difference is too small for float32"
)

// OpenExtraction compares the headers of the checkpoints at two paths. The caller closes the
// extraction. ctx bounds only this call; Run takes its own. An option outside of its range is an
// error, before any file is opened.
func OpenExtraction(ctx context.Context, basePath, tunedPath string, o ExtractOptions) (*Extraction, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	base, err := checkpoint.Open(ctx, basePath)
	if err != nil {
		return nil, err
	}
	tuned, err := checkpoint.Open(ctx, tunedPath)
	if err != nil {
		return nil, errors.Join(err, base.Close())
	}
	e, err := NewExtraction(base, tuned, o)
	if err != nil {
		return nil, errors.Join(err, base.Close(), tuned.Close())
	}
	e.own = []io.Closer{base, tuned}
	return e, nil
}

// NewExtraction is OpenExtraction for open checkpoints, and refuses the same options. The caller
// closes the checkpoints after the extraction has run.
func NewExtraction(base, tuned *checkpoint.Checkpoint, o ExtractOptions) (*Extraction, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	e := &Extraction{
		base: opened(base), tuned: opened(tuned), options: o, others: make(map[string]located),
	}
	if e.options.DType == dtype.Invalid {
		e.options.DType = dtype.F32
	}
	if err := e.plan(); err != nil {
		return nil, err
	}
	return e, nil
}

func opened(c *checkpoint.Checkpoint) *inner.Checkpoint { return (*inner.Handle)(c).Checkpoint() }

// plan pairs the tensors by name.
func (e *Extraction) plan() error {
	for _, c := range []*inner.Checkpoint{e.base, e.tuned} {
		if err := refuseUnreadable(c); err != nil {
			return err
		}
	}
	var err error
	for _, c := range []**inner.Checkpoint{&e.base, &e.tuned} {
		if *c, err = inner.AsTransformers(*c); err != nil {
			return err
		}
	}
	if e.tuned, e.twins, err = matchImages(e.base, e.tuned); err != nil {
		return err
	}
	if e.options.Images && e.twins == nil {
		return fault.New(fault.Unsupported, "the base or the tuned checkpoint is no image or video model "+
			"that is known here, and the dialect is for these").In(e.base.Path).
			WithHint("write a .lora file, or a directory for PEFT")
	}
	e.findEnds()
	names, how, ambiguous := naming.Pair(e.base.Names(), e.tuned.Names())
	e.warnOfHeaders(how)
	e.leaveGone(names)
	common, sameShape := e.pairUp(names)
	if err := refuseAdapter(common, e.base, e.tuned); err != nil {
		return err
	}
	switch {
	case len(ambiguous) > 0:
		return fault.New(fault.Mismatch, "the tensor names of the tuned checkpoint match the base's in several ways: %s", strings.Join(ambiguous, "; ")).
			WithHint("save both with the same version of transformers")
	case len(e.base.Names()) == 0 || len(e.tuned.Names()) == 0:
		return fault.New(fault.Mismatch, "one of the two checkpoints has no tensors").WithHint("give the files or directories with the weights")
	case common == 0:
		return fault.New(fault.Mismatch, "the two checkpoints have no tensor name in common: %s against %s",
			fault.List(e.base.Names(), 2), fault.List(e.tuned.Names(), 2)).WithHint("use the base that the tuned checkpoint was trained from")
	case sameShape == 0:
		return fault.New(fault.Mismatch, "the two checkpoints have %s in common, but none with the same shape", fault.Count(common, "tensor name")).
			WithHint("the models have different sizes; use the base that the tuned checkpoint was trained from")
	case len(e.pairs) == 0:
		return fault.New(fault.Mismatch, "nothing to extract: of %s with the same shape, none is selected and has a float dtype", fault.Count(sameShape, "tensor")).
			WithHint("ExtractOptions.Include and ExtractOptions.Exclude are regular expressions for names; the modules are called %s", strings.Join(naming.Leaves(e.base.Names()), ", "))
	}
	warnOfSchemes(e)
	if e.options.PEFT {
		if err := e.pairLive(); err != nil {
			return err
		}
	}
	// Sorted by position, files are read front to back.
	sort.SliceStable(e.pairs, func(i, j int) bool {
		a, b := e.pairs[i].tuned.ref, e.pairs[j].tuned.ref
		return a.File < b.File || a.File == b.File && a.Tensor.Off < b.Tensor.Off
	})
	return nil
}

// refuseUnreadable refuses a checkpoint with quantised weights that cannot be read, because an
// extraction without them would look complete.
func refuseUnreadable(c *inner.Checkpoint) error {
	if unreadable := inner.UnreadableOf(c); len(unreadable) > 0 {
		return unreadable[0].Err
	}
	if q := c.Config.QuantizationMethod; q != "" && !inner.IsQuantised(c) {
		return fault.New(fault.Unsupported, "the checkpoint is quantised (config.json says %s), and none of its tensors is in a scheme that is known here", q).In(c.Path).
			WithHint("extract from checkpoints in F32, F16 or BF16")
	}
	return nil
}

// refuseAdapter is the error for an adapter in place of a checkpoint. A whole model can have the
// prefix of PEFT's keys too, but most of its tensors are among the common ones.
func refuseAdapter(common int, checkpoints ...*inner.Checkpoint) error {
	for _, c := range checkpoints {
		names := c.Names()
		if 2*common < len(names) && naming.AreOfAdapter(names) {
			err := fault.New(fault.Mismatch, "extract needs two whole checkpoints, and these keys are %s",
				naming.Dialect(names)).In(c.Path).WithHint("this is an adapter")
			err.Misplaced = true
			return err
		}
	}
	return nil
}

// leaveGone leaves out the base's tensors that the tuned checkpoint lacks. names maps tuned names
// to base names.
func (e *Extraction) leaveGone(names map[string]string) {
	paired := make(map[string]bool, len(names))
	for _, name := range names {
		paired[name] = true
	}
	isTrunk := isTrunk(e.base, e.tuned)
	for _, name := range e.base.Names() {
		switch {
		case paired[name]:
		case e.twins != nil && naming.IsAverage(name):
			e.skip(name, whyAverage)
		case isTrunk:
			e.skip(name, whyTrunk)
		case isForeign(e.twins, name, true):
			e.skip(name, whyGone+whyNotCompared)
		default:
			e.leave(name, whyGone+e.tunedEnds.unless(name, &e.baseEnds), locate(e.base, name),
				e.tunedEnds.counterpart(name, &e.baseEnds))
		}
	}
}

// pairUp pairs the tensors of both checkpoints by name and leaves out the others. It counts the
// common names, and the common names with equal shapes.
func (e *Extraction) pairUp(names map[string]string) (common, sameShape int) {
	for _, tunedName := range e.tuned.Names() {
		tuned := locate(e.tuned, tunedName)
		name, ok := names[tunedName]
		switch tied := e.baseEnds.counterpart(tunedName, &e.tunedEnds); {
		case e.twins != nil && naming.IsAverage(tunedName):
			e.skip(tunedName, whyAverage)
			continue
		case !ok && tied != nil && e.tunedEnds.isTied():
			e.skip(tunedName, whyTied)
			continue
		case !ok && isForeign(e.twins, tunedName, false):
			e.skip(tunedName, whyNew+whyNotCompared)
			continue
		case !ok:
			e.leave(tunedName, whyNew+e.baseEnds.unless(tunedName, &e.tunedEnds), tied, tuned)
			continue
		}
		base := locate(e.base, name)
		common++
		if !slices.Equal(base.ref.Tensor.Shape, tuned.ref.Tensor.Shape) {
			e.leave(name, fmt.Sprintf("reshaped from %d to %d", base.ref.Tensor.Shape, tuned.ref.Tensor.Shape), base, tuned)
			continue
		}
		sameShape++
		switch {
		case !base.dtype().IsFloat() || !tuned.dtype().IsFloat():
			e.leave(name, fmt.Sprintf("stored as %v and %v", base.dtype(), tuned.dtype()), base, tuned)
			e.others[name] = *tuned
		case !e.options.selects(name):
			e.leave(name, whyExcluded, base, tuned)
		default:
			e.pairs = append(e.pairs, pair{name: name, base: *base, tuned: *tuned})
		}
	}
	return common, sameShape
}

// Bytes returns the number of bytes that the extraction reads from the tuned checkpoint.
func (e *Extraction) Bytes() (n int64) {
	for i := range e.pairs {
		n += e.pairs[i].tuned.ref.Tensor.NBytes
	}
	return n
}

// Warnings lists facts that a user should know before the extraction runs. The report of Run begins
// with them.
func (e *Extraction) Warnings() []string { return e.warnings }

// PeakBytes estimates the memory that Run takes: Δ of the largest tensor in float32, whose place
// the others take too, and the largest basis and factors. It also names the largest tensor, "" if
// none is decomposed. Stacked experts are decomposed one at a time.
func (e *Extraction) PeakBytes() (peak int64, tensor string) {
	kept := int64(64)
	if f, ok := e.options.Rule.(FixedRank); ok {
		kept = int64(max(f.K, e.options.ConvRank))
	}
	width, block := max(64, 6*kept), max(8, min(kept, 32))
	var largest, beside int64
	for i := range e.pairs {
		v, ok := e.view(&e.pairs[i])
		if !ok {
			continue
		}
		m, n := int64(v.rows), int64(v.cols) // of one expert, if several are stacked
		short := min(m, n)
		if size := 4 * m * n; size > largest {
			largest, tensor = size, e.pairs[i].name
		}
		const perFactor = 32 // singular vectors and factors in float64, factors in float32 and as stored
		beside = max(beside, (8*min(width, short)+perFactor*min(kept, short))*(m+n)+8*gramBlocks*block*short)
	}
	return largest + beside + 32<<20, tensor
}

// Planned is a tensor that will be compared.
type Planned struct {
	Tensor string   `json:"tensor"`
	Shape  []uint64 `json:"shape"`
	Kind   string   `json:"kind"` // kind of its layer, or "beside"
}

// Planned lists the common tensors to compare, and the tensors that the headers alone exclude.
func (e *Extraction) Planned() (planned []Planned, skipped []Skipped) {
	for i := range e.pairs {
		p := &e.pairs[i]
		kind := "beside"
		if view, ok := e.view(p); ok {
			kind = string(view.kind)
		}
		planned = append(planned, Planned{Tensor: p.name, Shape: p.tuned.ref.Tensor.Shape, Kind: kind})
	}
	return planned, e.skipped
}

// view says how to treat a tensor as one or several matrices: its layer, and whether the base
// stores it transposed.
type view struct {
	module     string
	parameter  string // the tensor's name, for experts whose module has several
	kind       format.Kind
	slabs      int // number of stacked matrices
	rows, cols int // of each, as stored
	transposed bool
	shape      []uint64
}

// hasKernel reports whether the view is of a convolution whose kernel has more than one place.
func (v *view) hasKernel() bool {
	return v.kind == format.Conv && slices.ContainsFunc(v.shape[2:], func(n uint64) bool { return n > 1 })
}

// view returns the view of a tensor. ok is false if factors cannot represent the tensor.
func (e *Extraction) view(p *pair) (view, bool) {
	if e.peft != nil {
		return e.viewPEFT(p)
	}
	shape := p.tuned.ref.Tensor.Shape
	if len(shape) < 2 || len(shape) > 5 || slices.Contains(shape, 0) {
		return view{}, false
	}
	if e.options.Images && !isComponent(e.twins, p.name) {
		return view{}, false
	}
	if len(shape) == 3 && naming.IsExperts(naming.Module(p.name)) {
		return view{
			module: naming.Module(p.name), parameter: p.name, kind: format.Expert, slabs: int(shape[0]), rows: int(shape[1]), cols: int(shape[2]),
			transposed: naming.HasTransposedExperts(e.base.Config.ModelType), shape: shape,
		}, true
	}
	module, isWeight := strings.CutSuffix(p.name, ".weight")
	if !isWeight && e.byModule { // in_proj_weight
		module = naming.WeightModule(p.name)
		isWeight = module != ""
	}
	if !isWeight || e.options.Images && naming.IsLookup(module) {
		return view{}, false
	}
	n := p.tuned.ref.Tensor.Elements()
	v := view{module: module, kind: format.Linear, slabs: 1, rows: int(shape[0]), cols: int(n / int64(shape[0])), shape: shape}
	switch {
	case len(shape) > 2:
		v.kind = format.Conv
	case naming.IsEmbedding(module), e.isTiedEmbedding(p.name):
		v.kind = format.Embedding
		v.transposed = true
	case naming.IsConv1DModel(e.base.Config.ModelType) && naming.IsConv1DName(module):
		v.transposed = true
	}
	return v, true
}
