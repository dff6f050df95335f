package convert

import (
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/pickle"
	"github.com/loratool/loratool/internal/safetensors"
)

// An adapter is the whole folder that its trainer wrote. Some trainers put weights that they trained
// whole into a file of their own: LLaVA non_lora_trainables.bin, LongLoRA trainable_params.bin. Who
// merges the adapter without them gets another model than the one that was trained.

// lookBeside judges the other files of an adapter's directory, and refuses those that are weights and
// no part of it. weights is the path of the adapter's own file within the directory.
func (f *tensorFile) lookBeside(dir, weights string, o Options) error {
	if slices.Contains(o.Without, weights) {
		return fault.New(fault.Mismatch, "%q is the adapter itself and cannot be left out", weights).In(dir)
	}
	places := []string{"."}
	if at := path.Dir(weights); at != "." {
		places = append(places, at)
	}
	var others []string
	for _, place := range places {
		entries, err := os.ReadDir(filepath.Join(dir, filepath.FromSlash(place)))
		if err != nil {
			return err
		}
		for _, e := range entries {
			name := path.Join(place, e.Name())
			if name == weights || slices.Contains(o.Without, name) {
				continue
			}
			switch f.judge(filepath.Join(dir, filepath.FromSlash(name))) {
			case strayWeights:
				f.beside = append(f.beside, name)
			case otherAdapter:
				others = append(others, name)
			}
		}
	}
	if len(others) > 0 {
		f.note("beside the adapter the directory holds other adapters, which are not used: %s", fault.List(others, 5))
	}
	if len(f.beside) > 0 && !o.AllowBeside {
		return refuseBeside(f.beside).In(dir)
	}
	return nil
}

func refuseBeside(names []string) *fault.Error {
	return fault.New(fault.Unsupported, "beside the adapter lie weights that are no part of it and are not applied yet: %s", fault.List(names, 5)).
		WithHint("the model that was trained has them as well; to go on without them: --without %s", strings.Join(names, " --without "))
}

// besideKind is what a file beside an adapter is.
type besideKind int

const (
	harmless     besideKind = iota // no weights, the state of a training, a model, the adapter once more
	otherAdapter                   // another adapter, whole
	strayWeights                   // weights, or what cannot be told from weights
)

var (
	weightsExt = regexp.MustCompile(`(?i)\.(safetensors|bin|pt|pth|ckpt|npz|pkl)$`)
	// trainingState are the files in which trainers keep what they need to go on.
	trainingState = regexp.MustCompile(`(?i)^(optimizer|optim|scheduler|lr_scheduler|scaler|grad_scaler|rng_state|random_states?|training_args|trainer_state|training_state|recipe_state|sampler|dataloader)([._-].*)?\.[a-z]+$|_optim_states\.pt$`)
	// modelWeights are the names under which whole models are saved.
	modelWeights = regexp.MustCompile(`(?i)^(model|pytorch_model|diffusion_pytorch_model|consolidated|hf_model)([._-].*)?\.[a-z]+$`)
)

func isTrainingState(name string) bool { return trainingState.MatchString(name) }

// judge says what the file at path, beside the adapter, is: by its name where that is certain, and
// else by its keys.
func (f *tensorFile) judge(path string) besideKind {
	name := filepath.Base(path)
	info, err := os.Stat(path)
	stem, _, _ := strings.Cut(peftWeights, ".")
	switch {
	case err != nil || !info.Mode().IsRegular() || !weightsExt.MatchString(name):
		return harmless
	case isTrainingState(name), strings.HasPrefix(name, stem+"."):
		return harmless
	case modelWeights.MatchString(name) && f.isModelBeside(path):
		return harmless
	}
	keys, kind := keysBeside(path)
	switch {
	case kind != strayWeights:
		return kind
	case len(keys) > 0 && f.has(keys):
		return harmless
	case areAllOfAdapter(keys):
		return otherAdapter
	case filepath.Ext(name) == ".pkl" && keys == nil:
		return harmless // any object of Python's
	}
	return strayWeights
}

// isModelBeside reports whether a file with the name of a model is one: whether it, or another shard
// of it, holds a weight that the adapter changes. What cannot be read is believed.
func (f *tensorFile) isModelBeside(path string) bool {
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), modelConfig)); err == nil {
		return true
	}
	keys, _ := keysBeside(path)
	layers := f.manifest.Adapters[0].Layers
	if keys == nil || len(layers) == 0 || strings.Contains(filepath.Base(path), "-of-") {
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
	return strings.HasPrefix(filepath.Base(path), "consolidated")
}

// keysBeside are the keys of a file, nil where they cannot be read. It is strayWeights unless the
// content says that it is something else.
func keysBeside(path string) ([]string, besideKind) {
	file, size, err := fileio.Open(path)
	if err != nil {
		return nil, strayWeights
	}
	defer file.Close()
	start := make([]byte, min(size, 64))
	if _, err := io.ReadFull(file, start); err != nil {
		return nil, strayWeights
	}
	var keys []string
	switch {
	case isPickle(file):
		if keys = arraysOf(file, size); keys != nil {
			return keys, strayWeights
		}
		p, err := pickle.Read(file, size)
		var layout *pickle.LayoutError
		switch {
		case errors.As(err, &layout) && (layout.IsOptimizer || len(layout.Keys)+layout.NInLists == 0):
			return nil, harmless
		case errors.As(err, &layout):
			return layout.Keys, strayWeights
		case err != nil:
			return nil, strayWeights
		}
		for i := range p.Tensors {
			keys = append(keys, p.Tensors[i].Name)
		}
	case safetensors.IsHeader(start):
		h, err := safetensors.Read(file, size)
		if err != nil {
			return nil, strayWeights
		}
		for i := range h.Tensors {
			keys = append(keys, h.Tensors[i].Name)
		}
	case strings.HasPrefix(string(start), "version https://git-lfs"):
		return nil, strayWeights
	default:
		return nil, harmless // no format of weights
	}
	if len(keys) == 0 {
		return nil, harmless
	}
	return keys, strayWeights
}

// has reports whether the adapter has all keys: then a file is the adapter once more.
func (f *tensorFile) has(keys []string) bool {
	own := make(map[string]bool, len(f.manifest.Tensors))
	for i := range f.manifest.Tensors {
		own[f.manifest.Tensors[i].Name] = true
	}
	return !slices.ContainsFunc(keys, func(key string) bool { return !own[key] })
}

// factorKey matches the keys of factors and what goes with them, in any dialect.
var factorKey = regexp.MustCompile(`lora|lokr_|hada_|oft_|dora_scale|\.alpha$|:(up|down)|^w_[ab]_`)

// areAllOfAdapter reports whether keys are those of an adapter, and none is of other weights.
func areAllOfAdapter(keys []string) bool {
	return len(keys) > 0 && dialectOf(keys) != "" && !slices.ContainsFunc(keys, func(key string) bool { return !factorKey.MatchString(key) })
}

// isPickle reports whether a file begins as one of torch.save does, or as another zip archive.
func isPickle(r io.ReaderAt) bool {
	p := make([]byte, 16)
	n, _ := r.ReadAt(p, 0)
	return pickle.IsPickle(p[:n]) && !safetensors.IsHeader(p[:n])
}
