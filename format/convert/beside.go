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

// An adapter is the whole directory that its trainer wrote. Some trainers put weights that they
// trained in full into a file of their own: LLaVA writes non_lora_trainables.bin, LongLoRA
// trainable_params.bin. Merging the adapter without that file gives a model that nobody trained.

// lookBeside judges the other files in the directories of the weights. It returns the names of the
// files with weights that are not part of the adapter that m describes, and the names of other
// adapters.
func (in *Input) lookBeside(m *format.Manifest, without []string) (stray, others []string, err error) {
	isOwn := func(name string) bool { return slices.Contains(in.weights.files, name) }
	if i := slices.IndexFunc(without, isOwn); i >= 0 {
		return nil, nil, fault.New(fault.Mismatch, "%q is the adapter itself and cannot be left out", without[i]).In(in.path("."))
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
			if isOwn(name) || slices.Contains(without, name) || in.isWith(name) {
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

// refuseBeside returns the error for weights beside the adapter that the caller did not account
// for.
func refuseBeside(in place, names []string) *fault.Error {
	var paths []string
	for _, name := range names {
		paths = append(paths, in.path(name))
	}
	return fault.New(fault.Unsupported,
		"the adapter's directory holds weights that are not part of the adapter: %s", fault.List(names, 5)).
		WithHint("the trained model has these weights too; to replace those of the base, set Options.With=%s; "+
			"to go on without them, set Options.Without=%s",
			strings.Join(paths, " Options.With="), strings.Join(names, " Options.Without="))
}

// besideKind is the kind of a file beside an adapter.
type besideKind int

const (
	harmless     besideKind = iota // no weights, a training state, a model, or a copy of the adapter
	otherAdapter                   // another, complete adapter
	strayWeights                   // weights, or a file that cannot be told from weights
)

// neighbour judges the files beside the adapter that manifest describes.
type neighbour struct {
	place
	ctx      context.Context
	manifest *format.Manifest
}

// judge decides the kind of a file beside the adapter, by its name where the name is certain, and
// otherwise by its keys.
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

// isModelBeside reports whether a file with the name of a model is one: whether it holds a weight
// that the adapter changes. A file counts as a model without a look at its keys if config.json lies
// beside it, if it is one shard of several, or if its keys cannot be read.
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

// keys returns the keys of a file, nil if they cannot be read. The kind is strayWeights unless the
// content proves that the file is harmless.
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
		return nil, harmless // not a format of weights
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

// has reports whether the adapter has all keys. A file with such keys is a copy of the adapter.
func (n *neighbour) has(keys []string) bool {
	own := make(map[string]bool, len(n.manifest.Tensors))
	for i := range n.manifest.Tensors {
		own[n.manifest.Tensors[i].Name] = true
	}
	return !slices.ContainsFunc(keys, func(key string) bool { return !own[key] })
}

// factorKey matches the keys of factors and of the tensors beside them, in any dialect.
var factorKey = regexp.MustCompile(`lora|lokr_|hada_|oft_|dora_scale|\.alpha$|:(up|down)|^w_[ab]_`)

// areAllOfAdapter reports whether all keys are those of an adapter.
func areAllOfAdapter(keys []string) bool {
	return len(keys) > 0 && naming.Dialect(keys) != "" && !slices.ContainsFunc(keys, func(key string) bool { return !factorKey.MatchString(key) })
}
