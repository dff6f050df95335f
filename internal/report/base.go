package report

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/loratool/loratool/format"
	model "github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/outline"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/quant"
	"github.com/loratool/loratool/internal/rectangle"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/merge"
)

// OnBase is the report on an adapter together with a base.
type OnBase struct {
	Path     string   `json:"path"`
	Fits     bool     `json:"fits"`
	Refusal  string   `json:"refusal,omitempty"` // why merge refuses the two
	Hint     string   `json:"hint,omitempty"`    // how to go on
	Warnings []string `json:"warnings"`
	Tensors  int      `json:"tensors"` // of the base that a merge changes
	// Options are those of the merge that differ from zero, such as Options.Tied=fold.
	Options []string `json:"options,omitempty"`

	// Kept is what a merge into the dtype of the base would keep of ΔW: all tensors together, and
	// each.
	Kept   *merge.Retention    `json:"kept,omitempty"`
	Stored []merge.LayerReport `json:"stored"`

	// Requantised says what is left of ΔW where the merged weights are quantised, only with
	// BaseOptions.As.
	Requantised *Requantised `json:"requantised,omitempty"`

	Layers      []LayerOnBase `json:"layers"`
	NotMeasured []NotMeasured `json:"not_measured"`

	refused error
}

// LayerOnBase compares the ΔW of a layer with W, the part of the base that the layer changes. The
// figures are those of section 7 and table 7 of Hu et al., arXiv:2106.09685. U and V are the first
// Rank singular vectors of ΔW.
type LayerOnBase struct {
	Module    string  `json:"module"`
	Tensor    string  `json:"tensor"` // of the base
	Expert    *int    `json:"expert,omitempty"`
	Rows      int     `json:"rows"` // of W
	Columns   int     `json:"columns"`
	Rank      int     `json:"rank"`      // singular values of ΔW that are not zero
	Norm      float64 `json:"norm"`      // ‖ΔW‖_F
	BaseNorm  float64 `json:"base_norm"` // ‖W‖_F
	Relative  float64 `json:"relative_norm"`
	Projected float64 `json:"projection"` // ‖UᵀWV‖_F

	// Amplification is ‖ΔW‖/‖UᵀWV‖: how much stronger ΔW is than W in its own directions. It is
	// null if W has nothing there, or ΔW is zero.
	Amplification merge.Figure `json:"amplification"`
	// Random is ‖UᵀWV‖ as random directions have it: ‖W‖·Rank/√(Rows·Columns).
	Random              float64      `json:"random_projection"`
	RandomAmplification merge.Figure `json:"random_amplification"`
	// Own is ‖UᵀWV‖ for the first Rank singular vectors of W, only with BaseOptions.Own.
	Own *float64 `json:"own_projection,omitempty"`
	// Intruders counts the intruder dimensions among the first 10, only with BaseOptions.Intruders.
	Intruders *int `json:"intruders,omitempty"`
	// IntrudersEstimated counts the vectors among these 10 about which bounds did not decide.
	IntrudersEstimated int `json:"intruders_estimated,omitempty"`
	// Requantised is nil without BaseOptions.As, and for tensors that cannot be quantised so.
	Requantised *Survival `json:"requantised,omitempty"`
}

// NotMeasured is a tensor whose update is no thin product, with the reason.
type NotMeasured struct {
	Module string `json:"module"`
	Tensor string `json:"tensor"`
	Why    string `json:"why"`
}

// BaseOptions tune CompareBase.
type BaseOptions struct {
	Name string // of the adapter, for messages
	// Merge says how a merge reads the adapter, and what it may do. Workers is for the whole
	// comparison.
	Merge merge.Options
	// Own adds the projection of W on its own first singular vectors. It holds W in memory.
	Own bool
	// Intruders counts intruder dimensions, by bounds where W is large. It holds W in memory.
	Intruders bool
	// As says how much of ΔW is left if the merged weights are quantised. 0 does not quantise them.
	As quant.Encoding
	// Begin is told of work before it begins. nil is told nothing.
	Begin Begin
	// Allow is asked before work that takes about this many bytes of memory. nil allows any.
	Allow func(bytes int64) error
}

// Begin is told that work on a number of bytes begins. What it returns is told by several
// goroutines of bytes that are done.
type Begin func(work string, bytes int64) (done func(bytes int64))

func (b Begin) begin(work string, bytes int64) (done func(bytes int64)) {
	if b == nil {
		return func(int64) {}
	}
	return b(work, bytes)
}

