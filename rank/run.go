package rank

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Run decomposes every tensor that differs, and returns the adapter. Its factors lie where
// ExtractOptions.Path or Output says, or in a temporary file, until the source is closed, so close
// it after storing the adapter. Memory is about three times the largest tensor in float32.
func (e *Extraction) Run(ctx context.Context) (format.Source, *ExtractReport, error) {
	r := &extracting{Extraction: e, report: &ExtractReport{Warnings: append([]string{}, e.warnings...), Layers: []ExtractedLayer{}, Beside: []BesideReport{}, Skipped: append([]Skipped{}, e.skipped...)}}
	spool, err := newSpool(e.options.Path, e.options.Output)
	if err != nil {
		return nil, nil, err
	}
	r.spool, r.room.workers = spool, e.options.Workers
	err = r.all(ctx)
	for _, c := range []*checkpoint.Checkpoint{e.base, e.tuned} {
		if err == nil {
			err = c.Unchanged()
		}
	}
	if err != nil {
		spool.Close()
		return nil, nil, err
	}
	return spool, r.report, nil
}

// all decides how to store each tensor, decomposes or carries it, and completes the adapter.
func (r *extracting) all(ctx context.Context) error {
	r.adapter = format.Adapter{Method: format.MethodLoRA}
	if r.peft != nil {
		if err := r.prepare(ctx); err != nil {
			return err
		}
	}
	if r.twins != nil && r.peft == nil {
		var err error
		if r.byModule, err = namesModules(ctx, r.Extraction); err != nil {
			return err
		}
	}
	if r.options.Budget > 0 {
		if err := r.spend(ctx); err != nil {
			return err
		}
	}
	for i := range r.pairs {
		p := &r.pairs[i]
		if err := r.one(ctx, p); err != nil {
			return err
		}
		if r.options.Layer != nil {
			r.options.Layer(p.name, p.tuned.ref.Tensor.NBytes)
		}
	}
	if len(r.report.Layers)+len(r.report.Beside) == 0 {
		return r.nothing()
	}
	if r.options.Strict {
		if err := r.report.complete(); err != nil {
			return err
		}
	}
	return r.finish(ctx)
}

// one adds the change of one tensor to the adapter.
func (r *extracting) one(ctx context.Context, p *pair) error {
	same, err := p.equal(ctx)
	if err != nil {
		return err
	}
	switch view, lowRank := r.view(p); {
	case same:
		r.report.Skipped = append(r.report.Skipped, Skipped{Tensor: p.name, Why: Unchanged, Bytes: bytesOf(r.Extraction, p.name)})
		return nil
	case lowRank:
		return r.layer(ctx, p, view)
	}
	return r.beside(ctx, p, whyWhole(p, r.options))
}

// finish computes the report's totals and completes the manifest and its layers.
func (r *extracting) finish(ctx context.Context) error {
	if err := r.total(ctx); err != nil {
		return err
	}
	r.warn()
	if err := r.rememberBase(ctx); err != nil {
		return err
	}
	r.nest()
	if r.peft == nil {
		r.markTied()
	} else if err := r.complete(ctx); err != nil {
		return err
	}
	r.spool.manifest.Adapters = []format.Adapter{r.adapter}
	r.spool.manifest.Provenance = format.Provenance{Tool: r.options.Tool, Source: "extracted from a fine-tuned checkpoint"}
	return nil
}

// whyWhole returns the reason for not decomposing a tensor.
func whyWhole(p *pair, o ExtractOptions) string {
	switch isMatrix := len(p.tuned.ref.Tensor.Shape) > 1; {
	case isMatrix && o.Images:
		return "no linear layer or convolution of a denoiser or a text encoder"
	case len(p.tuned.ref.Tensor.Shape) < 2:
		return "not a matrix"
	case o.PEFT:
		return "of a kind that PEFT saves whole"
	}
	return "not the weight of a module"
}

// nothing returns the error for an extraction without a result.
func (r *extracting) nothing() error {
	for _, s := range r.report.Skipped {
		switch s.Why {
		case whyTooSmall:
			return fault.New(fault.Mismatch, "nothing to extract: every difference (the first in %q) is too small for float32", s.Tensor)
		case whyBudget:
			return fault.New(fault.Mismatch, "nothing to extract: the budget of %s buys no singular value of any layer; the cheapest costs %s", fault.Count(r.options.Budget, "byte"), fault.Count(r.cheapest, "byte")).
				WithHint("use a larger ExtractOptions.Budget")
		}
	}
	others := slices.DeleteFunc(slices.Clone(r.report.Skipped), func(s Skipped) bool { return s.Why == Unchanged })
	left := ""
	if n := len(others); n > 0 {
		left = fmt.Sprintf("; %s %s not compared, such as %q (%s)", fault.Count(n, "tensor"), fault.Choose(n, "was", "were"), others[0].Tensor, others[0].Why)
	}
	return fault.New(fault.Mismatch, "nothing to extract: %s %s the same values in both checkpoints%s",
		fault.Count(len(r.pairs), "compared tensor"), fault.Choose(len(r.pairs), "has", "have"), left).
		WithHint("check that the two paths are different models: the base first, the fine-tune second")
}

