package rank

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// ExtractOptions say what to extract and how. One of Rule and Budget is needed; the zero value of the rest is ready.
type ExtractOptions struct {
	Rule    Rule             // chooses the rank of every layer; nil where Budget is set
	Budget  int64            // bytes of factors, spent on the singular values with most energy per byte over all layers
	MaxRank int              // with Budget: the most that one layer gets; 0 is 64
	Include []*regexp.Regexp // names of tensors to extract; none is all
	Exclude []*regexp.Regexp // names to leave out
	DType   dtype.Type       // of the factors; 0 is F32
	Only    bool             // leave out what low rank cannot hold, in place of carrying it beside
	Strict  bool             // fail if anything is left out or carried
	PEFT    bool             // name and hold everything as PEFT does, and refuse what it cannot hold
	SVD     Options
	Workers int
	Layer   func(tensor string, bytes int64) // called when a tensor is done; nil is silent
	Tool    string                           // name and version of the program, for the provenance
}

// Extraction is a plan to turn a fine-tuned checkpoint into an adapter. It has read headers only.
type Extraction struct {
	base, tuned *checkpoint.Checkpoint
	own         []*Checkpoint // that were opened for this extraction, and are closed with it
	options     ExtractOptions
	pairs       []pair // present in both, same shape, both floats
	skipped     []Skipped
	left        []leftOut          // of skipped, what counts in the error
	renamed     string             // how the names of tuned are read, "" as they are
	peft        *forPEFT           // where it is for PEFT
	others      map[string]located // of dtypes that are no floats: the tuned ones, by the base's names

	baseEnds, tunedEnds ends
}

// Skipped is a tensor that is not extracted. Share is what it has of ‖Δ‖_F over all that changed: 0 for what did not change.
type Skipped struct {
	Tensor string  `json:"tensor"`
	Why    string  `json:"why"`
	Share  float64 `json:"share"`

	energy float64 // ‖Δ‖² of it
}

// Unchanged is why a tensor is skipped that has the same values in both checkpoints.
const Unchanged = "unchanged"

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

// OpenExtraction compares the headers of the checkpoints at two paths. The caller closes the extraction.
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

// NewExtraction is OpenExtraction for checkpoints that are open already. The caller closes them after
// the extraction has run.
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

// Close closes the checkpoints of an extraction that was opened by their paths. Those that the caller
// opened stay open.
func (e *Extraction) Close() error {
	var errs []error
	for _, c := range e.own {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (e *Extraction) skip(name, format string, args ...any) {
	e.skipped = append(e.skipped, Skipped{Tensor: name, Why: fmt.Sprintf(format, args...)})
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
	paired := make(map[string]bool, len(names))
	for _, name := range names {
		paired[name] = true
	}
	for _, name := range e.base.Names() {
		switch {
		case paired[name]:
		case isTrunk(e.base, e.tuned):
			e.skip(name, whyTrunk)
		default:
			e.leave(name, whyGone, locate(e.base, name), e.tunedEnds.counterpart(name, &e.baseEnds))
		}
	}
	common, sameShape := 0, 0
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
		case !e.selected(name):
			e.leave(name, whyExcluded, base, tuned)
		default:
			e.pairs = append(e.pairs, pair{name: name, base: *base, tuned: *tuned})
		}
	}
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

func (e *Extraction) selected(name string) bool {
	matches := func(re *regexp.Regexp) bool { return re.MatchString(name) }
	return (len(e.options.Include) == 0 || slices.ContainsFunc(e.options.Include, matches)) && !slices.ContainsFunc(e.options.Exclude, matches)
}

// Bytes is what the extraction has to read of the tuned checkpoint.
func (e *Extraction) Bytes() (n int64) {
	for i := range e.pairs {
		n += e.pairs[i].tuned.ref.Tensor.NBytes
	}
	return n
}

// PeakBytes estimates the memory that Run takes: Δ of the largest tensor in float32, the basis of its decomposition, and its
// factors.
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

// Planned lists the tensors that are in both checkpoints and will be compared, and Skipped what the headers alone rule out.
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

// view is how a tensor is seen as a matrix, or several: what its layer is, and whether the base stores it n×m.
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