// optionsOf names the options of a merge that decide about its output and differ from zero, such as
// Options.Tied=fold.
func optionsOf(o *merge.Options) (all []string) {
	add := func(name string, value any) {
		switch text := fmt.Sprint(value); text {
		case "", "0", "false":
		case "true":
			all = append(all, "Options."+name)
		default:
			all = append(all, "Options."+name+"="+text)
		}
	}
	add("Tied", o.Tied)
	add("GrowVocabulary", o.GrowVocabulary)
	add("AddTensors", o.AddTensors)
	add("Only", strings.Join(o.Only, ","))
	add("ExpertInput", o.ExpertInput)
	add("LinearInput", o.LinearInput)
	add("ExpertTurns", o.ExpertTurns)
	add("ExpertsSlowest", o.ExpertsSlowest)
	add("OutProjTwice", o.OutProjTwice)
	add("RecomputeResidual", o.RecomputeResidual)
	add("Again", o.Again)
	add("AnyBase", o.AnyBase)
	add("AllowNonFinite", o.AllowNonFinite)
	add("Dequantise", o.Dequantise)
	add("BaseAs", o.BaseAs)
	add("BaseAsSkip", strings.Join(o.BaseAsSkip, ","))
	if o.OutDType != dtype.Invalid {
		add("OutDType", strings.ToLower(o.OutDType.String()))
	}
	return all
}

func (o *BaseOptions) allow(bytes int64) error {
	if o.Allow == nil {
		return nil
	}
	return o.Allow(bytes)
}

// CompareBase plans a merge of an adapter into the checkpoint at path, which is the verdict whether
// the two fit. If they do, it runs the merge without writing, and compares ΔW with W. It reads each
// changed tensor of the base twice, a few rows at a time. Check returns the refusal as an error.
func CompareBase(
	ctx context.Context, src format.Source, path string, o BaseOptions,
) (*OnBase, error) {
	base, err := checkpoint.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	r := &OnBase{
		Path: path, Warnings: []string{}, Stored: []merge.LayerReport{}, Layers: []LayerOnBase{},
		NotMeasured: []NotMeasured{}, Options: optionsOf(&o.Merge),
	}
	if err := r.tryMerge(ctx, src, base, o); err != nil || !r.Fits {
		return r, err
	}
	return r, r.measure(ctx, src, base, o)
}

// Check returns an error if merge refuses the adapter and the base. A nil report has none.
func (r *OnBase) Check() error {
	if r == nil {
		return nil
	}
	return r.refused
}

// Name is the name of the layer's tensor and, of stacked experts, the number of the expert.
func (l *LayerOnBase) Name() string { return nameOf(l.Tensor, l.Expert) }

func nameOf(tensor string, expert *int) string {
	if expert == nil {
		return tensor
	}
	return fmt.Sprintf("%s.%d", tensor, *expert)
}

// tryMerge plans a merge, and runs it into nowhere.
func (r *OnBase) tryMerge(
	ctx context.Context, src format.Source, base *checkpoint.Checkpoint, o BaseOptions,
) error {
	var done func(int64)
	o.Merge.Progress = func(n int64) { done(n) }
	plan, err := merge.New(ctx, (*model.Checkpoint)(checkpoint.NewHandle(base)),
		one(src, o.Name), o.Merge)
	if err != nil {
		return r.refuse(err)
	}
	r.Warnings = append(r.Warnings, plan.InputWarnings()...)
	r.Tensors = len(plan.Tensors())
	if err := o.allow(plan.PeakBytes(o.Merge.Workers)); err != nil {
		return err
	}
	done = o.Begin.begin("merging", plan.OutputBytes())
	result, err := plan.RunTo(ctx, nowhere{})
	if err != nil {
		return r.refuse(err)
	}
	r.Fits, r.Stored = true, append(r.Stored, result.Layers...)
	if len(result.Layers) > 0 {
		r.Kept = &result.Total
	}
	return nil
}

// refuse notes a refusal of merge. An error that is none, such as one of the disk, is returned.
func (r *OnBase) refuse(err error) error {
	var why *fault.Error
	if !errors.As(err, &why) {
		return err
	}
	r.Refusal, r.Hint = err.Error(), fault.Hint(err)
	r.refused = fault.New(fault.Check, "merge refuses this adapter for %s", r.Path)
	return nil
}

