package output

import (
	"bytes"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// FS returns the committed files as a file system, such as a base for merge.OpenBaseFS; it is empty
// before Commit. It reads the slices of Files, which must not change meanwhile. A result of a
// single file, called "", has no name there: read it from Files.
func (m *Memory) FS() fs.FS { return memoryFS(m.Files()) }

// memoryFS holds the content of files by path. Directories exist if a file lies below them.
type memoryFS map[string][]byte

// Open opens a file, which can be read by position, or a directory.
func (m memoryFS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	if content, ok := m[name]; ok {
		info := memoryInfo{path.Base(name), int64(len(content)), 0o444}
		return &memoryContent{bytes.NewReader(content), info}, nil
	}
	entries := m.entries(name)
	if len(entries) == 0 && name != "." {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memoryDirectory{memoryInfo{path.Base(name), 0, fs.ModeDir | 0o555}, entries}, nil
}

// entries lists a directory by name.
func (m memoryFS) entries(dir string) (all []fs.DirEntry) {
	seen := make(map[string]bool)
	for name, content := range m {
		rest, ok := name, name != ""
		if dir != "." {
			rest, ok = strings.CutPrefix(name, dir+"/")
		}
		child, _, isDir := strings.Cut(rest, "/")
		if !ok || seen[child] {
			continue
		}
		seen[child] = true
		info := memoryInfo{child, int64(len(content)), 0o444}
		if isDir {
			info = memoryInfo{child, 0, fs.ModeDir | 0o555}
		}
		all = append(all, fs.FileInfoToDirEntry(info))
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return all
}

// memoryInfo describes a file or directory in memory.
type memoryInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func (i memoryInfo) Name() string       { return i.name }
func (i memoryInfo) Size() int64        { return i.size }
func (i memoryInfo) Mode() fs.FileMode  { return i.mode }
func (i memoryInfo) ModTime() time.Time { return time.Time{} }
func (i memoryInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memoryInfo) Sys() any           { return nil }

// memoryContent is an open file.
type memoryContent struct {
	*bytes.Reader
	info memoryInfo
}

func (f *memoryContent) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *memoryContent) Close() error               { return nil }

// memoryDirectory is an open directory.
type memoryDirectory struct {
	info memoryInfo
	left []fs.DirEntry
}

func (d *memoryDirectory) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *memoryDirectory) Close() error               { return nil }

func (d *memoryDirectory) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: fs.ErrInvalid}
}

// ReadDir returns the next n entries, or all of the rest if n is not positive.
func (d *memoryDirectory) ReadDir(n int) ([]fs.DirEntry, error) {
	if n > 0 && len(d.left) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(d.left) {
		n = len(d.left)
	}
	next := d.left[:n:n]
	d.left = d.left[n:]
	return next, nil
}
