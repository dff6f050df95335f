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

// findWeights returns the names of the directory's weight files and, from an index, the shard of
// each tensor. It sorts the other files into Side and Left.
func (c *Checkpoint) findWeights() (shards []string, shardOf map[string]string, err error) {
	all, links, err := listFiles(c.Dir)
	if err != nil {
		return nil, nil, err
	}
	have := make(map[string]bool, len(all))
	for _, name := range all {
		have[name] = true
	}
	var found []string
	for _, name := range weightFiles {
		single, index := have[name], have[name+".index.json"]
		if single && index {
			return nil, nil, fault.New(fault.Mismatch, "the directory holds both %s and %s.index.json", name, name).
				WithHint("move one of them out of the directory, or give the path of the file to use")
		}
		if single {
			found, shards = append(found, name), []string{name}
		}
		if index {
			found = append(found, name+".index.json")
			if shards, shardOf, err = readIndex(c.Dir, name+".index.json"); err != nil {
				return nil, nil, err
			}
		}
	}
	switch {
	case len(found) > 1:
		return nil, nil, fault.New(fault.Mismatch, "the directory holds %s; it is not clear which one to use", strings.Join(found, " and ")).WithHint("give the path of the file to use")
	case len(found) == 0:
		return nil, nil, noWeights(all)
	}
	isShard := make(map[string]bool, len(shards))
	for _, s := range shards {
		isShard[s] = true
	}
	for _, name := range all {
		switch {
		case isShard[name]:
		case name != found[0] && isForeign(name):
			c.Left = append(c.Left, name)
		default:
			c.Side = append(c.Side, name)
		}
	}
	c.Left = append(c.Left, links...)
	return shards, shardOf, nil
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
		case base == "model_index.json":
			return e.WithHint("this is a diffusers pipeline; give the directory of one model in it, such as %s", filepath.Join("…", "transformer"))
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
func (c *Checkpoint) checkIndex(shardOf map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(shardOf)) {
		ref, ok := c.refs[name]
		shard := shardOf[name]
		switch {
		case !ok:
			return fault.New(fault.Corrupt, "the index says that %s holds %q, but it does not", shard, name).In(c.Path)
		case c.Files[ref.File].Name != shard:
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
