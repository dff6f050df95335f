package merge_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// memory is a base without a disk: files by slash-separated name. They can only be read by
// position.
type memory map[string][]byte

func (m memory) Open(name string) (fs.File, error) {
	if content, ok := m[name]; ok {
		return memoryFile{memoryInfo{path.Base(name), int64(len(content)), 0o444}, bytes.NewReader(content)}, nil
	}
	entries, err := m.ReadDir(name)
	if err != nil {
		return nil, err
	}
	return memoryDir{entries, memoryInfo{path.Base(name), 0, fs.ModeDir | 0o555}}, nil
}

// ReadDir lists a directory. A directory exists if it contains something.
func (m memory) ReadDir(name string) (entries []fs.DirEntry, err error) {
	below := name + "/"
	if name == "." {
		below = ""
	}
	seen := make(map[string]bool)
	for file, content := range m {
		rest, ok := strings.CutPrefix(file, below)
		first, _, isDir := strings.Cut(rest, "/")
		if !ok || seen[first] {
			continue
		}
		seen[first] = true
		info := memoryInfo{first, int64(len(content)), 0o444}
		if isDir {
			info.size, info.mode = 0, fs.ModeDir|0o555
		}
		entries = append(entries, fs.FileInfoToDirEntry(info))
	}
	if len(entries) == 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

type memoryFile struct {
	info memoryInfo
	io.ReaderAt
}

func (f memoryFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f memoryFile) Read([]byte) (int, error) {
	return 0, errors.New("read otherwise than by position")
}
func (f memoryFile) Close() error { return nil }

type memoryDir struct {
	entries []fs.DirEntry
	info    memoryInfo
}

func (d memoryDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d memoryDir) Read([]byte) (int, error)   { return 0, fs.ErrInvalid }
func (d memoryDir) Close() error               { return nil }

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

// load reads the checkpoint at path into memory and returns its name there. A single file brings
// the config.json beside it along.
func (m memory) load(t *testing.T, root string) (name string) {
	t.Helper()
	dir, name := root, "."
	if info, err := os.Stat(root); err != nil {
		t.Fatal(err)
	} else if !info.IsDir() {
		dir, name = filepath.Dir(root), filepath.Base(root)
	}
	err := fs.WalkDir(os.DirFS(dir), ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name != "." && file != name && file != "config.json" {
			return err
		}
		m[file], err = os.ReadFile(filepath.Join(dir, filepath.FromSlash(file)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// fromDisk opens a base by its path.
func fromDisk(t *testing.T, path string) (*checkpoint.Checkpoint, error) {
	return checkpoint.Open(t.Context(), path)
}

// fromMemory opens a base that was read into memory.
func fromMemory(t *testing.T, path string) (*checkpoint.Checkpoint, error) {
	m := make(memory)
	name := m.load(t, path)
	return checkpoint.OpenFS(t.Context(), m, name)
}

// eachBase is eachFixture with every base on disk, and again in memory.
func eachBase(t *testing.T, kind string, atLeast int, f func(t *testing.T, dir string, c fixture)) {
	eachFixture(t, kind, atLeast, f)
	t.Run("from memory", func(t *testing.T) {
		eachFixture(t, kind, atLeast, func(t *testing.T, dir string, c fixture) {
			c.from = fromMemory
			f(t, dir, c)
		})
	})
}

// TestBaseServesSeveralPlans: a base that the caller opens outlives its plans. Its content and
// history equal those of its path, and so does a merge into an io.ReaderAt.
func TestBaseServesSeveralPlans(t *testing.T) {
	m := writePair(t, dtype.BF16, 64, 48, 0.1)
	content, err := os.ReadFile(m.base)
	if err != nil {
		t.Fatal(err)
	}
	p, err := merge.Open(t.Context(), m.base, m.adapters, merge.Options{})
	want := testkit.Hash(t, run(t, p, err))
	memory, err := checkpoint.OpenReader(t.Context(), "pair", bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := checkpoint.Open(t.Context(), m.base)
	if err != nil {
		t.Fatal(err)
	}
	for source, base := range map[string]*checkpoint.Checkpoint{"memory": memory, "disk": disk} {
		for range 2 {
			p, err := merge.New(t.Context(), base, m.adapters, merge.Options{})
			if got := testkit.Hash(t, run(t, p, err)); got != want {
				t.Errorf("merged from %s: %s, want %s", source, got, want)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		if h := base.History(); len(h) > 0 {
			t.Errorf("%s: an unmerged base has the history %v", source, h)
		}
		if err := base.Close(); err != nil {
			t.Error(err)
		}
	}
}
