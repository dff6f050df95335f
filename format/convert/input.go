package convert

import (
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
)

// Input is a file or directory that may hold an adapter, as dialects see it. However many dialects
// ask, it opens the weights once and reads each description once. The set that made the input
// closes it together with the source. Only one goroutine may use an input, but several may call
// ReadAt and, after Tensors has returned, ReadBlobAt.
type Input struct {
	place
	ctx    context.Context // of the call that looks at the input
	folder *folder         // the directory that was given, nil for a file
	name   string          // of the weights in the place, "" for a directory without weights
	err    error           // why the weights cannot be read

	file    *fileio.Input
	start   []byte // the beginning of the weights
	table   *table // may be there beside an error about names in it
	side    map[string]sideRead
	claimed map[string]string // see claimsOf
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
	in := lookAtFile(ctx, p, f.adapter())
	in.folder = f
	return in, nil
}

func lookAtFile(ctx context.Context, p place, name string) *Input {
	in := &Input{place: p, ctx: ctx, name: name, side: make(map[string]sideRead)}
	if name == "" {
		return in
	}
	if in.file, in.err = p.dir.Open(name); in.err != nil {
		return in
	}
	in.file.Path = p.path(name)
	in.inputs = append(in.inputs, in.file.Identity)
	in.start, in.err = startOf(in.file, startBytes)
	return in
}

// Path returns the path of the weights for errors, or that of the directory if it has no weights.
func (in *Input) Path() string {
	if in.name == "" {
		return in.path(".")
	}
	return in.path(in.name)
}

// Start returns the first 64 bytes of the weights, or all of a shorter file; nil without weights.
func (in *Input) Start() []byte { return in.start }

// Tensors returns the tensors of a safetensors file or of a torch.save pickle, in the order of the
// file. It returns nil for any other file.
func (in *Input) Tensors() []format.Tensor {
	if in.readTable() != nil {
		return nil
	}
	return in.table.tensors
}

// Metadata returns __metadata__ from the header of a safetensors file, or nil.
func (in *Input) Metadata() map[string]string {
	if in.readTable() != nil || in.table.header == nil {
		return nil
	}
	return in.table.header.Metadata
}

// ReadBlobAt fills p with the bytes of tensor i of Tensors from offset off.
func (in *Input) ReadBlobAt(p []byte, i int, off int64) error { return in.table.readBlobAt(p, i, off) }

// ReadAt fills p with the bytes of the weights from offset off, whatever their format.
func (in *Input) ReadAt(p []byte, off int64) (int, error) {
	if in.file == nil {
		return 0, fault.New(fault.Unsupported, "the directory holds no weights").In(in.Path())
	}
	n, err := in.file.ReadAt(p, off)
	return n, err
}

// Size returns the size of the file of weights in bytes, 0 if there is none.
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
		if in.table, in.err = readTable(in.ctx, in.file); in.err == nil {
			in.err = in.table.checkNames()
		}
		in.err = fault.InFile(in.err, in.Path())
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
	return in.file.Close()
}
