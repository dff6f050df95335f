package convert

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
)

// Alike gives adapters of one model, in any dialects, the same names for the same weights, so that
// package rank finds the layers that belong together. Those of image and video models get the names
// and the divisions of diffusers, as Create writes them; names of language models that differ by a
// prefix or by the release of transformers become those of the first adapter. Sources whose names
// agree are returned as they are. With o.BaseConfig, factors with the rows of attention heads in
// the order of llama.cpp get that of transformers ([WithHeads]); o.Base has names that no table
// knows.
//
// The new sources read from the given ones, and need not be closed.
func Alike(ctx context.Context, sources []format.Source, o CreateOptions) ([]format.Source, error) {
	all := slices.Clone(sources)
	for i, src := range all {
		if o.BaseConfig == nil {
			break
		}
		var err error
		if all[i], err = WithHeads(src, o.BaseConfig); err != nil {
			return nil, err
		}
	}
	isOne := func(src format.Source) bool { return len(src.Manifest().Adapters) == 1 }
	before := agreement(all)
	if before == 1 || slices.ContainsFunc(all, func(src format.Source) bool { return !isOne(src) }) {
		return all, nil
	}
	if !slices.ContainsFunc(all, IsOfImages) {
		return unstackAlike(renamedAlike(all))
	}
	respelled, err := respellAll(ctx, all, &o)
	if err == nil && agreement(respelled) > before {
		return respelled, nil
	}
	dialect := all[0].Manifest().Adapters[0].Dialect
	isOther := func(src format.Source) bool { return src.Manifest().Adapters[0].Dialect != dialect }
	if err != nil && before == 0 && slices.ContainsFunc(all, isOther) {
		return nil, err
	}
	return all, nil
}

// agreement is the share of the modules of pairs of adapters that both have. It is 1 if no adapter
// of a pair has a module that the other lacks, but for one that has all modules of the other.
func agreement(sources []format.Source) float64 {
	var common, all float64
	for i, src := range sources {
		for _, other := range sources[:i] {
			a, b := modulesOf(src), modulesOf(other)
			n := 0
			for module := range a {
				if b[module] {
					n++
				}
			}
			if n == min(len(a), len(b)) {
				common, all = common+1, all+1
				continue
			}
			common, all = common+float64(n)/float64(len(a)+len(b)-n), all+1
		}
	}
	if all == 0 {
		return 1
	}
	return common / all
}

func modulesOf(src format.Source) map[string]bool {
	modules := make(map[string]bool)
	for _, a := range src.Manifest().Adapters {
		for i := range a.Layers {
			modules[a.Layers[i].Module] = true
		}
		for _, b := range a.Beside {
			modules[naming.Module(b.Target)] = true
		}
	}
	return modules
}

// renamedAlike gives the modules of adapters of a language model the names that the first one has.
func renamedAlike(sources []format.Source) []format.Source {
	weights := func(src format.Source) (names []string) {
		for _, module := range slices.Sorted(maps.Keys(modulesOf(src))) {
			names = append(names, module+".weight")
		}
		return names
	}
	all := slices.Clone(sources)
	for i := 1; i < len(all); i++ {
		pairs, how, _ := naming.Pair(weights(all[0]), weights(all[i]))
		if how == "" {
			continue
		}
		names := renames(modulesOf(all[i]), pairs)
		m := *all[i].Manifest()
		a := m.Adapters[0]
		a.Requires = renamedRequires(a.Requires, names)
		a.Layers, a.Beside = slices.Clone(a.Layers), slices.Clone(a.Beside)
		for j := range a.Layers {
			if to := names[a.Layers[j].Module]; to != nil {
				a.Layers[j].Module = to[0]
			}
		}
		for j := range a.Beside {
			b := &a.Beside[j]
			if module := naming.Module(b.Target); names[module] != nil && b.Action != format.Opaque {
				b.Target = names[module][0] + strings.TrimPrefix(b.Target, module)
			}
		}
		m.Adapters = []format.Adapter{a}
		all[i] = &described{all[i], &m}
	}
	return all
}

// renames returns the new names of modules by pairs of old and new names of weights. A module
// without a pair gets the prefix that all pairs have.
func renames(modules map[string]bool, pairs map[string]string) map[string][]string {
	names := make(map[string][]string)
	prefixes := make(map[[2]string]bool)
	for theirs, ours := range pairs {
		names[naming.Module(theirs)] = []string{naming.Module(ours)}
		a, b := strings.Split(theirs, "."), strings.Split(ours, ".")
		for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
			a, b = a[:len(a)-1], b[:len(b)-1]
		}
		prefixes[[2]string{strings.Join(append(a, ""), "."), strings.Join(append(b, ""), ".")}] = true
	}
	if len(prefixes) != 1 {
		return names
	}
	for p := range prefixes {
		for module := range modules {
			if rest, has := strings.CutPrefix(module, p[0]); has && names[module] == nil {
				names[module] = []string{p[1] + rest}
			}
		}
	}
	return names
}

