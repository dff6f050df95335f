package convert

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/card"
	"github.com/loratool/loratool/internal/naming"
)

// adapter assigns every tensor of the file to a layer or lists it beside the layers.
func (p *pairReader) adapter(
	ctx context.Context, assign func(*pairReader) error,
) (format.Adapter, error) {
	p.out = format.Adapter{Method: format.MethodLoRA, Dialect: p.dialect}
	p.out.Base.Name = p.baseName()
	if err := assign(p); err != nil {
		return p.out, err
	}
	if err := p.readConfigs(ctx); err != nil {
		return p.out, err
	}
	if err := p.addLayers(ctx); err != nil {
		return p.out, err
	}
	p.requireConfigs()
	p.rename()
	if len(p.out.Layers) == 0 || hasMethods(&p.out) {
		p.out.Method = format.OtherMethod("lycoris")
	}
	return p.sorted(), nil
}

// assign sorts the tensors by module and role.
func (p *pairReader) assign(ctx context.Context) error {
	p.layers, p.hasMethod = make(map[string]map[format.Role]int), make(map[string]bool)
	p.kinds = make(map[string]format.Kind)
	keys := methodKeys(p.tensors)
	for i := range p.tensors {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := keys[i]
		if p.adapt != nil {
			p.adapt(&k, p.tensors[i].Name)
		}
		roles := p.layers[k.module]
		switch {
		case k.saved != "":
			p.out.Beside = append(p.out.Beside, format.Beside{
				Action: format.Replace, Target: k.saved, Tensor: i,
			})
		case k.part != "":
			p.hasMethod[k.module] = true
			p.difference(i, k.module+"."+k.part)
			p.scales.said = p.tensors[i].Name + ", a difference, which has the scale 1"
		case k.role == "":
			p.hasMethod[k.module] = true
			p.opaque(i)
			p.out.Requires = append(p.out.Requires, k.feature)
		case hasRole(roles, k.role), k.kind != "" && p.kinds[k.module] != "" && p.kinds[k.module] != k.kind:
			p.opaque(i)
			p.require(format.FeatureTwice, p.tensors[i].Name)
		default:
			if roles == nil {
				roles = make(map[format.Role]int)
				p.layers[k.module] = roles
			}
			roles[k.role] = i
			if k.kind != "" {
				p.kinds[k.module] = k.kind
			}
		}
	}
	return nil
}

// addLayers makes a layer of every module that has factors.
func (p *pairReader) addLayers(ctx context.Context) error {
	for _, module := range slices.Sorted(maps.Keys(p.layers)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		roles := p.layers[module]
		isAlone := true // an alpha whose factors are of another method
		for role := range roles {
			isAlone = isAlone && role == format.RoleAlpha
		}
		if isAlone {
			p.opaque(roles[format.RoleAlpha])
			if !p.hasMethod[module] {
				p.require(format.FeatureMissingFactor, module+": only alpha is there")
			}
			continue
		}
		l := format.Layer{Module: module, Kind: format.Linear, Rank: 1, Roles: roles}
		if err := p.describe(&l); err != nil {
			return err
		}
		p.out.Layers = append(p.out.Layers, l)
	}
	return p.finishScales()
}

// describe completes a layer that has its roles.
func (p *pairReader) describe(l *format.Layer) error {
	m := methodLayer{p, l, p.kinds[l.Module]}
	m.nameMagnitude()
	if methodFeature[m.kind] != "" {
		return m.describe()
	}
	p.classify(l)
	if p.rows != "" && l.Kind == format.Linear && naming.IsQueryOrKey(l.Module) {
		p.require(p.rows, l.Module)
	}
	if err := p.scale(l); err != nil {
		return err
	}
	p.extras(l)
	return nil
}

