// Package checkpoint opens base models: a file of weights, or a directory with one such file, with
// shards and their index, or with the models of a pipeline of diffusers. A file of another
// container than safetensors reads like the safetensors file that its tensors make. Open reads only
// headers; Tensor.ReadAt reads data by position. View, Rename and Reshape show a checkpoint with
// other tensors without copying it.
package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/lookup"
	"github.com/loratool/loratool/internal/shards"
)

// Ref is a tensor and the file that holds it.
type Ref struct {
	File   int // index into Checkpoint.Files
	Tensor *Tensor
}

// Checkpoint is an open base model. Several goroutines may read from it at once.
type Checkpoint struct {
	Path   string
	IsDir  bool // an output is a directory, because the checkpoint is one or a split of GGUF files
	Files  []*File
	Config config.Model
	Side   []string   // the directory's other files that belong to the model, with slashes, as the output has them; see OpenSide
	Notes  []string   // remarks for the user about the weight files
	Beyond []string   // links among the files that leave the directory, except into the blobs of the hub's cache
	Left   []string   // the other files that do not belong to it: weights in other formats, adapters, hidden files
	Dir    fileio.Dir // where the files beside the weights are

	pipeline bool // whether the directory holds several models, each in a folder
	refs     refs
	indexes  map[string]index  // of models whose files have other names in the output, by their names there
	inputs   fileio.Identities // of all files when the checkpoint was opened

	quantisation *quantisation // nil if all tensors are stored as plain values
}

// Handle is an open checkpoint without its parts. The public type in format/checkpoint is a Handle
// under another name, so that merge and rank can convert it and find the checkpoint, while other
// modules can only pass it on.
type Handle struct{ checkpoint *Checkpoint }

// NewHandle returns a handle of c.
func NewHandle(c *Checkpoint) *Handle { return &Handle{c} }

// Checkpoint returns the checkpoint behind the handle.
func (h *Handle) Checkpoint() *Checkpoint { return h.checkpoint }

// Open opens the checkpoint at path and follows symbolic links. The caller closes it.
func Open(ctx context.Context, path string) (*Checkpoint, error) {
	dir, file, err := fileio.LocateOnDisk(path)
	return openAt(ctx, path, dir, file, err)
}

// OpenFS is Open for a file or directory of an fs.FS. It reads files that are not an io.ReaderAt
// into memory, even weights.
func OpenFS(ctx context.Context, files fs.FS, name string) (*Checkpoint, error) {
	dir, file, err := fileio.Locate(files, name)
	return openAt(ctx, name, dir, file, err)
}

// openAt opens a file in dir, or dir itself if file is "".
func openAt(ctx context.Context, path string, dir fileio.Dir, file string, err error) (*Checkpoint, error) {
	switch {
	case err != nil:
		return nil, err
	case file == "":
		return openDirectory(ctx, path, dir)
	}
	return openSingle(ctx, path, dir, file)
}

// New makes a checkpoint of a single open file, for example in memory. Closing the checkpoint does
// not close data.
func New(ctx context.Context, name string, data io.ReaderAt, size int64) (*Checkpoint, error) {
	f, err := openFile(ctx, name, "", &fileio.Input{ReaderAt: data, Closer: io.NopCloser(nil), Path: name, Size: size})
	if err != nil {
		return nil, err
	}
	if err := checkWhole(f); err != nil {
		return nil, err
	}
	c := &Checkpoint{Path: name, Files: []*File{f}, Notes: f.notes}
	if err := c.indexTensors(); err != nil {
		return nil, err
	}
	if c.Config, err = configIn(c); err != nil {
		return nil, err
	}
	return decoded(ctx, c)
}

// openSingle opens a file of dir. path is the user's name for it.
func openSingle(ctx context.Context, path string, dir fileio.Dir, name string) (*Checkpoint, error) {
	if strings.HasSuffix(name, indexSuffix) {
		return nil, fault.New(fault.Unsupported, "this is the index of a sharded checkpoint").In(path).WithHint("give the directory %s", dir.Path("."))
	}
	c := &Checkpoint{Path: path, Dir: dir}
	return c.opened(ctx, []model{{shards: []string{name}}})
}

