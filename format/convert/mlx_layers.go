package convert

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// mlxTying is why a change of an embedding is meant for the head that is tied to it: mlx-lm
// computes the head by the same layer.
const mlxTying = "LoRAEmbedding.as_linear"

// mlxReader makes layers of the tensors of an MLX file.
type mlxReader struct {
	collector
	config *mlxConfig
}

func (r *mlxReader) adapter(ctx context.Context) (format.Adapter, error) {
	r.out = format.Adapter{Method: format.MethodLoRA, Dialect: MLX().Name()}
	if name := r.config.Model; checkName(name) == nil {
		r.out.Base.Name = name
	}
	if r.config.note != "" {
		r.note("%s", r.config.note)
	}
	for _, name := range r.config.others {
		r.require(format.FeatureConfigField, "lora_parameters."+name)
	}
	layers := make(map[string]map[format.Role]int)
	for i := range r.tensors {
		if err := ctx.Err(); err != nil {
			return r.out, err
		}
		module, role := mlxKey(r.tensors[i].Name)
		switch {
		case role == "" || hasRole(layers[module], role):
			r.opaque(i)
			r.require(format.FeatureUnknownTensor, r.tensors[i].Name)
			continue
		case layers[module] == nil:
			layers[module] = make(map[format.Role]int)
		}
		layers[module][role] = i
	}
	for _, module := range slices.Sorted(maps.Keys(layers)) {
		name := naming.FromMLX(module)
		if name != module && layers[name] != nil {
			r.require(format.FeatureTwice, module+", which is "+name)
			name = module
		}
		r.layer(name, layers[module])
	}
	return r.sorted(), nil
}

// layer adds the layer of a module.
func (r *mlxReader) layer(module string, roles map[format.Role]int) {
	l := format.Layer{
		Module: module, Kind: format.Linear, Rank: 1, Roles: roles,
		Scaling: format.Fixed, Fixed: r.config.scale,
	}
	if r.config.alpha != 0 {
		l.Scaling, l.Alpha, l.Fixed = format.AlphaOverR, r.config.alpha, 0
	}
	r.classify(&l)
	if rank := r.config.rank(); rank != 0 && l.Kind != format.Other && rank != l.Rank {
		r.require(format.FeatureRankMismatch, fmt.Sprintf("%s: the factors have rank %d, the configuration says %d", l.Module, l.Rank, rank))
	}
	_, hasMagnitude := roles[roleMagnitude]
	if hasMagnitude || r.config.isDoRA() {
		r.require(format.FeatureDoRA, l.Module) // merge refuses a layer without magnitudes
		r.checkMagnitude(&l, hasMagnitude)
	}
	r.out.Layers = append(r.out.Layers, l)
}

// classify sets the kind and the rank by the shapes, and tells embeddings by their names.
func (r *mlxReader) classify(l *format.Layer) {
	ia, hasA := l.Roles[roleA]
	ib, hasB := l.Roles[roleB]
	if !hasA || !hasB {
		r.require(format.FeatureMissingFactor, l.Module+": "+map[bool]string{true: "lora_b", false: "lora_a"}[hasA])
		l.Kind = format.Other
		return
	}
	a, b := r.tensors[ia].Shape, r.tensors[ib].Shape
	n := len(a)
	fits := len(b) == n && (n == 2 || n == 3 && a[0] == b[0] && a[0] > 0) &&
		a[n-2] == b[n-1] && a[n-2] > 0 && a[n-2] <= maxRank
	if !fits {
		r.require(format.FeatureFactorShape, fmt.Sprintf("%s: A %d, B %d", l.Module, a, b))
		l.Kind = format.Other
		return
	}
	l.Rank = int(a[n-2])
	switch {
	case n == 3:
		l.Kind = format.Other
		r.require(format.FeatureExpertFactors, fmt.Sprintf("%s: A %d, B %d", l.Module, a, b))
	case naming.IsEmbedding(l.Module):
		l.Kind = format.Embedding
		r.require(format.FeatureWeightTying, mlxTying)
	}
}

// checkMagnitude changes the kind of a layer to Other unless it has a magnitude for each output of
// a linear layer. mlx-lm's DoRAEmbedding has one for each token, which no kind of layer has.
func (r *mlxReader) checkMagnitude(l *format.Layer, hasMagnitude bool) {
	switch {
	case !hasMagnitude || l.Kind == format.Other:
		return
	case l.Kind == format.Embedding:
		r.require(format.FeatureFactorShape, l.Module+": DoRA with a magnitude for each token")
		l.Kind = format.Other
	default:
		m, b := &r.tensors[l.Roles[roleMagnitude]], &r.tensors[l.Roles[roleB]]
		if m.Elements() != int64(b.Shape[0]) {
			r.require(format.FeatureFactorShape, fmt.Sprintf("%s: m %d, B %d", l.Module, m.Shape, b.Shape))
			l.Kind = format.Other
		}
	}
}
