// Package checkpoint opens base models: one safetensors file, or a directory with one or with a sharded set and its
// index. Only headers are read; data are reached by position.
package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/safetensors"
)

// Ref is a tensor and the file that holds it.
type Ref struct {
	File   int // index into Checkpoint.Files
	Tensor *Tensor
}

// Checkpoint is an opened base model.
type Checkpoint struct {
	Path   string
	IsDir  bool
	Files  []*File
	Config config.Model
	Side   []string // the other files of the directory that belong to the model, with slashes
	Beyond []string // links among the files that lead out of the directory, other than into the store of the hub's cache
	Left   []string // the other files that do not: weights in another format, adapters, hidden files
	refs   map[string]Ref
	inputs fileio.Identities // of all files, as they were when the checkpoint was opened
}

// weightFiles are the names under which a directory holds its weights, in the order of preference of transformers and
// diffusers; each may be sharded, with an index of the same name plus ".index.json".
var weightFiles = []string{
	"model.safetensors",
	"diffusion_pytorch_model.safetensors",
	"diffusion_pytorch_model.fp16.safetensors",
	"model.fp16.safetensors",
}

// Open opens a checkpoint at path. Symbolic links are followed. The caller closes it.
func Open(path string) (*Checkpoint, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	c := &Checkpoint{Path: path, IsDir: info.IsDir()}
	names := []string{filepath.Base(path)}
	dir := filepath.Dir(path)
	var shardOf map[string]string
	if c.IsDir {
		dir = path
		if names, shardOf, err = c.findWeights(); err != nil {
			return nil, fault.InFile(err, path)
		}
	} else if strings.HasSuffix(path, ".index.json") {
		return nil, fault.New(fault.Unsupported, "this is the index of a sharded checkpoint").In(path).WithHint("give the directory %s", dir)
	}
	for _, name := range names {
		f, err := openFile(dir, name)
		if errors.Is(err, fs.ErrNotExist) && shardOf != nil {
			err = fault.New(fault.Truncated, "the index names the shard %s, which is not there", name).In(path).
				WithHint("the checkpoint was not downloaded whole; fetch the missing shard")
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.Files = append(c.Files, f)
	}
	if err := c.identify(dir); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if c.Config, err = readConfig(filepath.Join(dir, "config.json")); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := c.indexTensors(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := c.checkIndex(shardOf); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// identify notes what all files are like now, and which are links that lead elsewhere.
func (c *Checkpoint) identify(dir string) error {
	names := slices.Clone(c.Side)
	for _, f := range c.Files {
		id, err := fileio.IdentityOf(f.Data)
		if err != nil {
			return err
		}
		c.inputs = append(c.inputs, id)
		names = append(names, f.Name)
	}
	for _, name := range c.Side {
		id, err := fileio.Identify(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		c.inputs = append(c.inputs, id)
	}
	if c.IsDir {
		return c.findLinks(names)
	}
	return nil
}

// findLinks lists the files whose content lies outside the directory. That of a model in the hub's cache does by design:
// models--…/snapshots/REVISION holds links into models--…/blobs.
func (c *Checkpoint) findLinks(names []string) error {
	root, err := filepath.EvalSymlinks(c.Path)
	if err != nil {
		return err
	}
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	inside := []string{root + string(filepath.Separator)}
	for dir := root; filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		if folder := filepath.Dir(filepath.Dir(dir)); filepath.Base(filepath.Dir(dir)) == "snapshots" {
			inside = append(inside, filepath.Join(folder, "blobs")+string(filepath.Separator))
		}
	}
	for _, name := range names {
		file, err := filepath.EvalSymlinks(filepath.Join(root, filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(inside, func(prefix string) bool { return strings.HasPrefix(file, prefix) }) {
			c.Beyond = append(c.Beyond, name)
		}
	}
	sort.Strings(c.Beyond)
	return nil
}

// Unchanged reports whether all files of the checkpoint are as they were when it was opened.
func (c *Checkpoint) Unchanged() error { return c.inputs.Unchanged() }

// checkIndex compares the shards with what their index says they hold.
func (c *Checkpoint) checkIndex(shardOf map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(shardOf)) {
		ref, ok := c.refs[name]
		shard := shardOf[name]
		switch {
		case !ok:
			return fault.New(fault.Corrupt, "the index says that %s holds %q, and it does not", shard, name).In(c.Path)
		case c.Files[ref.File].Name != shard:
			return fault.New(fault.Corrupt, "the index says that %s holds %q, and %s does", shard, name, c.Files[ref.File].Name).In(c.Path)
		}
	}
	return nil
}

// New makes a checkpoint of one file that is already open, such as one in memory.
func New(name string, data io.ReaderAt, size int64) (*Checkpoint, error) {
	h, err := safetensors.Read(data, size)
	if err != nil {
		return nil, fault.InFile(err, name)
	}
	f := newFile(h, File{Name: name, Path: name, Size: size, Data: data, close: func() error { return nil }})
	c := &Checkpoint{Path: name, Files: []*File{f}}
	return c, c.indexTensors()
}

func openFile(dir, name string) (*File, error) {
	path := filepath.Join(dir, filepath.FromSlash(name))
	data, size, err := fileio.Open(path)
	if err != nil {
		return nil, err
	}
	h, err := safetensors.Read(data, size)
	if err != nil {
		data.Close()
		return nil, fault.InFile(err, path)
	}
	return newFile(h, File{Name: name, Path: path, Size: size, Data: data, close: data.Close}), nil
}

// Close closes every file.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, f := range c.Files {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}

func (c *Checkpoint) indexTensors() error {
	c.refs = make(map[string]Ref)
	for i, f := range c.Files {
		for j := range f.Tensors {
			t := &f.Tensors[j]
			if other, dup := c.refs[t.Name]; dup {
				return fault.New(fault.Corrupt, "tensor %q is in %s and in %s", t.Name, c.Files[other.File].Name, f.Name).In(c.Path)
			}
			c.refs[t.Name] = Ref{File: i, Tensor: t}
		}
	}
	return nil
}

// Lookup finds a tensor by its name.
func (c *Checkpoint) Lookup(name string) (Ref, bool) {
	ref, ok := c.refs[name]
	return ref, ok
}

// Names returns the names of all tensors, sorted.
func (c *Checkpoint) Names() []string {
	names := make([]string, 0, len(c.refs))
	for name := range c.refs {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Bytes is the size of all weight files.
func (c *Checkpoint) Bytes() int64 {
	var n int64
	for _, f := range c.Files {
		n += f.Size
	}
	return n
}

// findWeights returns the names of the weight files of a directory, with the shard of each tensor where an index says
// it, and sorts its other files into Side and Left.
func (c *Checkpoint) findWeights() (shards []string, shardOf map[string]string, err error) {
	all, links, err := listFiles(c.Path)
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
				WithHint("move the one that is not meant out of the directory, or give a file")
		}
		if single {
			found, shards = append(found, name), []string{name}
		}
		if index {
			found = append(found, name+".index.json")
			if shards, shardOf, err = readIndex(c.Path, name+".index.json"); err != nil {
				return nil, nil, err
			}
		}
	}
	switch {
	case len(found) > 1:
		return nil, nil, fault.New(fault.Mismatch, "the directory holds %s", strings.Join(found, " and ")).WithHint("give the file that is meant")
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

// noWeights explains what a directory without safetensors weights is.
func noWeights(all []string) error {
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

// isForeign reports whether a file beside the weights must not be copied to a merged model: other copies of the base's
// weights, which would stay unmerged, and adapters, which transformers would load on top of the merge.
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

// listFiles lists the regular files below dir, and symbolic links to regular files, sorted and with slashes; links are
// everything else that is not a directory.
func listFiles(dir string) (files, links []string, err error) {
	root, err := filepath.EvalSymlinks(dir) // WalkDir does not follow a link, not even at its start
	if err != nil {
		return nil, nil, err
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == root || d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			links = append(links, rel+"/")
			return fs.SkipDir
		}
		info, err := os.Stat(path)
		switch {
		case err != nil && d.Type()&fs.ModeSymlink != 0:
			return fmt.Errorf("%s is a broken link: %w", rel, err)
		case err != nil:
			return err
		case info.Mode().IsRegular():
			files = append(files, rel)
		default:
			links = append(links, rel)
		}
		return nil
	})
	return files, links, err
}
