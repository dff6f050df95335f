package merge

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// resolver pairs the tensors of one adapter with those of the base.
type resolver struct {
	plan     *Plan
	index    int
	adapter  *format.Adapter
	manifest *format.Manifest
	names    *naming.Base
	mapping  naming.Mapping
	byTensor map[string]*target

	theEnds     *naming.Ends // from ends
	misoriented []string     // modules whose weight is not stored as the adapter's configuration says
	guessed     []string     // square weights whose orientation nothing but the configuration says
	transposed  map[string]int
	experts     []*experts
	leftOut     []string      // tensors that only training needs
	residuals   []string      // modules of whose weight a part is taken out
	outProjs    []string      // of nn.MultiheadAttention
	sides       map[bool]bool // whether products stand transposed in parameters of experts that are not square
	bySides     []string      // square experts whose orientation these decided
	hasTwins    bool          // the adapter saves one tensor of the base under the names of all modules that share it
	eras        []string      // square experts whose orientation the release of PEFT decided
}

func (r *resolver) resolve() error {
	if err := r.groupExperts(); err != nil {
		return err
	}
	if err := r.checkResiduals(); err != nil {
		return err
	}
	if err := r.dropTwins(); err != nil {
		return err
	}
	wanted := r.wanted(false)
	if len(wanted) == 0 {
		return fault.New(fault.Corrupt, "the adapter changes nothing: it has no layer and no tensor to put in place")
	}
	mapping, missing, ambiguous := r.names.Match(wanted)
	r.mapping = mapping
	switch {
	case ambiguous != nil:
		return fault.New(fault.Mismatch, "the adapter's module names fit the base in several ways: %s", strings.Join(ambiguous, "; ")).
			WithHint("rename the modules of the adapter to those of the base")
	case missing != nil:
		return r.explainMissing(wanted, missing)
	}
	if d := mapping.Describe(); d != "as they are" {
		r.plan.warn("the adapter's module names are used %s", d)
	}
	r.transposed = r.countOrientations()
	var errs []error
	for i := range r.adapter.Layers {
		errs = append(errs, r.addLayer(&r.adapter.Layers[i]))
	}
	errs = append(errs, r.addExperts())
	for i := range r.adapter.Beside {
		errs = append(errs, r.addBeside(&r.adapter.Beside[i]))
	}
	if err := first(errs); err != nil {
		return err
	}
	r.noteMagnitudes()
	r.noteEras()
	r.noteOutProjs()
	r.noteResiduals()
	if len(r.leftOut) > 0 {
		r.plan.warn("the state of the adapter's training is no part of the merged model and is left out: %s", fault.List(r.leftOut, 3))
	}
	if len(r.misoriented) > 0 {
		r.plan.warn("fan_in_fan_out of the adapter's configuration does not fit the base, which decides: %s", fault.List(r.misoriented, 3))
	}
	if len(r.guessed) > 0 {
		r.plan.warn("nothing but fan_in_fan_out of the adapter's configuration tells how the base stores the square weights of %s", fault.List(r.guessed, 3))
	}
	return nil
}

// first returns the first of several errors, which tells how many others there are, and what the next one is.
func first(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	var f *fault.Error
	if len(errs) > 1 && errors.As(errs[0], &f) {
		f.Msg += fmt.Sprintf("; %d more, the next one: %v", len(errs)-1, errs[1])
	}
	if len(errs) == 0 {
		return nil
	}
	return errs[0]
}

