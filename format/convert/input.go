package convert

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/shards"
)

// Input is a file or directory that may hold an adapter, as dialects see it. However many dialects
// ask, it opens the weights once and reads each description once. The set that made the input
// closes it together with the source. Only one goroutine may use an input, but several may call
// ReadAt and, after Tensors has returned, ReadBlobAt.
type Input struct {
	place
	ctx     context.Context // of the call that looks at the input
	folder  *folder         // the directory that was given, nil for a file
	weights fileSet         // in the place
	name    string          // of the first file of the weights, "" for a directory without weights
	err     error           // why the weights cannot be read

	file    *fileio.Input   // the first one
	more    []*fileio.Input // the shards after it
	start   []byte          // the beginning of the weights
	table   *table          // may be there beside an error about names in it
	side    map[string]sideRead
	claimed map[string]string // see claimsOf
	with    []wholeFile       // weights that were trained whole, see joinWhole
	inputs  fileio.Identities // the weights, and the files beside them that were read
}

// sideRead is the result of reading a file beside the weights.
type sideRead struct {
	content []byte
	err     error
}

// startBytes is how many bytes at the beginning of the weights show their format.
const startBytes = 64

// lookAt looks at a path on disk.
func lookAt(ctx context.Context, given string) (*Input, error) {
	dir, file, err := fileio.LocateOnDisk(given)
	switch {
	case err != nil:
		return nil, err
	case file == "":
		return lookAtFolder(ctx, place{dir: dir})
	}
	return lookAtFile(ctx, place{dir: dir, own: file, ownPath: given}, file), nil
}

// lookIn looks at a file or directory of an fs.FS.
func lookIn(ctx context.Context, files fs.FS, name string) (*Input, error) {
	dir, file, err := fileio.Locate(files, name)
	switch {
	case err != nil:
		return nil, err
	case file == "":
		return lookAtFolder(ctx, place{dir: dir})
	}
	return lookAtFile(ctx, place{dir: dir}, file), nil
}

// lookAtReader looks at the content of a single file without a name.
func lookAtReader(ctx context.Context, r io.ReaderAt, size int64) *Input {
	const name = "weights"
	dir, _ := fileio.InFS(nothing{}, ".")
	in := &Input{place: place{dir: dir, own: name}, ctx: ctx, name: name, side: make(map[string]sideRead)}
	in.weights.files = []string{name}
	in.file = &fileio.Input{ReaderAt: r, Closer: io.NopCloser(nil), Size: size}
	in.start, in.err = startOf(in.file, startBytes)
	return in
}

// nothing is an empty fs.FS.
type nothing struct{}

func (nothing) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func lookAtFolder(ctx context.Context, p place) (*Input, error) {
	f, err := readFolder(p)
	if err != nil {
		return nil, err
	}
	in := lookAtFiles(ctx, p, f.adapter())
	in.folder = f
	return in, nil
}

// lookAtFile looks at a file that the user named.
func lookAtFile(ctx context.Context, p place, name string) *Input {
	weights := fileSet{files: []string{name}}
	if set, ok := shards.SetOf(name); ok && isShard(name) && set.Count > 1 {
		weights.err = fault.New(fault.Unsupported, "this is one of the %d shards of an adapter", set.Count).
			In(p.path(name)).WithHint("give the directory %s", p.path("."))
	}
	return lookAtFiles(ctx, p, weights)
}

// lookAtFiles opens the files of weights.
func lookAtFiles(ctx context.Context, p place, weights fileSet) *Input {
	in := &Input{place: p, ctx: ctx, weights: weights, err: weights.err, side: make(map[string]sideRead)}
	for i, name := range weights.files {
		if i == 0 {
			in.name = name
		}
		file, err := weights.open(p, name)
		if err != nil {
			in.err = cmp.Or(in.err, err)
			break
		}
		in.inputs = append(in.inputs, file.Identity)
		if i > 0 {
			in.more = append(in.more, file)
			continue
		}
		in.file = file
		in.start, err = startOf(file, startBytes)
		in.err = cmp.Or(in.err, err)
	}
	return in
}

