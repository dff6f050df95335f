package checkpoint

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/safetensors"
)

// weightFiles lists the names of weight files in the order in which transformers and diffusers
// prefer them. Each may be sharded, with an index of the same name plus ".index.json".
var weightFiles = []string{
	"model.safetensors",
	"diffusion_pytorch_model.safetensors",
	"diffusion_pytorch_model.fp16.safetensors",
	"model.fp16.safetensors",
}

// model says which files of a directory hold the weights of one model.
type model struct {
	folder  string            // within the directory, with a slash at its end; "" for the directory itself
	list    string            // the only file, or the index of the shards
	shards  []string          // the files, relative to the folder
	shardOf map[string]string // the shard of each tensor, from an index; nil without one
}

// findWeights finds the directory's weight files: those of one model, or of the components of a
// pipeline. It sorts the other files into Side and Left.
func (c *Checkpoint) findWeights() ([]model, error) {
	all, links, err := listFiles(c.Dir)
	if err != nil {
		return nil, err
	}
	have := make(map[string]bool, len(all))
	for _, name := range all {
		have[name] = true
	}
	models, err := c.findComponents(have)
	if err == nil && models == nil {
		models, err = c.findModel(have)
	}
	switch {
	case err != nil:
		return nil, err
	case models == nil:
		return nil, noWeights(all)
	}
	of := make(map[string]string) // the list of each folder with chosen weights
	isWeights := make(map[string]bool)
	for _, m := range models {
		of[m.folder] = m.folder + m.list
		for _, shard := range m.shards {
			isWeights[m.folder+shard] = true
		}
	}
	for _, name := range all {
		switch {
		case isWeights[name]:
		case c.pipeline && !isModelOf(of, name) && strings.Contains(name, "/"):
			c.Side = append(c.Side, name) // a component whose weights are not read, such as a pickle
		case name != of[folderOf(name)] && isForeign(name):
			c.Left = append(c.Left, name)
		default:
			c.Side = append(c.Side, name)
		}
	}
	c.Left = append(c.Left, links...)
	return models, nil
}

// folderOf returns the first directory of a name, with its slash; "" for a name without one.
func folderOf(name string) string {
	folder, _, ok := strings.Cut(name, "/")
	if !ok {
		return ""
	}
	return folder + "/"
}

// isModelOf reports whether a file lies in a folder whose weights were found.
func isModelOf(of map[string]string, name string) bool { return of[folderOf(name)] != "" }

// findModel finds the weights of the only model of a directory. It returns nil if there are none.
func (c *Checkpoint) findModel(have map[string]bool) ([]model, error) {
	var found []string
	for _, name := range weightFiles {
		single, index := have[name], have[name+".index.json"]
		if single && index {
			return nil, fault.New(fault.Mismatch, "the directory holds both %s and %s.index.json", name, name).
				WithHint("move one of them out of the directory, or give the path of the file to use")
		}
		if single {
			found = append(found, name)
		}
		if index {
			found = append(found, name+".index.json")
		}
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		m, err := c.readModel("", found[0])
		return []model{m}, err
	}
	return nil, fault.New(fault.Mismatch, "the directory holds %s; it is not clear which one to use", strings.Join(found, " and ")).WithHint("give the path of the file to use")
}

// readModel describes the model whose weights are in the file list, or in the shards of this index.
func (c *Checkpoint) readModel(folder, list string) (m model, err error) {
	m = model{folder: folder, list: list, shards: []string{list}}
	if strings.HasSuffix(list, ".index.json") {
		m.shards, m.shardOf, err = readIndex(c.Dir, folder+list)
	}
	return m, err
}

// noWeights returns the error for a directory without safetensors weights, with a hint about its
// real content.
func noWeights(all []string) error {
	if e := withoutIndex(all); e != nil {
		return e
	}
	e := fault.New(fault.Unsupported, "the directory holds neither model.safetensors nor diffusion_pytorch_model.safetensors, nor an index of shards")
	for _, name := range all {
		switch base := filepath.Base(name); {
		case base == "adapter_config.json" && base == name:
			e.Misplaced = true
			return e.WithHint("this is an adapter")
		case name == pipelineIndex:
			return e.WithHint("this is a pipeline of diffusers, and no component of it has its weights in safetensors; save it with safe_serialization=True")
		case strings.HasPrefix(base, "pytorch_model") && strings.HasSuffix(base, ".bin"):
			return e.WithHint("the weights are pickles (%s); save them with safe_serialization=True", base)
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

// checkIndex checks that every tensor is in the shard that the index names.
func (c *Checkpoint) checkIndex(m *model) error {
	for _, name := range slices.Sorted(maps.Keys(m.shardOf)) {
		ref, ok := c.refs[m.prefix()+name]
		shard := m.shardOf[name]
		switch {
		case !ok:
			return fault.New(fault.Corrupt, "the index says that %s holds %q, but it does not", shard, name).In(c.Path)
		case c.Files[ref.File].Name != m.folder+shard:
			return fault.New(fault.Corrupt, "the index says that %s holds %q, but %s does", shard, name, c.Files[ref.File].Name).In(c.Path)
		}
	}
	return nil
}

// identifySide records the identity of the files beside the weights, and which of the files are
// links that leave the directory.
func (c *Checkpoint) identifySide() error {
	names := slices.Clone(c.Side)
	for _, f := range c.Files {
		names = append(names, f.Name)
	}
	for _, name := range c.Side {
		id, err := c.Dir.Identify(name)
		if err != nil {
			return err
		}
		c.inputs = append(c.inputs, id)
	}
	if c.IsDir && c.Dir.IsOnDisk() {
		var err error
		c.Beyond, err = findLinks(c.Path, names)
		return err
	}
	return nil
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

// Paths returns the paths of the checkpoint and its weight files on disk; nil for an fs.FS.
func (c *Checkpoint) Paths() (paths []string) {
	if !c.Dir.IsOnDisk() {
		return nil
	}
	paths = append(paths, c.Path)
	for _, f := range c.Files {
		paths = append(paths, f.Path)
	}
	return paths
}
