// Package audit judges merges: whether a checkpoint is the base with the update of an adapter, how
// it was rounded, and which faults it has if it is not.
//
// The merge of this project is exact, so it can judge the others. Run makes it, and compares in
// place of writing. Where an element differs, a sample of rows tells which ways to round are
// possible, and every such element must be a value that one of them can make, with the errors that
// a float32 sum in any order has. A tensor that no way explains is fitted: by the scale or the
// weights of the adapters, then by other updates: transposed, of another module, without DoRA's
// magnitudes.
package audit

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/outline"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/merge"

	model "github.com/loratool/loratool/format/checkpoint"
)

// Run compares merged with the merge of adapters into base. Neither is changed. It holds a few
// blocks of both, and the factors of a few tensors. The weights of adapters are the claimed ones.
func Run(
	ctx context.Context, base, merged *model.Checkpoint, adapters []merge.Adapter, o Options,
) (*Report, error) {
	r, err := run(ctx, base, merged, adapters, o)
	if err != nil || !o.AnyWeight {
		return r, err
	}
	solved := r.solved(adapters)
	if solved == nil {
		return r, nil
	}
	o.Progress = nil
	return run(ctx, base, merged, solved, o)
}

func run(
	ctx context.Context, base, merged *model.Checkpoint, adapters []merge.Adapter, o Options,
) (*Report, error) {
	a := &auditor{
		ctx: ctx, o: &o, adapters: adapters, report: &Report{Adapters: []FittedAdapter{}, Tensors: []Tensor{}, Warnings: []string{}, Stamps: []string{}},
		stored: (*checkpoint.Handle)(base).Checkpoint(), merged: (*checkpoint.Handle)(merged).Checkpoint(),
	}
	if err := a.simulate(); err != nil {
		return nil, err
	}
	plan, err := a.plan()
	if err != nil {
		return nil, err
	}
	if err := a.resolve(); err != nil {
		return nil, err
	}
	files, err := a.pair(plan)
	if err != nil {
		return nil, err
	}
	if err := a.requantise(); err != nil {
		return nil, err
	}
	made, err := plan.RunTo(ctx, &comparison{
		ctx: ctx, files: files,
		begin: func(e *expected) (*probe, error) { return (&examination{a, e}).newProbe() },
		end:   func(e *expected) error { return (&examination{a, e}).conclude() },
	})
	if err != nil {
		return nil, err
	}
	if err := a.examineAll(); err != nil {
		return nil, err
	}
	if err := a.rankForeign(base, merged); err != nil {
		return nil, err
	}
	norms := make(map[string]merge.Figure)
	for i := range made.Layers {
		norms[made.Layers[i].Tensor] = made.Layers[i].RelativeNorm
	}
	for _, e := range a.expected {
		if change, ok := norms[e.Name]; ok && math.IsNaN(float64(e.found.Change)) {
			e.found.Change = change
		}
		if t := &e.found; a.leaks && t.Finding == Merged && isEnd(e.Name) {
			t.Verdict, t.Finding = NotAsClaimed, Tied
			t.Text = "the adapter changes either the embedding or the head, and in the merged checkpoint both have changed, since they are one tensor; Options.Tied=fold accepts that"
		}
		a.report.Tensors = append(a.report.Tensors, e.found)
	}
	if err := a.extra(); err != nil {
		return nil, err
	}
	a.fitted()
	a.stamps()
	a.report.judge()
	return a.report, nil
}

// simulate finds the base as the merge took it: with the values of Options.BaseAs, or of the stamps
// of the merged checkpoint that the base does not have.
func (a *auditor) simulate() (err error) {
	a.seen = a.stored
	for _, m := range a.ownStamps() {
		if a.o.BaseAs != "" || m.BaseAs == "" || checkpoint.IsQuantised(a.stored) {
			continue
		}
		a.o.BaseAs, a.o.BaseAsSkip = m.BaseAs, m.BaseAsSkip
		if (merge.Options{BaseAs: m.BaseAs, BaseAsSkip: m.BaseAsSkip}).Check() != nil {
			return fault.New(fault.Unsupported, "%s of %s says that the merge took the base as %q without %q, which this version does not simulate", m.Key, cmp.Or(m.File, a.merged.Path), m.BaseAs, m.BaseAsSkip)
		}
	}
	if a.report.BaseAs = a.o.BaseAs; a.o.BaseAs != "" {
		a.seen, err = checkpoint.SimulatedNF4(a.stored, a.o.BaseAsSkip)
	}
	return err
}