// openDirectory opens a directory. path is the user's name for it.
func openDirectory(ctx context.Context, path string, dir fileio.Dir) (*Checkpoint, error) {
	c := &Checkpoint{Path: path, IsDir: true, Dir: dir}
	l, err := readLayout(dir)
	if err != nil {
		return nil, fault.InFile(err, path)
	}
	c.Side, c.Left, c.pipeline = l.side, l.left, l.isPipeline
	return c.opened(ctx, l.models)
}

// opened opens the weights and returns the checkpoint. On an error it closes everything it has
// opened.
func (c *Checkpoint) opened(ctx context.Context, models []model) (*Checkpoint, error) {
	err := c.open(ctx, models)
	if err == nil {
		var shown *Checkpoint
		if shown, err = decoded(ctx, c); err == nil {
			return shown, nil
		}
	}
	return nil, errors.Join(err, c.Close())
}

// Storage is a way of storing tensors other than as plain values, such as quantised. The function
// returns a view with the plain values, or the checkpoint itself if it stores no tensor that way.
type Storage func(ctx context.Context, c *Checkpoint) (*Checkpoint, error)

// storages are tried in this order, each on the result of the one before.
var storages = []Storage{quantised, blocks}

// decoded returns a checkpoint with plain values, however the tensors are stored.
func decoded(ctx context.Context, c *Checkpoint) (shown *Checkpoint, err error) {
	shown = c
	for _, storage := range storages {
		if shown, err = storage(ctx, shown); err != nil {
			return nil, fault.InFile(err, c.Path)
		}
	}
	return shown, nil
}

func (c *Checkpoint) open(ctx context.Context, models []model) (err error) {
	if models, err = openModels(ctx, c, models); err != nil {
		return err
	}
	for _, f := range c.Files {
		for _, note := range f.notes {
			c.Notes = append(c.Notes, f.Path+": "+note)
		}
	}
	if err := identifySide(c, models); err != nil {
		return err
	}
	if err := c.indexTensors(); err != nil {
		return err
	}
	if c.Config, err = configIn(c); err == nil && !c.Config.Found {
		c.Config, err = readConfig(c.Dir)
	}
	if err != nil {
		return err
	}
	for i := range models {
		if err := models[i].checkIndex(c); err != nil {
			return err
		}
		if err := models[i].showIndex(c); err != nil {
			return err
		}
	}
	return nil
}

// configIn returns what the weight files themselves say of the model; zero if they say nothing.
func configIn(c *Checkpoint) (config.Model, error) {
	return configOfGGUF(c.Files[0], c.refs.tensor("output.weight") != nil)
}

// openModels opens the files of the models. A component of a pipeline whose files are of another
// container than safetensors and are refused stays as it is, among the files beside the weights. An
// adapter that changes it is refused.
func openModels(ctx context.Context, c *Checkpoint, models []model) (opened []model, err error) {
	var first error
	for _, m := range models {
		nFiles := len(c.Files)
		err := m.open(ctx, c)
		if err == nil {
			opened = append(opened, m)
			continue
		}
		var refused *fault.Error
		if !c.pipeline || shownName(m.list) == m.list || !errors.As(err, &refused) {
			return nil, err
		}
		first = cmp.Or(first, err)
		for _, f := range c.Files[nFiles:] {
			err = errors.Join(err, f.close())
		}
		c.Files, c.inputs = c.Files[:nFiles], c.inputs[:nFiles]
		for _, shard := range m.shards {
			if _, err := c.Dir.Stat(m.folder + shard); err == nil {
				c.Side = append(c.Side, m.folder+shard)
			}
		}
		c.Notes = append(c.Notes, fmt.Sprintf("the weights of %s cannot be read, and stay as they are: %v", strings.TrimSuffix(m.folder, "/"), err))
	}
	slices.Sort(c.Side)
	if len(opened) == 0 {
		return nil, first
	}
	return opened, nil
}