// renamedRequires gives requirements of modules their new names.
func renamedRequires(requires []format.Requirement, names map[string][]string) (all []format.Requirement) {
	for _, q := range requires {
		for _, name := range names[q.Where] {
			all = append(all, format.Requirement{Feature: q.Feature, Where: name})
		}
		if names[q.Where] == nil {
			all = append(all, q)
		}
	}
	return all
}

// respellAll respells adapters of image models. The architecture of one of them helps to know the
// modules of the others.
func respellAll(ctx context.Context, sources []format.Source, o *CreateOptions) ([]format.Source, error) {
	known := ""
	for _, src := range sources {
		names := respell(src, o, "")
		if known == "" && names.IsWhole() {
			known = names.Denoiser
		}
	}
	all := make([]format.Source, len(sources))
	for i, src := range sources {
		var err error
		if all[i], err = newRespelled(ctx, src, o, known); err != nil {
			return nil, fault.InFile(err, "")
		}
	}
	return all, nil
}

// respell names the modules of an adapter as diffusers does.
func respell(src format.Source, o *CreateOptions, known string) *naming.Respelling {
	if known == "" {
		known = architectureNamed(src.Manifest().Adapters[0].Base.Name)
	}
	base, shapes := o.indexBase()
	return naming.Respell(naming.OfDiffusers, newWeaver(context.Background(), src).updates(), base, shapes, known)
}

// respelled is an adapter of an image or video model with the names of diffusers.
type respelled struct {
	format.Source
	manifest format.Manifest
	factors  []*factor // of the tensors
}

func newRespelled(ctx context.Context, src format.Source, o *CreateOptions, known string) (*respelled, error) {
	from := src.Manifest()
	r := &respelled{Source: src, manifest: *from}
	a := from.Adapters[0]
	for _, b := range a.Beside {
		if b.Action != format.Difference {
			return nil, fault.New(fault.Unsupported, "the tensor %q has no place in the dialect %s", from.Tensors[b.Tensor].Name, Diffusers().Name())
		}
	}
	names := respell(src, o, known)
	if err := refuseRespelling(names, Diffusers().Name()); err != nil {
		return nil, err
	}
	layers, err := newWeaver(ctx, src).weave(names.Modules)
	if err != nil {
		return nil, err
	}
	to := make(map[string][]string)
	for _, m := range names.Modules {
		for _, p := range m.Pieces {
			to[p.Module] = append(to[p.Module], m.Name)
		}
	}
	a.Requires = slices.DeleteFunc(renamedRequires(a.Requires, to), func(q format.Requirement) bool { return q.Feature == format.FeatureConvolution })
	a.Dialect, a.Layers, a.Beside = Diffusers().Name(), nil, nil
	r.manifest.Tensors, r.manifest.Attachments = nil, nil
	for _, l := range layers {
		r.add(&a, l)
	}
	r.manifest.Adapters = []format.Adapter{a}
	return r, nil
}

// add adds a layer, and the differences of its module.
func (r *respelled) add(a *format.Adapter, n *newLayer) {
	l := format.Layer{Module: n.name, Kind: n.kind, Rank: n.rank, Alpha: n.alpha, Scaling: n.scaling, Roles: make(map[format.Role]int)}
	for _, role := range slices.Sorted(maps.Keys(n.factors)) {
		i := len(r.manifest.Tensors)
		f := n.factors[role]
		r.factors = append(r.factors, f)
		r.manifest.Tensors = append(r.manifest.Tensors, format.Tensor{Name: n.name + "." + string(role), DType: f.dtype, Shape: f.shape})
		switch role {
		case roleDiff:
			a.Beside = append(a.Beside, format.Beside{Action: format.Difference, Target: n.name + ".weight", Tensor: i})
		case roleDiffBias:
			a.Beside = append(a.Beside, format.Beside{Action: format.Difference, Target: n.name + ".bias", Tensor: i})
		default:
			l.Roles[role] = i
		}
	}
	if n.kind == "" {
		return
	}
	if n.kind == format.Conv {
		a.Requires = append(a.Requires, format.Requirement{Feature: format.FeatureConvolution, Where: n.name})
	}
	a.Layers = append(a.Layers, l)
}

func (r *respelled) Manifest() *format.Manifest { return &r.manifest }

func (r *respelled) Unchanged() error { return fileio.Unchanged(r.Source) }

func (r *respelled) ReadBlobAt(p []byte, i int, off int64) error {
	f := r.factors[i]
	if f.isWhole(r.Source.Manifest()) {
		return r.Source.ReadBlobAt(p, f.blocks[0].tensor, off)
	}
	content, err := f.content(context.Background(), r.Source)
	if err == nil {
		copy(p, content[off:])
	}
	return err
}
