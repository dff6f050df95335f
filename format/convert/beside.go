package convert

import (
	"context"
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/pickle"
	"github.com/loratool/loratool/internal/safetensors"
)

// An adapter is the whole folder that its trainer wrote. Some trainers put weights that they
// trained whole into a file of their own: LLaVA non_lora_trainables.bin, LongLoRA
// trainable_params.bin. Who merges the adapter without them gets another model than the one that
// was trained.

// lookBeside judges the other files of the weights' directories, and returns the names of those
// that hold weights and are no part of the adapter with this description, and of other adapters.
func (in *Input) lookBeside(m *format.Manifest, without []string) (stray, others []string, err error) {
	if slices.Contains(without, in.name) {
		return nil, nil, fault.New(fault.Mismatch, "%q is the adapter itself and cannot be left out", in.name).In(in.path("."))
	}
	places := []string{"."}
	if at := path.Dir(in.name); at != "." {
		places = append(places, at)
	}
	n := neighbour{place: in.place, ctx: in.ctx, manifest: m}
	for _, dir := range places {
		entries, err := in.dir.List(dir)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			if err := in.ctx.Err(); err != nil {
				return nil, nil, err
			}
			name := path.Join(dir, e.Name())
			if name == in.name || slices.Contains(without, name) {
				continue
			}
			switch n.judge(name) {
			case strayWeights:
				stray = append(stray, name)
			case otherAdapter:
				others = append(others, name)
			}
		}
	}
	return stray, others, nil
}

func refuseBeside(names []string) *fault.Error {
	return fault.New(fault.Unsupported, "beside the adapter lie weights that are no part of it and are not applied yet: %s", fault.List(names, 5)).
		WithHint("the model that was trained has them as well; to go on without them, set Options.Without=%s", strings.Join(names, " Options.Without="))
}

// besideKind is the kind of a file beside an adapter.
type besideKind int

const (
	harmless     besideKind = iota // no weights, the state of a training, a model, the adapter once more
	otherAdapter                   // another adapter, whole
	strayWeights                   // weights, or what cannot be told from weights
)

// neighbour judges files beside the adapter with a description.
type neighbour struct {
	place
	ctx      context.Context
	manifest *format.Manifest
}

// judge finds the kind of a file beside the adapter: by its name where that is certain, and else by
// its keys.
func (n *neighbour) judge(at string) besideKind {
	name, kind := path.Base(at), kindOf(at)
	info, err := n.dir.Stat(at)
	stem, _, _ := strings.Cut(peftWeights, ".")
	switch {
	case err != nil || !info.Mode().IsRegular() || kind == noWeights || kind == containerFile || kind == ggufFile:
		return harmless
	case isTrainingState(name), strings.HasPrefix(name, stem+"."):
		return harmless
	case modelWeights.MatchString(name) && n.isModelBeside(at):
		return harmless
	}
	keys, what := n.keys(at)
	switch {
	case what != strayWeights:
		return what
	case len(keys) > 0 && n.has(keys):
		return harmless
	case areAllOfAdapter(keys):
		return otherAdapter
	case kind == anyPickle && keys == nil:
		return harmless
	}
	return strayWeights
}

// isModelBeside reports whether a file with the name of a model is one: whether it, or another
// shard of it, holds a weight that the adapter changes. A file that cannot be read counts as part
// of the adapter.
func (n *neighbour) isModelBeside(at string) bool {
	if n.exists(path.Join(path.Dir(at), modelConfig)) {
		return true
	}
	keys, _ := n.keys(at)
	layers := n.manifest.Adapters[0].Layers
	if keys == nil || len(layers) == 0 || strings.Contains(path.Base(at), "-of-") {
		return true
	}
	for _, key := range keys {
		module, ok := strings.CutSuffix(key, ".weight")
		if ok && slices.ContainsFunc(layers, func(l format.Layer) bool {
			return module == l.Module || strings.HasSuffix(module, "."+l.Module) || strings.HasSuffix(l.Module, "."+module)
		}) {
			return true
		}
	}
	return strings.HasPrefix(path.Base(at), "consolidated")
}

// keys are the keys of a file, nil where they cannot be read. It is strayWeights unless the content
// says that it is something else.
func (n *neighbour) keys(at string) ([]string, besideKind) {
	file, err := n.dir.Open(at)
	if err != nil {
		return nil, strayWeights
	}
	defer file.Close()
	start, err := startOf(file, startBytes)
	switch isWeights := isPickle(start) || safetensors.IsHeader(start); {
	case err != nil, strings.HasPrefix(string(start), "version https://git-lfs"):
		return nil, strayWeights
	case !isWeights:
		return nil, harmless // no format of weights
	}
	if isPickle(start) {
		if arrays := arraysOf(file, file.Size); arrays != nil {
			return arrays, strayWeights
		}
	}
	t, err := readTable(n.ctx, file)
	var layout *pickle.LayoutError
	switch {
	case errors.As(err, &layout) && (layout.IsOptimizer || len(layout.Keys)+layout.NInLists == 0):
		return nil, harmless
	case errors.As(err, &layout):
		return layout.Keys, strayWeights
	case err != nil:
		return nil, strayWeights
	case len(t.tensors) == 0:
		return nil, harmless
	}
	return t.keys(), strayWeights
}

// has reports whether the adapter has all keys: then a file is the adapter once more.
func (n *neighbour) has(keys []string) bool {
	own := make(map[string]bool, len(n.manifest.Tensors))
	for i := range n.manifest.Tensors {
		own[n.manifest.Tensors[i].Name] = true
	}
	return !slices.ContainsFunc(keys, func(key string) bool { return !own[key] })
}

// factorKey matches the keys of factors and of the tensors with them, in any dialect.
var factorKey = regexp.MustCompile(`lora|lokr_|hada_|oft_|dora_scale|\.alpha$|:(up|down)|^w_[ab]_`)

// areAllOfAdapter reports whether keys are those of an adapter, and none is of other weights.
func areAllOfAdapter(keys []string) bool {
	return len(keys) > 0 && naming.Dialect(keys) != "" && !slices.ContainsFunc(keys, func(key string) bool { return !factorKey.MatchString(key) })
}
