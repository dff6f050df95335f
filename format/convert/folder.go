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
	names []string // of all entries, sorted
	own   fileSet  // the weights of its own adapter, none if there is none
	named []string // subdirectories in which PEFT saved adapters; it does so for every adapter not called default
}

func readFolder(p place) (*folder, error) {
	entries, err := p.dir.List(".")
	if err != nil {
		return nil, err
	}
	f := &folder{place: p}
	for _, e := range entries {
		f.names = append(f.names, e.Name())
		if !e.Type().IsRegular() && p.peftFilesIn(e.Name()).files != nil { // a link may lead to a directory
			f.named = append(f.named, e.Name())
		}
	}
	f.own = f.findWeights()
	return f, nil
}

func (f *folder) isModel() bool {
	return slices.Contains(f.names, modelConfig) || slices.Contains(f.names, pipelineIndex)
}

// adapter returns the weights within the directory, none if it holds no adapter or several.
func (f *folder) adapter() fileSet {
	if f.own.files == nil && len(f.named) == 1 && !f.isModel() {
		return f.peftFilesIn(f.named[0])
	}
	return f.own
}

// noteNamed says which adapters of subdirectories were read or ignored.
func (f *folder) noteNamed() (note string) {
	switch {
	case f.own.files == nil:
		return "the adapter was read from the subdirectory " + fault.List(f.named, 5)
	case len(f.named) > 0:
		return "the directory also holds adapters in the subdirectories " + fault.List(f.named, 5) + ", which are not used"
	}
	return ""
}

// refuse returns the error for a directory without an adapter that can be opened.
func (f *folder) refuse() error {
	e := fault.New(fault.Unsupported, "the directory holds no %s and no %s", peftWeights, peftPickle).In(f.path("."))
	deeper := f.deeper()
	switch {
	case len(f.named) > 0:
		e.Msg += "; its subdirectories hold adapters: " + fault.List(f.named, 5)
		e.WithHint("give one of them: %s", f.path(f.named[0]))
	case f.isModel():
		e.WithHint("this looks like a model").Misplaced = true
	case len(deeper) > 0:
		e.Msg += "; there are adapters deeper down, in " + fault.List(deeper, 5)
		e.WithHint("give that directory: %s", f.path(deeper[0]))
	default:
		e.WithHint("%s", safetensors.HintForFolder(f.names))
	}
	return e
}

// maxDirs bounds the directories in the search for an adapter, so that no path makes it slow.
const maxDirs = 1000

// deeper returns the directories with adapters two to four levels further down, with slashes. verl,
// for one, saves into global_step_5/actor/lora_adapter.
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
				if f.peftFilesIn(sub).files != nil {
					found = append(found, sub)
				}
			}
		}
		level = next
	}
	return found
}

// findWeights returns the weights of the directory's own adapter: the files with PEFT's or MLX's
// name, or the only candidate. It returns none if there are none.
func (f *folder) findWeights() fileSet {
	own := f.peftFilesIn(".")
	if own.files == nil && slices.Contains(f.names, torchtuneWeights) {
		return fileSet{files: []string{torchtuneWeights}} // it lies beside a copy of the base's config.json
	}
	if own.files != nil || f.isModel() {
		return own
	}
	for _, name := range []string{"adapters.safetensors", "adapters.npz"} {
		if slices.Contains(f.names, name) {
			return fileSet{files: []string{name}}
		}
	}
	for _, kind := range []weightsKind{safetensorsFile, pickleFile, arraysFile} {
		var all []string
		for _, name := range f.names {
			if kindOf(name) == kind && !isTrainingState(name) && !isShard(name) {
				all = append(all, name)
			}
		}
		if len(all) == 1 {
			return fileSet{files: all}
		}
	}
	return fileSet{}
}
