package convert

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/safetensors"
)

// modelConfig is the configuration of a model, which no adapter has beside it.
const modelConfig = "config.json"

// folder is a directory that may hold an adapter.
type folder struct {
	dir     string
	names   []string // of all entries, sorted
	weights string   // the file of weights of its own adapter, "" where there is none
	named   []string // the sub-directories in which PEFT saves adapters that are not called default
}

func readFolder(dir string) (*folder, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	f := &folder{dir: dir}
	for _, e := range entries {
		f.names = append(f.names, e.Name())
		if !e.Type().IsRegular() && weightsOf(filepath.Join(dir, e.Name()), nil) != "" { // a link may be one of a directory
			f.named = append(f.named, e.Name())
		}
	}
	f.weights = weightsOf(dir, f.names)
	return f, nil
}

func (f *folder) isModel() bool { return slices.Contains(f.names, modelConfig) }

// adapter is the path of the weights within the directory, "" where it holds no adapter, or several.
func (f *folder) adapter() string {
	if f.weights == "" && len(f.named) == 1 && !f.isModel() {
		return path.Join(f.named[0], weightsOf(filepath.Join(f.dir, f.named[0]), nil))
	}
	return f.weights
}

// openDir opens a directory as PEFT saves it. Where it holds safetensors and a pickle, the first is opened, as PEFT does.
func openDir(dir string, o Options) (format.Source, error) {
	at, err := readFolder(dir)
	if err != nil {
		return nil, err
	}
	weights := at.adapter()
	if weights == "" {
		return nil, at.refuse()
	}
	f, err := openPEFT(filepath.Join(dir, filepath.FromSlash(weights)))
	if err != nil {
		return nil, err
	}
	switch {
	case at.weights == "":
		f.note("the adapter is that of the sub-directory %s", fault.List(at.named, 5))
	case len(at.named) > 0:
		f.note("beside the adapter the directory holds those of the sub-directories %s, which are not used", fault.List(at.named, 5))
	}
	if err := f.lookBeside(dir, weights, o); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// refuse says why a directory is no adapter that can be opened.
func (f *folder) refuse() error {
	e := fault.New(fault.Unsupported, "the directory holds no %s and no %s", peftWeights, peftPickle).In(f.dir)
	deeper := f.deeper()
	switch shards := f.shards(); {
	case len(f.named) > 0:
		e.Msg += "; there are adapters in the sub-directories " + fault.List(f.named, 5)
		e.WithHint("give one of them: %s", filepath.Join(f.dir, f.named[0]))
	case f.isModel():
		e.WithHint("this looks like a model").Misplaced = true
	case len(shards) > 0:
		e.Msg = "the adapter is saved in shards, " + fault.List(shards, 2) + ", and adapters in several files are not read yet"
		e.WithHint("load every shard in Python (safetensors.torch.load_file, or torch.load), and save the tensors of all with safetensors.torch.save_file as %s", peftWeights)
	case len(deeper) > 0:
		e.Msg += "; there are adapters further down, in " + fault.List(deeper, 5)
		e.WithHint("give the directory itself: %s", filepath.Join(f.dir, filepath.FromSlash(deeper[0])))
	}
	return e
}

// shard is the name of a part of an adapter: PEFT's name, with the number as transformers writes it.
var shard = regexp.MustCompile(`^adapter_model-[0-9]+-of-[0-9]+\.(safetensors|bin)$`)

func (f *folder) shards() []string {
	return slices.DeleteFunc(slices.Clone(f.names), func(name string) bool { return !shard.MatchString(name) })
}

// maxDirs bounds the directories in which an adapter is looked for, so that no path makes it long.
const maxDirs = 1000

// deeper are the directories with adapters two to four levels further down, with slashes. Trainers put
// them into global_step_5/actor/lora_adapter, and the like.
func (f *folder) deeper() (found []string) {
	level, n := []string{"."}, 0
	for range 4 {
		var next []string
		for _, at := range level {
			entries, err := os.ReadDir(filepath.Join(f.dir, filepath.FromSlash(at)))
			for _, e := range entries {
				if err != nil || !e.IsDir() || n == maxDirs {
					continue
				}
				n++
				sub := path.Join(at, e.Name())
				next = append(next, sub)
				if weightsOf(filepath.Join(f.dir, filepath.FromSlash(sub)), nil) != "" {
					found = append(found, sub)
				}
			}
		}
		level = next
	}
	return found
}

// weightsOf is the file of weights of an adapter's directory: under a name of PEFT's or MLX's, or the only one that it can be. It is
// "" where there is none. names are those of the directory, nil to look for PEFT's alone.
func weightsOf(dir string, names []string) string {
	for _, name := range []string{peftWeights, peftPickle} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && !info.IsDir() {
			return name
		}
	}
	if slices.Contains(names, modelConfig) {
		return ""
	}
	for _, name := range []string{"adapters.safetensors", "adapters.npz"} {
		if slices.Contains(names, name) {
			return name
		}
	}
	for _, kind := range [][]string{{".safetensors"}, {".bin", ".pt", ".pth", ".ckpt"}, {".npz"}} {
		var all []string
		for _, name := range names {
			if slices.Contains(kind, filepath.Ext(name)) && !isTrainingState(name) && !shard.MatchString(name) {
				all = append(all, name)
			}
		}
		if len(all) == 1 {
			return all[0]
		}
	}
	return ""
}

// IsAdapter reports whether the path is that of an adapter, in a dialect that is read or in another, by what lies there: a
// container, a configuration of PEFT, weights under the keys of an adapter, an adapter in a sub-directory, or a pickle, which no
// checkpoint that is read here is. What it reports is what Open opens, or says the best reason why not.
func IsAdapter(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	if !info.IsDir() {
		isOwn := hasConfig(filepath.Dir(path)) && !modelWeights.MatchString(filepath.Base(path))
		return IsLoRA(path) || isOwn || hasKeysOfAdapter(path)
	}
	f, err := readFolder(path)
	switch {
	case err != nil:
		return false
	case hasConfig(path):
		return true
	case f.isModel():
		return f.weights != ""
	case len(f.named) > 0 || len(f.shards()) > 0:
		return true
	case f.weights == peftWeights, f.weights == peftPickle:
		return true
	case f.weights != "":
		return hasKeysOfAdapter(filepath.Join(path, f.weights))
	}
	return len(f.deeper()) > 0
}

// hasConfig reports whether a directory has a configuration under PEFT's name.
func hasConfig(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, format.PEFTConfig))
	return err == nil
}

// hasKeysOfAdapter reports whether a file is a pickle or an archive, or safetensors with the keys of
// an adapter.
func hasKeysOfAdapter(path string) bool {
	file, size, err := fileio.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	if isPickle(file) {
		return true
	}
	h, err := safetensors.Read(file, size)
	if err != nil {
		return false
	}
	keys := make([]string, len(h.Tensors))
	for i := range h.Tensors {
		keys[i] = h.Tensors[i].Name
	}
	return h.Metadata[diffusersMetadata] != "" || areOfAdapter(keys)
}
