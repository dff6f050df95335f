package rank

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Why a tensor is skipped.
const (
	whyExcluded = "excluded"
	whyTrunk    = "only in the base: the tuned checkpoint is a model without a head"
	whyGone     = "only in the base"
	whyNew      = "only in the tuned checkpoint"
	whyTied     = "tied to the embedding, which both checkpoints have"
	whyBudget   = "the budget was spent on other layers"
	whyTooSmall = "differs by less than float32 holds"
)

// OpenExtraction compares the headers of the checkpoints at two paths. The caller closes the
// extraction.
func OpenExtraction(ctx context.Context, basePath, tunedPath string, o ExtractOptions) (*Extraction, error) {
	base, err := OpenCheckpoint(ctx, basePath)
	if err != nil {
		return nil, err
	}
	tuned, err := OpenCheckpoint(ctx, tunedPath)
	if err != nil {
		return nil, errors.Join(err, base.Close())
	}
	e, err := NewExtraction(base, tuned, o)
	if err != nil {
		return nil, errors.Join(err, base.Close(), tuned.Close())
	}
	e.own = []*Checkpoint{base, tuned}
	return e, nil
}

// NewExtraction is OpenExtraction for checkpoints that are open already. The caller closes them
// after the extraction has run.
func NewExtraction(base, tuned *Checkpoint, o ExtractOptions) (*Extraction, error) {
	if (o.Rule == nil) == (o.Budget == 0) {
		return nil, errors.New("internal error: an extraction needs a rule or a budget")
	}
	e := &Extraction{base: base.checkpoint, tuned: tuned.checkpoint, options: o, others: make(map[string]located)}
	if e.options.DType == dtype.Invalid {
		e.options.DType = dtype.F32
	}
	if err := e.plan(); err != nil {
		return nil, err
	}
	return e, nil
}

// plan pairs the tensors by name.
func (e *Extraction) plan() error {
	for _, c := range []*checkpoint.Checkpoint{e.base, e.tuned} {
		if q := c.Config.QuantizationMethod; q != "" {
			return fault.New(fault.Unsupported, "the checkpoint is quantised (config.json says %s)", q).In(c.Path).
				WithHint("extract from checkpoints in F32, F16 or BF16")
		}
	}
	e.findEnds()
	names, how, ambiguous := naming.Pair(e.base.Names(), e.tuned.Names())
	e.renamed = how
	e.leaveGone(names)
	common, sameShape := e.pairUp(names)
	switch {
	case len(ambiguous) > 0:
		return fault.New(fault.Mismatch, "the names of the tuned checkpoint fit those of the base in several ways: %s", strings.Join(ambiguous, "; ")).
			WithHint("save both with one version of transformers")
	case common == 0:
		return fault.New(fault.Mismatch, "the two checkpoints have no tensor name in common: %s against %s",
			fault.List(e.base.Names(), 2), fault.List(e.tuned.Names(), 2)).WithHint("give the base that the tuned checkpoint was trained from")
	case sameShape == 0:
		return fault.New(fault.Mismatch, "the two checkpoints have %d tensor names in common and none with the same shape", common).
			WithHint("they are models of different sizes; give the base that the tuned checkpoint was trained from")
	case len(e.pairs) == 0:
		return fault.New(fault.Mismatch, "nothing is left to extract: %d tensors are excluded or not of a float dtype", sameShape)
	}
	if e.options.PEFT {
		if err := e.pairLive(); err != nil {
			return err
		}
	}
	// By position, so that files are read from front to back.
	sort.SliceStable(e.pairs, func(i, j int) bool {
		a, b := e.pairs[i].tuned.ref, e.pairs[j].tuned.ref
		return a.File < b.File || a.File == b.File && a.Tensor.Off < b.Tensor.Off
	})
	return nil
}

// leaveGone leaves out the tensors of the base that the tuned checkpoint lacks; names are those of
// the base by those of the tuned one.
func (e *Extraction) leaveGone(names map[string]string) {
	paired := make(map[string]bool, len(names))
	for _, name := range names {
		paired[name] = true
	}
	isTrunk := isTrunk(e.base, e.tuned)
	for _, name := range e.base.Names() {
		switch {
		case paired[name]:
		case isTrunk:
			e.skip(name, whyTrunk)
		default:
			e.leave(name, whyGone, locate(e.base, name), e.tunedEnds.counterpart(name, &e.baseEnds))
		}
	}
}

