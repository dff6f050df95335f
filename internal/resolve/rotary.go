package resolve

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// This file is about the rows of q and k. Rotary embeddings turn halves of an attention head in
// transformers, and neighbours in llama.cpp and in the code of Meta and Mistral, so these have the
// rows in another order (spec/METHODS.md, section 6).

// decideRows requires the order of llama.cpp for the layers whose order the model decides, if the
// model has it.
func decideRows(r *resolver) error {
	modules := r.features[format.FeatureRotaryByModel]
	hasPairs, ok := naming.HasPairsInTorchtune(r.base.Config.ModelType)
	switch {
	case r.mapping.IsToOwn():
	case !ok:
		return fault.New(fault.Unsupported, "%q has the rows of each attention head in an order that depends on "+
			"the type of the model, and torchtune trains none of the type %q", modules[0], r.base.Config.ModelType).
			WithHint("put the model's config.json beside its weights (model_type)")
	case !hasPairs:
		return nil
	}
	model := *r.model
	model.Requires = slices.Clone(model.Requires)
	for _, module := range modules {
		model.Requires = append(model.Requires, format.Requirement{Feature: format.FeatureRotaryPairs, Where: module})
	}
	if why := pairsElsewhere(&model); why != nil {
		return fault.New(fault.Unsupported, "%s", why[0])
	}
	r.model, r.features = &model, placesOf(&model)
	return nil
}

// inOrder gives B the order of the base's rows.
func (p *plain) inOrder(b Factor) (Factor, error) {
	baseHasPairs := hasPairs(p.resolver, p.target())
	if p.isInPairs(p.layer) == baseHasPairs {
		return b, nil
	}
	b.ToPairs = baseHasPairs
	return p.inHeads(b)
}

// hasPairs reports whether the base has the rows of a tensor in the order of llama.cpp.
func hasPairs(r *resolver, name string) bool {
	if r.mapping.IsToOwn() {
		return naming.IsQueryOrKey(naming.Module(name))
	}
	model := naming.LlamaCppNamed(r.base.Config.Architecture)
	actual, _ := r.mapping.Lookup(name)
	return model != nil && model.HasPairs(actual)
}

// inHeads sets the size of the heads by which the rows of B are put in order.
func (p *plain) inHeads(b Factor) (Factor, error) {
	size := p.base.Config.HeadSize
	switch {
	case size == 0 && p.base.isGGUF():
		return b, fault.New(fault.Unsupported, "the rows of each attention head of %q have the order of llama.cpp "+
			"in the adapter or in the base alone, and no key of the base gives all heads one size", p.layer.Module).
			WithHint("the size is %[1]s.attention.key_length, or %[1]s.embedding_length divided by %[1]s.attention.head_count; "+
				"if the model has neither, merge into the checkpoint for transformers", p.base.Config.Architecture)
	case size == 0:
		return b, fault.New(fault.Unsupported, "the rows of each attention head of %q have the order of llama.cpp "+
			"in the adapter or in the base alone, and the base does not say how many rows a head has", p.layer.Module).
			WithHint("put the model's config.json beside its weights (head_dim, or hidden_size and num_attention_heads)")
	case size%2 != 0 || uint64(b.Length)%size != 0:
		return b, fault.New(fault.Mismatch, "%q: B has %d rows, want a multiple of the base's head size, %d, "+
			"which must be even", p.layer.Module, b.Length, size).WithHint("%s", p.wrongBase())
	}
	b.HeadSize = int(size)
	return b, nil
}

// checkQueries refuses changes of q and k that are not put in order, in a base that may have their
// rows in the order of llama.cpp: only B of a plain layer is.
func checkQueries(r *resolver) error {
	for _, f := range r.forms {
		p, isPlain := f.(*plain)
		if isPlain && p.layer.Kind == format.Linear && nOperands(p.layer) == 2 && !r.has(format.FeaturePiSSA) && !r.has(format.FeatureOLoRA) {
			continue
		}
		for _, name := range f.wants() {
			if hasPairs(r, name) {
				return fault.New(fault.Unsupported, "%q has its rows in the order of transformers, and the base in that of llama.cpp and of Meta's and "+
					"Mistral's code; only LoRA on linear layers without a bias or magnitudes is put in order", naming.Module(name)).
					WithHint("merge into the checkpoint for transformers")
			}
		}
	}
	return nil
}

// pairsElsewhere names the layers in the order of llama.cpp that have no such order: only B of a
// linear layer has it.
func pairsElsewhere(a *format.Adapter) []string {
	var names []string
	for _, r := range a.Requires {
		if r.Feature != format.FeatureRotaryPairs {
			continue
		}
		i := slices.IndexFunc(a.Layers, func(l format.Layer) bool { return l.Module == r.Where })
		if i < 0 || a.Layers[i].Kind != format.Linear || nOperands(&a.Layers[i]) > 2 {
			names = append(names, r.Where)
		}
	}
	if names == nil {
		return nil
	}
	return []string{"the order of llama.cpp is for B of linear layers without a bias or magnitudes: " + fault.List(names, 3)}
}