// Path returns the path of the weights for errors, or that of their directory if there are none or
// several files of them.
func (in *Input) Path() string {
	switch {
	case in.name == "":
		return in.path(".")
	case in.weights.isSharded():
		return in.path(path.Dir(in.name))
	}
	return in.path(in.name)
}

// Start returns the first 64 bytes of the weights, or all of a shorter file; nil without weights.
func (in *Input) Start() []byte { return in.start }

// Tensors returns the tensors of a safetensors file or of a torch.save pickle, in the order of the
// file, or those of all shards. It returns nil for any other file.
func (in *Input) Tensors() []format.Tensor {
	if in.readTable() != nil {
		return nil
	}
	return in.table.tensors
}

// Metadata returns __metadata__ from the header of a safetensors file, or nil.
func (in *Input) Metadata() map[string]string {
	if in.readTable() != nil {
		return nil
	}
	return in.table.metadata()
}

// ReadBlobAt fills p with the bytes of tensor i of Tensors from offset off.
func (in *Input) ReadBlobAt(p []byte, i int, off int64) error { return in.table.readBlobAt(p, i, off) }

// ReadAt fills p with the bytes of the weights from offset off, whatever their format. Of shards it
// reads the first one.
func (in *Input) ReadAt(p []byte, off int64) (int, error) {
	if in.file == nil {
		return 0, fault.New(fault.Unsupported, "the directory holds no weights").In(in.Path())
	}
	n, err := in.file.ReadAt(p, off)
	return n, err
}

// Size returns the size of the file of weights in bytes, that of the first shard, or 0 if there is
// none.
func (in *Input) Size() int64 {
	if in.file == nil {
		return 0
	}
	return in.file.Size
}

// ReadFile returns the content of a file in the directory of the weights, nil if it does not exist.
// More than limit bytes are an error.
func (in *Input) ReadFile(name string, limit int64) ([]byte, error) {
	at := path.Join(path.Dir(in.name), name)
	known, ok := in.side[at]
	if !ok {
		known.content, known.err = in.readSide(at, limit)
		in.side[at] = known
	}
	if n := int64(len(known.content)); n > limit {
		return nil, fault.New(fault.Limit, "the file has %d bytes, the limit is %d", n, limit).In(in.path(at))
	}
	return known.content, known.err
}

func (in *Input) readSide(at string, limit int64) ([]byte, error) {
	info, err := in.dir.Stat(at)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	id, err := in.dir.Identify(at)
	if err != nil {
		return nil, err
	}
	in.inputs = append(in.inputs, id)
	content, err := in.dir.Read(at, limit)
	if content == nil && err == nil {
		content = []byte{} // not nil: the file exists
	}
	return content, err
}

// sibling returns the path of a file in the directory of the weights, for errors.
func (in *Input) sibling(name string) string { return in.path(path.Join(path.Dir(in.name), name)) }

// readTable reads the table of tensors on the first call.
func (in *Input) readTable() error {
	switch {
	case in.table != nil || in.err != nil:
	case in.file == nil:
		in.err = errNoWeights
	case strings.HasSuffix(strings.ToLower(in.name), ".json"):
		in.err = fault.New(fault.Unsupported, "this is a configuration, not the weights").In(in.Path()).
			WithHint("give the directory %s", filepath.Dir(in.Path()))
	default:
		in.table, in.err = readTables(in)
	}
	return in.err
}

var errNoWeights = errors.New("the directory holds no weights")

// isFolder reports whether a directory was given rather than a file.
func (in *Input) isFolder() bool { return in.folder != nil }

// Unchanged returns an error if a file that was read has changed since.
func (in *Input) Unchanged() error { return in.inputs.Unchanged() }

func (in *Input) close() error {
	if in.file == nil {
		return nil
	}
	err := in.file.Close()
	for _, file := range in.more {
		err = errors.Join(err, file.Close())
	}
	return err
}