// plan plans the merge that should have been. A change to one of two tied tensors is read as the
// merged checkpoint has it: untied if it has a head of its own.
func (a *auditor) plan() (*merge.Plan, error) {
	o := a.options()
	base := (*model.Checkpoint)(checkpoint.NewHandle(checkpoint.OnlyReadable(a.stored))) // the others are compared as stored
	plan, err := merge.New(a.ctx, base, a.adapters, o)
	if err == nil || o.Tied != "" {
		return plan, err
	}
	if o.Tied = merge.Fold; a.hasOwnHead() {
		o.Tied = merge.Untie
	}
	tied, errTied := merge.New(a.ctx, base, a.adapters, o)
	if errTied != nil {
		return nil, err
	}
	a.o.Tied, a.leaks = o.Tied, o.Tied == merge.Fold
	return tied, nil
}

// hasOwnHead reports whether the merged checkpoint stores a head that the base lacks.
func (a *auditor) hasOwnHead() bool {
	isHead := func(name string) bool { return naming.IsHead(naming.Module(naming.StripWrappers(name))) }
	return slices.ContainsFunc(a.merged.Names(), isHead) && !slices.ContainsFunc(a.stored.Names(), isHead)
}

// resolve finds the changes that the plan makes, and the base as the plan sees it.
func (a *auditor) resolve() error {
	var err error
	if a.checked, err = resolve.Check(a.asResolved(), resolve.Reading(a.o.Reading)); err != nil {
		return err
	}
	changes, base, err := a.changesOf(a.checked)
	if err != nil {
		return err
	}
	a.base, a.changes = base, byName(changes)
	return nil
}

// changesOf resolves adapters on the base.
func (a *auditor) changesOf(checked *resolve.Checked) ([]*resolve.Change, *checkpoint.Checkpoint, error) {
	base := a.seen
	names, err := outline.Of(base)
	if err != nil {
		return nil, nil, err
	}
	if !base.IsPipeline() {
		shaped, view, err := outline.Shape(base, names, checked, a.shaping())
		if err != nil {
			return nil, nil, err
		}
		names, base = shaped.Base, view
	}
	changes, _, err := resolve.Resolve(names, checked)
	return changes, base, err
}

// pair finds the tensors of the merged checkpoint that belong to those of the plan.
func (a *auditor) pair(plan *merge.Plan) (map[string][]*expected, error) {
	tensors := plan.OutputTensors()
	names := make([]string, len(tensors))
	for i := range tensors {
		names[i] = tensors[i].Name
	}
	pairs, how, ambiguous := naming.Pair(names, a.merged.Names())
	if len(ambiguous) > 0 {
		return nil, fault.New(fault.Mismatch, "the tensor names of the two checkpoints match in several ways: %s", strings.Join(ambiguous, "; "))
	}
	if len(pairs) == 0 {
		return nil, fault.New(fault.Mismatch, "%s and %s have no tensor in common", a.stored.Path, a.merged.Path).
			WithHint("give the checkpoint that the adapter was merged into, and then the merged one")
	}
	a.report.Renamed, a.report.Warnings = how, append(a.report.Warnings, plan.InputWarnings()...)
	theirs := make(map[string]string, len(pairs))
	for their, our := range pairs {
		theirs[our] = their
	}
	files := make(map[string][]*expected)
	for i := range tensors {
		e := &expected{OutputTensor: tensors[i], change: a.changes[tensors[i].Name], left: tensors[i].NBytes}
		if ref, ok := a.base.Lookup(e.Name); ok && slices.Equal(ref.Tensor.Shape, e.Shape) {
			e.base = ref.Tensor
		}
		e.found = newTensor(e.Name, e.DType, elements(e.Shape))
		if ref, ok := a.merged.Lookup(theirs[e.Name]); ok && theirs[e.Name] != "" {
			e.merged, e.found.MergedDType, e.found.File = ref.Tensor, cmp.Or(ref.Tensor.Scheme, ref.Tensor.DType.String()), a.merged.Files[ref.File].Name
			if e.isCoded() {
				e.found.DType = e.base.Scheme
			}
		}
		if e.change != nil {
			e.found.Module = e.change.Module
		}
		a.expected = append(a.expected, e)
		files[e.File] = append(files[e.File], e)
	}
	return files, nil
}

// examineAll explains the tensors that the comparison has not explained.
func (a *auditor) examineAll() error {
	return parallel.For(a.ctx, parallel.Workers(a.o.Workers), len(a.expected), func(_, i int) error {
		if a.expected[i].isDone {
			return nil
		}
		return (&examination{a, a.expected[i]}).conclude()
	})
}