// open opens the files of one model.
func (m *model) open(ctx context.Context, c *Checkpoint) error {
	first := len(c.Files)
	for i := 0; i < len(m.shards); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := m.folder + m.shards[i]
		in, err := c.Dir.Open(path.Clean(name))
		if errors.Is(err, fs.ErrNotExist) && (m.index != nil || i > 0) {
			err = m.absent(m.shards[i]).In(c.Path)
		}
		if err != nil {
			return err
		}
		f, err := openFile(ctx, nameIn(c, name), m.prefix(), in)
		if err != nil {
			return err
		}
		twin := slices.IndexFunc(c.Files, func(other *File) bool { return other.Name == f.Name })
		c.Files, c.inputs = append(c.Files, f), append(c.inputs, in.Identity)
		if twin >= 0 {
			return fault.New(fault.Unsupported, "%s and %s would both be called %s in an output", c.Files[twin].Path, f.Path, f.Name).
				WithHint("give one of them another name, also in the index")
		}
		if i == 0 {
			if err := m.addParts(c, f); err != nil {
				return fault.InFile(err, f.Path)
			}
		}
	}
	return checkParts(c.Files[first:])
}

// checkIndex checks that every tensor is in the shard that the index names.
func (m *model) checkIndex(c *Checkpoint) error {
	if m.index == nil {
		return nil
	}
	return fault.InFile(m.index.Check(func(tensor, shard string) string {
		ref, ok := c.Lookup(m.prefix() + tensor)
		switch {
		case !ok:
			return ""
		case c.Files[ref.File].Name == nameIn(c, m.folder+shard):
			return shard
		}
		return c.Files[ref.File].Name
	}), c.Path)
}

// nameIn returns the name of a weight file in the output. The output of a single file is named by
// the user.
func nameIn(c *Checkpoint, file string) string {
	if !c.IsDir {
		return file
	}
	return shownName(file)
}

// identifySide records the identity of the files beside the weights, and which of the files are
// links that leave the directory.
func identifySide(c *Checkpoint, models []model) error {
	names := slices.Clone(c.Side)
	for i := range models {
		for _, shard := range models[i].shards {
			names = append(names, models[i].folder+shard)
		}
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
		c.Beyond, err = findLinks(c.Dir.Path("."), names)
		return err
	}
	return nil
}

// Unchanged returns an error if any file of the checkpoint has changed since it was opened.
func (c *Checkpoint) Unchanged() error { return c.inputs.Unchanged() }

// Close closes every file.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, f := range c.Files {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}

// refs finds the tensors of files by name. It counts them from the first file to the last.
type refs struct {
	files []*File
	first []int // the number of the first tensor of each file, and the number of all
	table *lookup.Table
}

func (c *Checkpoint) indexTensors() error {
	r := refs{files: c.Files, first: make([]int, 1, len(c.Files)+1)}
	for i, f := range c.Files {
		r.first = append(r.first, r.first[i]+len(f.Tensors))
	}
	r.table = lookup.New(r.n())
	for i := range r.n() {
		ref := r.at(i)
		if twin, isNew := r.table.Add(ref.Tensor.Name, i, r.name); !isNew {
			return shards.Twice(ref.Tensor.Name, c.Files[r.at(twin).File].Name, c.Files[ref.File].Name).In(c.Path)
		}
	}
	c.refs = r
	return nil
}

// n returns the number of tensors.
func (r *refs) n() int { return r.first[len(r.files)] }

// at returns tensor i.
func (r *refs) at(i int) Ref {
	file := sort.SearchInts(r.first, i+1) - 1
	return Ref{File: file, Tensor: &r.files[file].Tensors[i-r.first[file]]}
}

func (r *refs) name(i int) string { return r.at(i).Tensor.Name }

// tensor returns the tensor of a name, or nil.
func (r *refs) tensor(name string) *Tensor {
	if i, ok := r.table.Find(name, r.name); ok {
		return r.at(i).Tensor
	}
	return nil
}

// IsPipeline reports whether the checkpoint is a pipeline of several models, as diffusers saves it.
// The names of its tensors begin with the folder of their model and a dot.
func (c *Checkpoint) IsPipeline() bool { return c.pipeline }

// Lookup finds a tensor by its name.
func (c *Checkpoint) Lookup(name string) (Ref, bool) {
	i, ok := c.refs.table.Find(name, c.refs.name)
	if !ok {
		return Ref{}, false
	}
	return c.refs.at(i), true
}

// Names returns the names of all tensors, sorted.
func (c *Checkpoint) Names() []string {
	names := make([]string, c.refs.n())
	for i := range names {
		names[i] = c.refs.name(i)
	}
	slices.Sort(names)
	return names
}

// Bytes returns the total size of the weight files in bytes.
func (c *Checkpoint) Bytes() int64 {
	var n int64
	for _, f := range c.Files {
		n += f.Size
	}
	return n
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