// wanted lists the names that the base must have, or only those of tensors that the adapter does not save whole.
func (r *resolver) wanted(onlyUpdates bool) []string {
	var names []string
	for _, g := range r.experts {
		names = append(names, r.wantedExperts(g)...)
	}
	for i := range r.adapter.Layers {
		l := &r.adapter.Layers[i]
		if l.Kind == format.Expert {
			continue
		}
		if parameter, _, _, _, ok := r.gathered(l); ok {
			names = append(names, parameter)
			continue
		}
		names = append(names, r.weightName(l))
		if _, ok := l.Roles[format.RoleBias]; ok {
			names = append(names, l.Module+".bias")
		}
	}
	for _, b := range r.adapter.Beside {
		if b.Action != format.Opaque && (!onlyUpdates || b.Action != format.Replace) {
			names = append(names, b.Target)
		}
	}
	return names
}

// target returns the target for a name of the adapter's, made at first use.
func (r *resolver) target(name string) (*target, error) {
	actual, _ := r.mapping.Lookup(name) // resolve has found every name
	ref, _ := r.plan.base.Lookup(actual)
	if err := r.checkFolded(name); err != nil {
		return nil, err
	}
	t := r.byTensor[actual]
	if t != nil {
		return t, nil
	}
	if err := r.checkStorage(ref); err != nil && !r.isCounter(name, ref) {
		return nil, err
	}
	if err := r.checkTied(actual); err != nil {
		return nil, err
	}
	t = &target{ref: ref, module: naming.Module(actual), nBands: 1}
	r.byTensor[actual] = t
	return t, nil
}

func (r *resolver) blob(i int) blob { return blob{source: r.plan.adapters[r.index].Source, index: i} }

// product returns the scale and the factors of a layer.
func (r *resolver) product(l *format.Layer) (scale float64, a, b blob, err error) {
	weight := r.plan.adapters[r.index].Weight
	scale = weight * l.Scale()
	if math.IsNaN(scale) || math.IsInf(scale, 0) {
		return 0, a, b, fault.New(fault.Corrupt, "%q has the scale %v (alpha %v, rank %d, weight %v)", l.Module, scale, l.Alpha, l.Rank, weight)
	}
	a, b = r.blob(l.Roles[format.RoleA]), r.blob(l.Roles[format.RoleB])
	for _, f := range []blob{a, b} {
		if !f.tensor().DType.IsFloat() {
			return 0, a, b, fault.New(fault.Unsupported, "%q is stored as %v; factors are F64, F32, F16 or BF16", f.tensor().Name, f.tensor().DType)
		}
	}
	return scale, a, b, nil
}

// addLayer adds the terms of one layer.
func (r *resolver) addLayer(l *format.Layer) error {
	if l.Kind == format.Expert {
		return nil // added with its group
	}
	if _, _, _, _, ok := r.gathered(l); ok {
		return r.addGathered(l)
	}
	if l.Kind == format.Other {
		return r.addCompact(l)
	}
	scale, a, b, err := r.product(l)
	if err != nil {
		return err
	}
	scale *= r.outProj(l)
	t, err := r.target(r.weightName(l))
	if err != nil {
		return err
	}
	transposed, err := r.orientation(l, t.ref.Tensor.Shape, a.tensor().Shape, b.tensor().Shape)
	if err != nil {
		return err
	}
	t.add(term{adapter: r.index, module: l.Module, scale: scale, rank: l.Rank}, wholeB(b, l.Rank), wholeA(a, l.Rank), transposed)
	if err := r.addResidual(l, t, transposed); err != nil {
		return err
	}
	if err := r.addMagnitude(l, t, transposed); err != nil {
		return err
	}

	if i, ok := l.Roles[format.RoleBias]; ok {
		bias, err := r.target(l.Module + ".bias")
		if err != nil {
			return err
		}
		if have, want := r.blob(i).tensor().Elements(), bias.ref.Tensor.Elements(); have != want || len(bias.ref.Tensor.Shape) != 1 {
			return fault.New(fault.Mismatch, "lora_B.bias of %q has %d elements, the base's bias has shape %d", l.Module, have, bias.ref.Tensor.Shape)
		}
		bias.terms = append(bias.terms, term{adapter: r.index, module: l.Module, scale: scale, rank: 1, left: one, right: wholeA(r.blob(i), 1)})
	}
	return nil
}