// classify derives the kind and the rank of a layer from the shapes of its factors.
func (p *pairReader) classify(l *format.Layer) {
	if hasRole(l.Roles, roleEmbeddingA) && !hasRole(l.Roles, roleA) {
		l.Kind = format.Embedding
		renameRole(l.Roles, roleEmbeddingA, roleA)
		renameRole(l.Roles, roleEmbeddingB, roleB)
	}
	ia, hasA := l.Roles[roleA]
	ib, hasB := l.Roles[roleB]
	if !hasA || !hasB {
		missing := "A (lora_down)"
		if hasA {
			missing = "B (lora_up)"
		}
		p.require(format.FeatureMissingFactor, l.Module+": "+missing)
		l.Kind = format.Other
		return
	}
	a, b := p.tensors[ia].Shape, p.tensors[ib].Shape
	isPoint := func(kernel []uint64) bool {
		return !slices.ContainsFunc(kernel, func(n uint64) bool { return n != 1 })
	}
	fits := len(a) >= 2 && len(a) == len(b) && a[0] == b[1] && isPoint(b[2:])
	if isMergedLinear(p, l, a, b) {
		addMergedLinear(p, l, a, b)
		return
	}
	isFlat := l.Kind != format.Embedding || len(a) == 2
	if !fits || !isFlat || a[0] == 0 || a[0] > maxRank {
		p.require(format.FeatureFactorShape, fmt.Sprintf("%s: A %d, B %d", l.Module, a, b))
		l.Kind = format.Other
		return
	}
	l.Rank = int(a[0])
	if len(a) > 2 {
		l.Kind = format.Conv
		p.require(format.FeatureConvolution, l.Module)
	}
}

// extras adds the features of the roles beyond the factors.
func (p *pairReader) extras(l *format.Layer) {
	for role, i := range l.Roles {
		switch role {
		case roleA, roleB, format.RoleAlpha:
		case roleBias:
			p.require(format.FeatureLoRABias, l.Module)
		case roleMagnitude:
			p.require(format.FeatureDoRA, l.Module)
		case format.RoleInputMagnitude:
			p.require(format.FeatureInputMagnitude, l.Module)
		case format.RoleCore:
			p.require(format.FeatureTucker, l.Module)
			(&methodLayer{p, l, l.Kind}).check()
			continue
		default:
			p.require(format.FeatureUnknownTensor, p.tensors[i].Name)
			continue
		}
		if role != roleBias && role != roleMagnitude || l.Kind == format.Other {
			continue
		}
		b := &p.tensors[l.Roles[roleB]]
		if t := &p.tensors[i]; t.Elements() != int64(b.Shape[0]) {
			where := fmt.Sprintf("%s %d, B %d", t.Name, t.Shape, b.Shape)
			p.require(format.FeatureFactorShape, where)
			l.Kind = format.Other
		}
	}
}

// rename gives the layers the names of their modules in the model. A dialect without flat names
// keeps those that it finds, but they are no second layer of a module.
func (p *pairReader) rename() {
	modules := p.modules
	if modules == nil {
		modules = dotted
	}
	names := make([]string, len(p.out.Layers))
	for i := range p.out.Layers {
		names[i] = p.out.Layers[i].Module
	}
	renamed, n := modules(slices.Concat(names, differenceModules(&p.out))), make(map[string]int)
	for _, module := range names {
		n[cmp.Or(renamed[module], module)]++
	}
	name := func(module string) string {
		to := cmp.Or(renamed[module], module)
		if n[to] == 1 && p.modules != nil {
			return to
		}
		return module // the names of two layers stay apart
	}
	for _, module := range names {
		if to := renamed[module]; n[to] > 1 {
			p.require(format.FeatureTwice, module+", which is "+to)
		}
	}
	for i := range p.out.Layers {
		p.out.Layers[i].Module = name(p.out.Layers[i].Module)
	}
	for i := range p.out.Requires {
		p.out.Requires[i].Where = name(p.out.Requires[i].Where)
	}
	renameDifferences(&p.out, func(module string) string {
		if p.modules == nil {
			return module
		}
		return cmp.Or(renamed[module], module)
	})
}

// baseName returns the name of the base that the header or the model card gives.
func (p *pairReader) baseName() string {
	keys := []string{"ss_sd_model_name", "ss_base_model_version", "modelspec.architecture"}
	for _, key := range keys {
		if name := p.metadata[key]; checkName(name) == nil && name != "None" {
			return name
		}
	}
	if p.beside != nil && p.beside.base != "" {
		return p.beside.base
	}
	if bases := card.Parse(p.card).BaseModels; len(bases) > 0 {
		return bases[0]
	}
	return ""
}
