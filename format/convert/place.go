package convert

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// place is a directory in which an adapter may lie: one of the machine, or one of an fs.FS. Names in it have slashes.
type place struct {
	files fs.FS
	root  string // the user's name for the directory; "" for the root of an fs.FS

	own, ownPath string // the file that the user gave, and the path that he gave for it
}

// disk is a directory of the machine. Other than os.DirFS it opens regular files only, and takes every name.
type disk string

func (d disk) path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

func (d disk) Open(name string) (fs.File, error) {
	f, _, err := fileio.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d disk) Stat(name string) (fs.FileInfo, error)      { return os.Stat(d.path(name)) }
func (d disk) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(d.path(name)) }

func onDisk(dir string) place { return place{files: disk(dir), root: dir} }

// path is the name of a file for a user.
func (p place) path(name string) string {
	if name == p.own && name != "" {
		return p.ownPath
	}
	if d, ok := p.files.(disk); ok {
		return d.path(name)
	}
	return path.Join(p.root, name)
}

func (p place) stat(name string) (fs.FileInfo, error)   { return fs.Stat(p.files, name) }
func (p place) list(name string) ([]fs.DirEntry, error) { return fs.ReadDir(p.files, name) }
func (p place) exists(name string) bool                 { _, err := p.stat(name); return err == nil }
func (p place) isFile(name string) bool {
	info, err := p.stat(name)
	return err == nil && !info.IsDir()
}
func (p place) identify(name string) (fileio.Identity, error) {
	if d, ok := p.files.(disk); ok {
		return fileio.Identify(d.path(name))
	}
	return fileio.Identity{}, nil
}

// file is an open file that is read by position.
type file struct {
	io.ReaderAt
	io.Closer
	path     string
	size     int64
	identity fileio.Identity
}

// open opens a regular file. One of an fs.FS that cannot be read by position is read into memory.
func (p place) open(name string) (*file, error) {
	f, err := p.files.Open(name)
	if err != nil {
		return nil, err
	}
	opened, err := p.opened(f, name)
	if err != nil {
		f.Close()
		return nil, fault.InFile(err, p.path(name))
	}
	return opened, nil
}

func (p place) opened(f fs.File, name string) (*file, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Unsupported, "this is not a regular file, but %v", info.Mode())
	}
	id, err := fileio.IdentityOf(f)
	if err != nil {
		return nil, err
	}
	opened := &file{Closer: f, path: p.path(name), size: info.Size(), identity: id}
	if r, ok := f.(io.ReaderAt); ok {
		opened.ReaderAt = r
		return opened, nil
	}
	var content bytes.Buffer // it grows with what is there, not with what Stat says
	if _, err := io.Copy(&content, f); err != nil {
		return nil, err
	}
	opened.ReaderAt, opened.size = bytes.NewReader(content.Bytes()), int64(content.Len())
	return opened, nil
}

// read returns the content of a file of at most limit bytes.
func (p place) read(name string, limit int64) ([]byte, error) {
	f, err := p.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.size > limit {
		return nil, fault.New(fault.Limit, "%d bytes, at most %d are read", f.size, limit).In(f.path)
	}
	content := make([]byte, f.size)
	_, err = io.ReadFull(io.NewSectionReader(f, 0, f.size), content)
	return content, fault.InFile(err, f.path)
}

// start returns the first bytes of a file, at most n.
func (f *file) start(n int64) ([]byte, error) {
	p := make([]byte, min(f.size, n))
	_, err := io.ReadFull(io.NewSectionReader(f, 0, f.size), p)
	return p, err
}
