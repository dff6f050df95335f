package checkpoint

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/safetensors"
)

// layout says what the files of a directory are.
type layout struct {
	models     []model // at least one
	isPipeline bool
	side, left []string // as Checkpoint has them
}

// readLayout finds the weight files of a directory: those of one model, or of the components of a
// pipeline.
func readLayout(dir fileio.Dir) (*layout, error) {
	all, links, err := listFiles(dir)
	if err != nil {
		return nil, err
	}
	have := make(map[string]bool, len(all))
	for _, name := range all {
		have[name] = true
	}
	l := new(layout)
	l.models, err = findComponents(dir, have)
	l.isPipeline = l.models != nil
	if err == nil && l.models == nil {
		l.models, err = findModel(dir, have)
	}
	switch {
	case err != nil:
		return nil, err
	case l.models == nil:
		return nil, noWeights(all)
	}
	l.sort(all)
	l.left = append(l.left, links...)
	return l, nil
}

// sort divides the files that are no weights of the models into side and left.
func (l *layout) sort(all []string) {
	of := make(map[string]string) // the list of each folder with chosen weights
	isWeights := make(map[string]bool)
	for _, m := range l.models {
		of[m.folder] = m.folder + m.list
		for _, shard := range m.shards {
			isWeights[m.folder+shard] = true
		}
	}
	for _, name := range all {
		switch {
		case isWeights[name]:
		case l.isPipeline && of[folderOf(name)] == "" && strings.Contains(name, "/"):
			l.side = append(l.side, name) // a component whose weights are not read, such as ONNX
		case name != of[folderOf(name)] && isForeign(name):
			l.left = append(l.left, name)
		default:
			l.side = append(l.side, name)
		}
	}
}

// folderOf returns the first directory of a name, with its slash; "" for a name without one.
func folderOf(name string) string {
	folder, _, ok := strings.Cut(name, "/")
	if !ok {
		return ""
	}
	return folder + "/"
}

// findModel finds the weights of the only model of a directory. It returns nil if there are none.
func findModel(dir fileio.Dir, have map[string]bool) ([]model, error) {
	for i := range containers {
		found := containers[i].lists(have, "")
		switch len(found) {
		case 0:
			continue
		case 1:
			m, err := readModel(dir, "", found[0])
			return []model{m}, err
		}
		if index := found[0] + indexSuffix; index == found[1] {
			// mlx-lm writes an index of the one file, too.
			if m, err := readModel(dir, "", index); err == nil && slices.Equal(m.shards, found[:1]) {
				return []model{m}, nil
			}
			return nil, fault.New(fault.Mismatch, "the directory holds both %s and %s", found[0], index).
				WithHint("move one of them out of the directory, or give the path of the file to use")
		}
		return nil, fault.New(fault.Mismatch, "the directory holds %s; it is not clear which one to use", strings.Join(found, " and ")).
			WithHint("give the path of the file to use")
	}
	return findGGUF(dir, have)
}

// noWeights returns the error for a directory without weights, with a hint about its
// real content.
func noWeights(all []string) error {
	if e := withoutIndex(all); e != nil {
		return e
	}
	e := fault.New(fault.Unsupported, "the directory holds neither weights under a known name, such as model.safetensors or pytorch_model.bin, nor an index of shards, nor a GGUF file")
	for _, name := range all {
		switch base := filepath.Base(name); {
		case base == "adapter_config.json" && base == name:
			e.Misplaced = true
			return e.WithHint("this is an adapter")
		case name == pipelineIndex:
			return e.WithHint("this is a pipeline of diffusers, and no component of it has weights in safetensors or in pickles")
		case base == "adapter_config.json":
			e.WithHint("it holds an adapter, in %s", filepath.Dir(name)).Misplaced = true
		case strings.HasSuffix(base, ".safetensors") && !strings.HasPrefix(base, "adapter_"):
			e.WithHint("give the file itself, such as %s", name).Misplaced = false
		}
	}
	if e.Hint == "" {
		e.WithHint("%s", safetensors.HintForFolder(all))
	}
	return e
}

// isForeign reports whether a file beside the weights must not be copied to a merged model. Other
// copies of the base's weights would stay unmerged, and transformers would load an adapter on top
// of the merged weights.
func isForeign(name string) bool {
	base := strings.ToLower(filepath.Base(name))
	for _, part := range strings.Split(name, "/") {
		if strings.HasPrefix(part, ".") {
			return true
		}
	}
	for _, suffix := range []string{".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data"} {
		if strings.HasSuffix(base, suffix) {
			return true
		}
	}
	return strings.HasPrefix(base, "adapter_") || strings.HasPrefix(base, "pytorch_model") || strings.HasPrefix(base, "diffusion_pytorch_model")
}

// listFiles lists the regular files below a directory, including symbolic links to regular files,
// sorted and with slashes. links holds everything else except directories.
func listFiles(dir fileio.Dir) (files, links []string, err error) {
	err = dir.Walk(func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name == "." || d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		if d.IsDir() {
			links = append(links, name+"/")
			return fs.SkipDir
		}
		info, err := dir.Stat(name)
		switch {
		case err != nil && d.Type()&fs.ModeSymlink != 0:
			return fmt.Errorf("%s is a broken link: %w", name, err)
		case err != nil:
			return err
		case info.Mode().IsRegular():
			files = append(files, name)
		default:
			links = append(links, name)
		}
		return nil
	})
	return files, links, err
}

// findLinks lists the files whose content lies outside the directory. In the hub's cache this is
// normal: models--…/snapshots/REVISION holds links into models--…/blobs.
func findLinks(dir string, names []string) (beyond []string, err error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, err
	}
	inside := []string{root + string(filepath.Separator)}
	for above := root; filepath.Dir(above) != above; above = filepath.Dir(above) {
		if folder := filepath.Dir(filepath.Dir(above)); filepath.Base(filepath.Dir(above)) == "snapshots" {
			inside = append(inside, filepath.Join(folder, "blobs")+string(filepath.Separator))
		}
	}
	for _, name := range names {
		file, err := filepath.EvalSymlinks(filepath.Join(root, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(inside, func(prefix string) bool { return strings.HasPrefix(file, prefix) }) {
			beyond = append(beyond, name)
		}
	}
	sort.Strings(beyond)
	return beyond, nil
}
