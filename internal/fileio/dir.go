package fileio

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/loratool/loratool/internal/fault"
)

// Dir is an input directory, on disk or in an fs.FS. Names in it use slashes.
type Dir struct {
	files fs.FS
	root  string // the user's name for it; "" for the root of an fs.FS
}

// OnDisk returns a directory on disk.
func OnDisk(dir string) Dir { return Dir{disk(dir), dir} }

// InFS returns the directory called name of an fs.FS; "." is its root.
func InFS(files fs.FS, name string) (Dir, error) {
	if name == "." {
		return Dir{files, ""}, nil
	}
	sub, err := fs.Sub(files, name)
	return Dir{sub, name}, err
}

// Locate finds a file or directory of an fs.FS. For a file it returns the enclosing directory and
// the file's name there; for a directory, the name is "".
func Locate(files fs.FS, name string) (dir Dir, file string, err error) {
	info, err := fs.Stat(files, name)
	if err != nil {
		return Dir{}, "", err
	}
	if info.IsDir() {
		dir, err = InFS(files, name)
		return dir, "", err
	}
	dir, err = InFS(files, path.Dir(name))
	return dir, path.Base(name), err
}

// LocateOnDisk finds a file or directory on disk, as Locate does.
func LocateOnDisk(path string) (dir Dir, file string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return Dir{}, "", err
	}
	if info.IsDir() {
		return OnDisk(path), "", nil
	}
	return OnDisk(filepath.Dir(path)), filepath.Base(path), nil
}

// disk is a directory on disk. Unlike os.DirFS it opens only regular files, and accepts every name.
type disk string

func (d disk) path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

func (d disk) Open(name string) (fs.File, error) {
	f, _, err := Open(d.path(name))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d disk) Stat(name string) (fs.FileInfo, error)      { return os.Stat(d.path(name)) }
func (d disk) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(d.path(name)) }

// IsOnDisk reports whether the directory is on disk.
func (d Dir) IsOnDisk() bool { _, ok := d.files.(disk); return ok }

// Path returns a file's path for messages and, on disk, for the system.
func (d Dir) Path(name string) string {
	if disk, ok := d.files.(disk); ok {
		return disk.path(name)
	}
	return path.Join(d.root, name)
}

// Stat describes a file or directory, following links.
func (d Dir) Stat(name string) (fs.FileInfo, error) { return fs.Stat(d.files, name) }

// Mode returns the permissions of d. A directory of an fs.FS permits everything.
func (d Dir) Mode() (fs.FileMode, error) {
	if !d.IsOnDisk() {
		return fs.ModePerm, nil
	}
	info, err := d.Stat(".")
	if err != nil {
		return 0, err
	}
	return info.Mode(), nil
}

// List lists a directory; "." is d itself.
func (d Dir) List(name string) ([]fs.DirEntry, error) { return fs.ReadDir(d.files, name) }

// Walk is fs.WalkDir from d on. It follows a link only at the start.
func (d Dir) Walk(visit fs.WalkDirFunc) error { return fs.WalkDir(d.files, ".", visit) }

// IsSame reports whether a name in d and one in another directory are the same file.
func (d Dir) IsSame(name string, other Dir, otherName string) bool {
	if d.Path(name) == other.Path(otherName) {
		return true
	}
	a, errA := d.Stat(name)
	b, errB := other.Stat(otherName)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// Identify returns the identity of a file on disk. Files of an fs.FS have none.
func (d Dir) Identify(name string) (Identity, error) {
	if disk, ok := d.files.(disk); ok {
		return Identify(disk.path(name))
	}
	return Identity{}, nil
}

// Input is an open file, read by position.
type Input struct {
	io.ReaderAt // an *os.File for a file on disk
	io.Closer
	Path     string // in the user's words
	Size     int64
	Identity Identity
}

// Open opens a regular file. The caller closes it. A file of an fs.FS without io.ReaderAt is read
// into memory.
func (d Dir) Open(name string) (*Input, error) {
	f, err := d.files.Open(name)
	if err != nil {
		return nil, err
	}
	in, err := d.opened(f, name)
	if err != nil {
		f.Close()
		return nil, fault.InFile(err, d.Path(name))
	}
	return in, nil
}

func (d Dir) opened(f fs.File, name string) (*Input, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Unsupported, "not a regular file: its mode is %v", info.Mode())
	}
	id, err := IdentityOf(f)
	if err != nil {
		return nil, err
	}
	in := &Input{Closer: f, Path: d.Path(name), Size: info.Size(), Identity: id}
	if r, ok := f.(io.ReaderAt); ok {
		in.ReaderAt = r
		return in, nil
	}
	var content bytes.Buffer // grows with the content, whatever Stat claims
	if _, err := io.Copy(&content, f); err != nil {
		return nil, err
	}
	in.ReaderAt, in.Size = bytes.NewReader(content.Bytes()), int64(content.Len())
	return in, nil
}

// Read returns the content of a file of at most limit bytes.
func (d Dir) Read(name string, limit int64) ([]byte, error) {
	in, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if in.Size > limit {
		return nil, fault.New(fault.Limit, "the file has %d bytes, the limit is %d", in.Size, limit).In(in.Path)
	}
	content := make([]byte, in.Size)
	_, err = io.ReadFull(io.NewSectionReader(in, 0, in.Size), content)
	return content, fault.InFile(err, in.Path)
}