// addBeside adds a tensor that is put in place.
func (r *resolver) addBeside(b *format.Beside) error {
	if b.Action == format.Opaque {
		for _, f := range []string{format.FeatureVeLoRA, format.FeatureMonteCLoRA} {
			if slices.Contains(r.where(f), b.Target) {
				r.leftOut = append(r.leftOut, b.Target)
				return nil
			}
		}
		return fault.New(fault.Unsupported, "tensor %q has no known meaning", b.Target)
	}
	if w := r.plan.adapters[r.index].Weight; w != 1 {
		return fault.New(fault.Unsupported, "the adapter replaces %q, and a replacement cannot be weighted by %v", b.Target, w).
			WithHint("use the weight 1")
	}
	if folded, err := r.isFolded(b); folded || err != nil {
		return err
	}
	t, err := r.target(b.Target)
	if err != nil {
		return err
	}
	have, want := r.blob(b.Tensor).tensor(), t.ref.Tensor
	if !have.DType.IsFloat() && have.DType != want.DType {
		return fault.New(fault.Mismatch, "the adapter saves %q as %v, the base has %v", b.Target, have.DType, want.DType)
	}
	if b.Action == format.Rows {
		return r.addRows(b, t, have)
	}
	if t.replace != nil {
		return fault.New(fault.Mismatch, "two adapters replace %q", want.Name)
	}
	if !slices.Equal(have.Shape, want.Shape) {
		return otherShape(b.Target, have.Shape, want.Shape)
	}
	blob := r.blob(b.Tensor)
	t.replace = &blob
	return nil
}

func (r *resolver) addRows(b *format.Beside, t *target, have *format.Tensor) error {
	want := t.ref.Tensor
	if len(have.Shape) != 2 || len(want.Shape) != 2 || have.Shape[1] != want.Shape[1] {
		return fault.New(fault.Mismatch, "the trained token rows of %q have shape %d, the base has %d", b.Target, have.Shape, want.Shape)
	}
	if t.rows != nil {
		return fault.New(fault.Unsupported, "two adapters replace rows of %q", want.Name)
	}
	for _, row := range b.Rows {
		if row < 0 || uint64(row) >= want.Shape[0] {
			return fault.New(fault.Mismatch, "trainable_token_indices has the token %d, and %q of the base has %d rows", row, want.Name, want.Shape[0]).
				WithHint("the vocabulary was resized for the adapter, and it has no values for all of the new rows: resize the base's embeddings first")
		}
	}
	t.rows = &rows{blob: r.blob(b.Tensor), order: b.Rows}
	return nil
}

// checkStorage refuses a tensor whose values are not plain floats.
func (r *resolver) checkStorage(ref checkpoint.Ref) error {
	name, d := ref.Tensor.Name, ref.Tensor.DType
	quantised := ""
	if m := r.plan.base.Config.QuantizationMethod; m != "" {
		quantised = fmt.Sprintf(" (quantised: config.json says %s)", m)
	}
	module := naming.Module(name)
	for _, companion := range []string{name + "_scale", name + "_scale_inv", name + ".absmax", name + ".quant_map", name + ".SCB", module + ".scales"} {
		if _, ok := r.plan.base.Lookup(companion); ok {
			quantised = fmt.Sprintf(" (quantised: beside it lies %q)", companion)
		}
	}
	if !d.IsFloat() || quantised != "" && d.Size() < 2 {
		return fault.New(fault.Unsupported, "tensor %q of the base is stored as %v%s; F64, F32, F16 and BF16 can be merged into", name, d, quantised).
			WithHint("merge into the checkpoint that it was quantised from, then quantise again")
	}
	if quantised != "" && !strings.Contains(quantised, "config.json") {
		return fault.New(fault.Unsupported, "tensor %q of the base is not plain%s", name, quantised)
	}
	return nil
}