// conclude judges one tensor.
func (x *examination) conclude() error {
	t := &x.e.found
	defer func() { x.e.isDone, x.e.probe = true, nil }() // the probe holds factors
	t.Verdict, t.Different = AsClaimed, x.e.different
	t.Change, t.Residual = merge.Figure(math.NaN()), merge.Figure(math.NaN())
	switch {
	case x.e.merged == nil:
		t.Verdict, t.Finding = NotAsClaimed, Missing
		if err := checkpoint.Refusal(x.auditor.merged, x.e.Name); err != nil {
			t.Text = "it cannot be read: " + err.Error()
		}
	case !slices.Equal(x.e.merged.Shape, x.e.Shape):
		t.Verdict, t.Finding = NotAsClaimed, Reshaped
		t.Text = fmt.Sprintf("its shape is %d, want %d", x.e.merged.Shape, x.e.Shape)
	case x.e.isCompared() && x.e.different == 0:
		if t.Finding = Untouched; x.e.change != nil {
			t.Finding, t.Rounding, t.Margin = Merged, Exact, merge.Figure(math.NaN())
			if isReplaced(x.e.change) {
				t.Finding, t.Rounding = Replaced, ""
			}
		}
	case !x.e.DType.IsFloat() || !x.e.merged.DType.IsFloat():
		t.Verdict, t.Finding = NotAsClaimed, Foreign
		if x.e.DType != x.e.merged.DType {
			t.Text = fmt.Sprintf("it is stored as %s, want %s", t.MergedDType, t.DType)
		}
	case x.e.change == nil || x.e.base == nil:
		return x.examineUntouched()
	default:
		return x.examine()
	}
	return nil
}

// extra lists tensors that only the merged checkpoint has.
func (a *auditor) extra() error {
	known := make(map[*checkpoint.Tensor]bool)
	for _, e := range a.expected {
		known[e.merged] = true
	}
	for _, name := range a.merged.Names() {
		ref, _ := a.merged.Lookup(name)
		if known[ref.Tensor] {
			continue
		}
		t := newTensor(name, ref.Tensor.DType, ref.Tensor.Elements())
		t.Verdict, t.Finding, t.MergedDType, t.File = NotAsClaimed, Extra, t.DType, a.merged.Files[ref.File].Name
		twin, err := a.twin(name, ref.Tensor)
		if err != nil {
			return err
		}
		if twin != "" {
			t.Verdict, t.Finding, t.Text = AsClaimed, Copied, "it equals "+twin+", to which it is tied"
		}
		a.report.Tensors = append(a.report.Tensors, t)
	}
	return nil
}

// stamps lists the merges that the merged checkpoint records.
func (a *auditor) stamps() {
	for _, m := range a.merged.History() {
		for _, x := range m.Adapters {
			text := fmt.Sprintf("%s, weight %v%s, by %s", x.Name, x.Weight, m.OnBase(), m.Tool)
			if !slices.Contains(a.report.Stamps, text) {
				a.report.Stamps = append(a.report.Stamps, text)
			}
		}
	}
}

// solved returns the adapters with the weights that the fit has found, each the shortest decimal
// number within its error; nil if these are the claimed ones or if there is none.
func (r *Report) solved(adapters []merge.Adapter) []merge.Adapter {
	all, isNew := slices.Clone(adapters), false
	for i, x := range r.Adapters {
		w, err := float64(x.Value), float64(x.Error)
		if math.IsNaN(w) || isNear(w, err, 0) {
			return nil
		}
		all[i].Weight = shortest(w, 5*err)
		isNew = isNew || all[i].Weight != adapters[i].Weight
	}
	if !isNew {
		return nil
	}
	return all
}

// shortest returns the decimal number with the fewest digits that is within err of x.
func shortest(x, err float64) float64 {
	for digits := 1; digits < 17; digits++ {
		y, _ := strconv.ParseFloat(strconv.FormatFloat(x, 'g', digits, 64), 64)
		if math.Abs(x-y) <= err {
			return y
		}
	}
	return x
}

// fitted joins the fits of all tensors, and names the weights of the adapters.
func (a *auditor) fitted() {
	if len(a.adapters) == 0 {
		return
	}
	all := newFitting(len(a.adapters))
	for _, e := range a.expected {
		if e.fitting != nil && e.fitting.isNoise() {
			all.join(e.fitting)
		}
	}
	all.solve()
	if len(a.adapters) == 1 {
		a.average(all)
	}
	for k, x := range a.adapters {
		w := FittedAdapter{Adapter: x.Name, Claimed: x.Weight, Weight: Weight{merge.Figure(math.NaN()), merge.Figure(math.NaN())}}
		if all.n > 0 {
			w.Weight = Weight{merge.Figure(all.weights[k] * x.Weight), merge.Figure(all.errors[k] * math.Abs(x.Weight))}
		}
		a.report.Adapters = append(a.report.Adapters, w)
	}
}

// average replaces the joint weight of a single adapter by the mean of those of the tensors, which
// have been calibrated, weighted by their errors.
func (a *auditor) average(all *fitting) {
	sum, precision := 0.0, 0.0
	for _, e := range a.expected {
		if f := e.fitting; f != nil && f.isNoise() && f.errors[0] > 0 && !math.IsNaN(f.weights[0]) {
			p := 1 / (f.errors[0] * f.errors[0])
			sum, precision = sum+p*f.weights[0], precision+p
		}
	}
	if precision > 0 {
		all.weights[0], all.errors[0] = sum/precision, 1/math.Sqrt(precision)
	}
}