// measure compares ΔW and W, layer by layer.
func (r *OnBase) measure(
	ctx context.Context, src format.Source, base *checkpoint.Checkpoint, o BaseOptions,
) error {
	view, changes, err := changesOf(base, one(src, o.Name), &o.Merge)
	if err != nil {
		return err
	}
	if err := o.allow(measureBytes(changes, &o)); err != nil {
		return err
	}
	thin, others := thinOf(changes)
	r.NotMeasured = others
	layers := make([][]LayerOnBase, len(thin))
	done := o.Begin.begin("comparing", rectangle.Bytes(thin))
	err = parallel.For(ctx, o.Merge.Workers, len(thin), func(_, i int) error {
		read := make(map[resolve.Blob][]byte)
		for _, rect := range thin[i] {
			l, err := measureLayer(ctx, rect, view, read, &o)
			if err != nil {
				return err
			}
			layers[i] = append(layers[i], *l)
			done(rect.Bytes())
		}
		return nil
	})
	if err == nil && o.As != 0 {
		err = r.requantise(ctx, view, thin, layers, &o)
	}
	for _, l := range layers {
		r.Layers = append(r.Layers, l...)
	}
	return err
}

// requantise adds the rest of ΔW that a quantisation leaves of each layer.
func (r *OnBase) requantise(
	ctx context.Context, view *checkpoint.Checkpoint, thin [][]*rectangle.Rectangle, layers [][]LayerOnBase, o *BaseOptions,
) error {
	found, err := requantise(ctx, view, thin, o)
	if err != nil {
		return err
	}
	r.Requantised, r.NotMeasured = &found.Requantised, append(r.NotMeasured, found.notMeasured...)
	for i := range layers {
		for j, s := range found.left[i] {
			layers[i][j].Requantised = s
		}
	}
	return nil
}

// thinOf cuts the changes whose updates are thin products into rectangles, and lists the others.
func thinOf(changes []*resolve.Change) (thin [][]*rectangle.Rectangle, others []NotMeasured) {
	others = []NotMeasured{}
	for _, c := range changes {
		if why := whyNotThin(c); why != "" {
			others = append(others, NotMeasured{c.Module, c.Name, why})
			continue
		}
		thin = append(thin, rectangle.Of(c))
	}
	return thin, others
}

// one is the list of an adapter that is merged as it was trained.
func one(src format.Source, name string) []merge.Adapter {
	return []merge.Adapter{{Source: src, Name: name, Weight: 1}}
}

// changesOf lists the changes of a merge. They are of the tensors of a view: that of the base with
// the values of Options.BaseAs, and with the tensors that the merge adds.
func changesOf(
	base *checkpoint.Checkpoint, adapters []merge.Adapter, o *merge.Options,
) (view *checkpoint.Checkpoint, changes []*resolve.Change, err error) {
	if o.BaseAs != "" {
		if base, err = checkpoint.SimulatedNF4(base, o.BaseAsSkip); err != nil {
			return nil, nil, err
		}
	}
	b, err := outline.Of(base)
	if err != nil {
		return nil, nil, err
	}
	given := make([]resolve.Adapter, len(adapters))
	for i, a := range adapters {
		given[i] = resolve.Adapter(a)
	}
	checked, err := resolve.Check(given, resolve.Reading(o.Reading))
	if err != nil {
		return nil, nil, err
	}
	allowed := resolve.Shaping{
		Untie: o.Tied == merge.Untie, GrowVocabulary: o.GrowVocabulary, AddTensors: o.AddTensors,
	}
	if allowed != (resolve.Shaping{}) {
		shaped, view, err := outline.Shape(base, b, checked, allowed)
		if err != nil {
			return nil, nil, err
		}
		base, b = view, shaped.Base
	}
	changes, _, err = resolve.Resolve(b, checked)
	return base, changes, err
}

// whyNotThin returns the reason why the update of a tensor is not the sum of its terms, "" if it
// is.
func whyNotThin(c *resolve.Change) string {
	switch {
	case c.DoRA != nil:
		return "DoRA also rescales W"
	case len(c.Deltas) > 0:
		return "its ΔW is no product of thin factors"
	case c.HasResidual():
		return "the adapter's initialisation took a part out of W"
	case len(c.Terms) == 0:
		return "the adapter replaces values of W"
	}
	return ""
}

// measureBytes estimates the memory that measure takes: for each worker the adapter's tensors for
// one tensor of the base, the factors of a layer, their bases and vectors, and rows of W.
func measureBytes(changes []*resolve.Change, o *BaseOptions) int64 {
	var most int64
	for _, c := range changes {
		var stored, factors int64
		blobs := make(map[resolve.Blob]bool)
		for _, r := range rectangle.Of(c) {
			var ranks int64
			for _, x := range r.Terms {
				ranks += int64(x.Rank)
				for _, f := range []*resolve.Factor{&x.Left, &x.Right} {
					if f.Source != nil && !blobs[f.Blob] {
						blobs[f.Blob] = true
						stored += f.Tensor().NBytes()
					}
				}
			}
			need := 4 * 8 * ranks * int64(len(r.Rows)+len(r.Cols))
			switch elements := int64(len(r.Rows)) * int64(len(r.Cols)); {
			case o.Intruders && min(len(r.Rows), len(r.Cols)) <= decomposedSide:
				need += (4 + 8*8) * elements // W, W + ΔW, their vectors, and work of the decomposition
			case o.Intruders: // W, and bases that grow with the number of products
				need += 4*elements + 8*likenessSteps*(intruderCount+2)*int64(len(r.Rows)) + 8*2*likenessSteps*int64(len(r.Cols))
			case o.Own:
				need += (4 + 4) * elements
			}
			factors = max(factors, need)
		}
		_, nCols := c.Matrix()
		if most = max(most, stored+factors+16*max(rectangle.RowsAtOnce, nCols)); o.As != 0 {
			most = max(most, stored+factors+bytesAtOnce*max(stepElements, quant.AcrossAtOnce*nCols))
		}
	}
	return most * int64(min(parallel.Workers(o.Merge.Workers), len(changes)))
}