// pairUp pairs the tensors of the tuned checkpoint with those of the base, and leaves out the
// others. It counts the names that both have, and those of them that have one shape.
func (e *Extraction) pairUp(names map[string]string) (common, sameShape int) {
	for _, tunedName := range e.tuned.Names() {
		tuned := locate(e.tuned, tunedName)
		name, ok := names[tunedName]
		switch tied := e.baseEnds.counterpart(tunedName, &e.tunedEnds); {
		case !ok && tied != nil && e.tunedEnds.isTied():
			e.skip(tunedName, whyTied)
			continue
		case !ok:
			e.leave(tunedName, whyNew, tied, tuned)
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
			e.skip(name, "stored as %v and %v", base.dtype(), tuned.dtype())
			e.others[name] = *tuned
		case !e.options.selects(name):
			e.leave(name, whyExcluded, base, tuned)
		default:
			e.pairs = append(e.pairs, pair{name: name, base: *base, tuned: *tuned})
		}
	}
	return common, sameShape
}

// Bytes is what the extraction has to read of the tuned checkpoint.
func (e *Extraction) Bytes() (n int64) {
	for i := range e.pairs {
		n += e.pairs[i].tuned.ref.Tensor.NBytes
	}
	return n
}

// PeakBytes estimates the memory that Run takes: Δ of the largest tensor in float32, the basis of
// its decomposition, and its factors.
func (e *Extraction) PeakBytes() int64 {
	peak, _ := e.peak()
	return peak
}

// LargestTensor is the tensor that PeakBytes are for; "" where none is decomposed.
func (e *Extraction) LargestTensor() string {
	_, name := e.peak()
	return name
}

func (e *Extraction) peak() (peak int64, name string) {
	kept := int64(64)
	if f, ok := e.options.Rule.(FixedRank); ok {
		kept = int64(f.K)
	}
	width := max(64, 6*kept)
	for i := range e.pairs {
		v, ok := e.view(&e.pairs[i])
		if !ok {
			continue
		}
		m, n := int64(v.rows), int64(v.cols) // of one expert, where several are stacked
		short := min(m, n)
		const perFactor = 32 // singular vectors and factors in float64, factors in float32 and as stored
		if need := 4*m*n + (8*min(width, short)+perFactor*min(kept, short))*(m+n); need > peak {
			peak, name = need, e.pairs[i].name
		}
	}
	return peak + 32<<20, name
}

// Planned is one tensor that will be compared.
type Planned struct {
	Tensor string   `json:"tensor"`
	Shape  []uint64 `json:"shape"`
	Kind   string   `json:"kind"` // of the layer it would be, or "beside"
}

// Planned lists the tensors that are in both checkpoints and will be compared, and Skipped what the
// headers alone rule out.
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

// view is how a tensor is seen as a matrix, or several: what its layer is, and whether the base
// stores it n×m.
type view struct {
	module     string
	parameter  string // the tensor's name, for experts, where the module does not tell
	kind       format.Kind
	slabs      int // matrices that the tensor stacks
	rows, cols int // of each, as it is stored
	transposed bool
	shape      []uint64
}

// view returns how a tensor is decomposed; ok is false for what low rank cannot hold.
func (e *Extraction) view(p *pair) (view, bool) {
	if e.peft != nil {
		return e.viewPEFT(p)
	}
	shape := p.tuned.ref.Tensor.Shape
	if len(shape) < 2 || len(shape) > 5 || slices.Contains(shape, 0) {
		return view{}, false
	}
	if len(shape) == 3 && naming.IsExperts(naming.Module(p.name)) {
		return view{
			module: naming.Module(p.name), parameter: p.name, kind: format.Expert, slabs: int(shape[0]), rows: int(shape[1]), cols: int(shape[2]),
			transposed: naming.HasTransposedExperts(e.base.Config.ModelType), shape: shape,
		}, true
	}
	module, isWeight := strings.CutSuffix(p.name, ".weight")
	if !isWeight {
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
