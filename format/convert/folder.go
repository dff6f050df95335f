package convert

import (
	"path"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/safetensors"
)

// folder is a directory that may hold an adapter.
type folder struct {
	place
	names   []string // of all entries, sorted
	weights string   // the file of weights of its own adapter, "" where there is none
	named   []string // the sub-directories in which PEFT saves adapters that are not called default
}

func readFolder(p place) (*folder, error) {
	entries, err := p.dir.List(".")
	if err != nil {
		return nil, err
	}
	f := &folder{place: p}
	for _, e := range entries {
		f.names = append(f.names, e.Name())
		if !e.Type().IsRegular() && p.peftWeightsIn(e.Name()) != "" { // a link may be one of a directory
			f.named = append(f.named, e.Name())
		}
	}
	f.weights = f.findWeights()
	return f, nil
}

func (f *folder) isModel() bool { return slices.Contains(f.names, modelConfig) }

// adapter is the path of the weights within the directory, "" where it holds no adapter, or
// several.
func (f *folder) adapter() string {
	if f.weights == "" && len(f.named) == 1 && !f.isModel() {
		return path.Join(f.named[0], f.peftWeightsIn(f.named[0]))
	}
	return f.weights
}

// noteNamed says which adapters of sub-directories are meant, or not.
func (f *folder) noteNamed() (note string) {
	switch {
	case f.weights == "":
		return "the adapter is that of the sub-directory " + fault.List(f.named, 5)
	case len(f.named) > 0:
		return "beside the adapter the directory holds those of the sub-directories " + fault.List(f.named, 5) + ", which are not used"
	}
	return ""
}

// refuse says why a directory is no adapter that can be opened.
func (f *folder) refuse() error {
	e := fault.New(fault.Unsupported, "the directory holds no %s and no %s", peftWeights, peftPickle).In(f.path("."))
	deeper := f.deeper()
	switch shards := f.shards(); {
	case len(f.named) > 0:
		e.Msg += "; there are adapters in the sub-directories " + fault.List(f.named, 5)
		e.WithHint("give one of them: %s", f.path(f.named[0]))
	case f.isModel():
		e.WithHint("this looks like a model").Misplaced = true
	case len(shards) > 0:
		e.Msg = "the adapter is saved in shards, " + fault.List(shards, 2) + ", and adapters in several files are not read yet"
		e.WithHint("load every shard in Python (safetensors.torch.load_file, or torch.load), and save the tensors of all with safetensors.torch.save_file as %s", peftWeights)
	case len(deeper) > 0:
		e.Msg += "; there are adapters further down, in " + fault.List(deeper, 5)
		e.WithHint("give the directory itself: %s", f.path(deeper[0]))
	default:
		e.WithHint("%s", safetensors.HintForFolder(f.names))
	}
	return e
}

func (f *folder) shards() []string {
	return slices.DeleteFunc(slices.Clone(f.names), func(name string) bool { return !shard.MatchString(name) })
}

// maxDirs bounds the directories in which an adapter is looked for, so that no path makes it long.
const maxDirs = 1000

// deeper are the directories with adapters two to four levels further down, with slashes. Trainers
// put them into global_step_5/actor/lora_adapter, and the like.
func (f *folder) deeper() (found []string) {
	level, n := []string{"."}, 0
	for range 4 {
		var next []string
		for _, at := range level {
			entries, err := f.dir.List(at)
			for _, e := range entries {
				if err != nil || !e.IsDir() || n == maxDirs {
					continue
				}
				n++
				sub := path.Join(at, e.Name())
				next = append(next, sub)
				if f.peftWeightsIn(sub) != "" {
					found = append(found, sub)
				}
			}
		}
		level = next
	}
	return found
}

// peftWeightsIn is the file of weights under a name of PEFT's in a directory, "" where there is
// none. Where there are safetensors and a pickle it is the first, as PEFT has it.
func (p place) peftWeightsIn(dir string) string {
	for _, name := range []string{peftWeights, peftPickle} {
		if p.isFile(path.Join(dir, name)) {
			return name
		}
	}
	return ""
}

// findWeights is the file of weights of the directory's adapter: under a name of PEFT's or MLX's,
// or the only one that it can be. It is "" where there is none.
func (f *folder) findWeights() string {
	if name := f.peftWeightsIn("."); name != "" {
		return name
	}
	if f.isModel() {
		return ""
	}
	for _, name := range []string{"adapters.safetensors", "adapters.npz"} {
		if slices.Contains(f.names, name) {
			return name
		}
	}
	for _, kind := range []weightsKind{safetensorsFile, pickleFile, arraysFile} {
		var all []string
		for _, name := range f.names {
			if kindOf(name) == kind && !isTrainingState(name) && !shard.MatchString(name) {
				all = append(all, name)
			}
		}
		if len(all) == 1 {
			return all[0]
		}
	}
	return ""
}