// measureLayer compares one layer with its part of the base.
func measureLayer(
	ctx context.Context, rect *rectangle.Rectangle, base *checkpoint.Checkpoint, read map[resolve.Blob][]byte,
	o *BaseOptions,
) (*LayerOnBase, error) {
	l := &LayerOnBase{
		Module: rect.Module, Tensor: rect.Name, Expert: rect.Expert(), Rows: len(rect.Rows), Columns: len(rect.Cols),
	}
	if l.Rows == 0 || l.Columns == 0 {
		l.relate()
		return l, nil
	}
	delta, err := rect.Factors(ctx, read)
	if err != nil {
		return nil, err
	}
	delta.Balance()
	parts, err := delta.Decompose(ctx)
	if err != nil {
		return nil, err
	}
	l.Rank = numericalRank(parts.Sigma, l.Rows, l.Columns)
	vectors, err := parts.Vectors(ctx, l.Rank)
	if err != nil {
		return nil, err
	}
	l.Norm = math.Ldexp(dense.Norm(parts.Sigma), parts.Exponent)
	l.BaseNorm, l.Projected, err = measureBase(ctx, rect, base, vectors.B, vectors.A, l.Rank)
	if err != nil {
		return nil, err
	}
	l.relate()
	return l, l.control(ctx, rect, base, delta, o)
}

// relate computes the figures that follow from norms and sizes.
func (l *LayerOnBase) relate() {
	if l.BaseNorm > 0 {
		l.Relative = l.Norm / l.BaseNorm
	}
	l.Random = randomProjection(l.BaseNorm, l.Rank, l.Rows, l.Columns)
	l.Amplification = merge.Figure(l.Norm / l.Projected)
	l.RandomAmplification = merge.Figure(l.Norm / l.Random)
}

// randomProjection returns the root mean square of ‖UᵀWV‖_F for random U (m×r) and V (n×r) with
// orthonormal columns: E‖UᵀWV‖² is ‖W‖²·(r/m)·(r/n).
func randomProjection(norm float64, r, m, n int) float64 {
	return norm * float64(r) / math.Sqrt(float64(m)*float64(n))
}

// numericalRank counts the singular values above the rounding of float64.
func numericalRank(sigma []float64, m, n int) (k int) {
	for k < len(sigma) && sigma[k] > float64(max(m, n))*0x1p-52*sigma[0] {
		k++
	}
	return k
}

// nowhere is an output that drops everything.
type nowhere struct{}

func (nowhere) Create(output.Info) (output.File, error) { return nothing{}, nil }
func (nowhere) Commit() error                           { return nil }
func (nowhere) Abort()                                  {}

// nothing is a file of nowhere. Ranges that are copied are not even read.
type nothing struct{}

func (nothing) WriteAt(p []byte, _ int64) (int, error)             { return len(p), nil }
func (nothing) CopyRange(_ int64, _ io.ReaderAt, _, _ int64) error { return nil }
func (nothing) Close() error                                       { return nil }

// measureBase returns ‖W‖_F and ‖UᵀWV‖_F, for U and V with k columns that belong to the rows and
// columns of the rectangle.
func measureBase(
	ctx context.Context, r *rectangle.Rectangle, base *checkpoint.Checkpoint, u, v []float64, k int,
) (norm, projection float64, err error) {
	var squares float64
	inner := make([]float64, k*k)
	var product []float64
	err = r.EachRows(ctx, base, func(first, n int, w []float64) error {
		squares += dense.Dot(w, w)
		if k == 0 {
			return nil
		}
		product = append(product[:0], make([]float64, n*k)...)
		dense.AddProduct(product, w, v, n, len(r.Cols), k)
		dense.AddTransposedProduct(inner, u[first*k:(first+n)*k], product, n, k, k)
		return nil
	})
	return math.Sqrt(squares), dense.Norm(inner), err
}