// rememberBase records fingerprints of a few base tensors from all over the model, so that merge
// can recognise the base.
func (r *extracting) rememberBase(ctx context.Context) error {
	const most = 4
	r.adapter.Base.Name, r.adapter.Base.Revision = r.base.Repository()
	r.adapter.Base.Fingerprints = make(map[string]string)
	n := min(most, len(r.tensors))
	for i := range n {
		name := r.tensors[i*(len(r.tensors)-1)/max(1, n-1)]
		if r.peft != nil {
			name = r.peft.disk[name]
		}
		ref, _ := r.base.Lookup(name)
		id, err := format.Fingerprint(ref.Tensor.DType, ref.Tensor.Shape, ref.Tensor.Reader(ctx))
		if err != nil {
			return fault.InFile(err, ref.Tensor.Path())
		}
		r.adapter.Base.Fingerprints[name] = id
	}
	return nil
}

// markTied notes that Δ of a tied embedding is meant for the output head too, since it comes from
// the one tensor.
func (r *extracting) markTied() {
	if !r.baseEnds.isTied() {
		return
	}
	for i := range r.adapter.Layers {
		if module := r.adapter.Layers[i].Module; naming.IsInputEmbedding(module) || r.isTiedEmbedding(module+".weight") {
			r.adapter.Requires = append(r.adapter.Requires, format.Requirement{Feature: format.FeatureWeightTying, Where: "ensure_weight_tying"})
			return
		}
	}
}

// complete returns an error if the adapter lacks a change or carries a tensor whole.
func (r *ExtractReport) complete() error {
	var names []string
	for _, b := range r.Beside {
		names = append(names, b.Tensor)
	}
	for _, s := range r.Skipped {
		if !slices.Contains([]string{Unchanged, whyExcluded, whyTied, whyTrunk, whyAverage}, s.Why) {
			names = append(names, s.Tensor)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fault.New(fault.Check, "factors cannot represent the changes of %s: %s", fault.Count(len(names), "tensor"), fault.List(names, 3)).
		WithHint("without ExtractOptions.Strict, extract carries them whole or lists them as left out")
}

// beside carries a tensor whole, or lists it as left out.
func (r *extracting) beside(ctx context.Context, p *pair, why string) error {
	t := p.tuned.ref.Tensor
	energy, err := p.energy(ctx, 0, t.Elements())
	if err != nil {
		return err
	}
	isKnown := energy-energy == 0
	if !isKnown { // NaN or infinity, refused below, or beyond float32
		energy = 0
	}
	if r.options.carriesNone() {
		verdict := ", which factors cannot represent"
		if r.options.Images {
			verdict = ", which the dialect cannot hold"
		}
		why = "differs, and is " + why + verdict
		if !isKnown {
			why += whyUnknown
		}
		r.report.Skipped = append(r.report.Skipped, Skipped{Tensor: p.name, Why: why, Bytes: bytesOf(r.Extraction, p.name), energy: energy})
		return nil
	}
	r.whole += energy
	if r.twins != nil && r.peft == nil {
		n, ok, err := carryDifference(ctx, r, p)
		if ok {
			r.report.Beside = append(r.report.Beside, BesideReport{p.name, why, n})
		}
		if ok || err != nil {
			return err
		}
	}
	i, nonFinite, err := r.spool.copy(ctx, p.name, t)
	if err != nil {
		return fault.InFile(err, t.Path())
	}
	if nonFinite > 0 {
		return nonFiniteError(p.name, nonFinite)
	}
	if !isKnown {
		r.report.Warnings = append(r.report.Warnings, fmt.Sprintf("%q is NaN or infinite in the base, "+
			"or its change is beyond float32: it is carried whole, and no error counts its change", p.name))
	}
	r.adapter.Beside = append(r.adapter.Beside, format.Beside{Action: format.Replace, Target: p.name, Tensor: i})
	r.report.Beside = append(r.report.Beside, BesideReport{p.name, why, t.NBytes})
	return nil
}

// total computes the report's totals.
func (r *extracting) total(ctx context.Context) error {
	left, err := r.measure(ctx)
	if err != nil {
		return err
	}
	sum := energies{all: r.whole + left, kept: r.whole, left: left, rounded: left}
	byRank := make([]RankEnergy, len(reportedRanks))
	for i, k := range reportedRanks {
		byRank[i] = RankEnergy{Rank: k, Energy: r.whole}
	}
	for i := range r.report.Layers {
		l := &r.report.Layers[i]
		sum.all += l.energies.all
		sum.kept += l.energies.kept
		sum.left += l.energies.left
		sum.rounded += l.energies.rounded
		for j, k := range l.Ranks {
			byRank[j].Energy += k.Energy * l.energies.all
			byRank[j].AtLeast = byRank[j].AtLeast || k.AtLeast
		}
	}
	for i := range r.spool.manifest.Tensors {
		r.report.Bytes += r.spool.manifest.Tensors[i].NBytes()
	}
	if sum.all == 0 {
		return nil
	}
	for i := range byRank {
		byRank[i].Energy /= sum.all
	}
	r.report.Energy, r.report.Error, r.report.Rounded = sum.kept/sum.all, math.Sqrt(sum.left/sum.all), math.Sqrt(sum.rounded/sum.all)
	r.report.Ranks = byRank
	r.energy = sum.all
	r.report.share(sum.all)
	return nil
}
