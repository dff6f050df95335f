package merge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/loratool/loratool/internal/undo"
)

// Output is where a merged checkpoint is written: files that appear together, or not at all. Create
// and the methods of the files may be called from several goroutines at once.
type Output interface {
	// Create begins a file of the checkpoint.
	Create(info OutputInfo) (OutputFile, error)
	// Commit makes the files appear, when all of them have been closed.
	Commit() error
}

// OutputInfo describes a file of an output.
type OutputInfo struct {
	Name   string      // within the checkpoint, with slashes; "" for a checkpoint that is one file
	Size   int64       // in bytes
	Mode   fs.FileMode // permissions of the file that it is made from; 0 says nothing
	Sparse bool        // that file has holes, so that no room need be reserved
}

// OutputFile is a file of an output in the making. Every byte is written once, in any order. A run
// that fails leaves files open: they are worth nothing, and whoever made the output lets go of them.
type OutputFile interface {
	io.WriterAt
	// CopyRange copies n bytes of src from srcOff to off.
	CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error
	// Close ends the file: an error of writing that has not come up yet comes up here.
	Close() error
}

// Memory is an output in memory. The zero value is ready. Commit makes the files readable.
type Memory struct {
	lock      sync.Mutex
	files     map[string]*memoryFile
	committed bool
}

type memoryFile struct{ data []byte }

// Create makes a file of its whole size.
func (m *Memory) Create(info OutputInfo) (OutputFile, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.files == nil {
		m.files = make(map[string]*memoryFile)
	}
	if _, ok := m.files[info.Name]; ok || m.committed {
		return nil, fmt.Errorf("the output has a file %q already, or is committed", info.Name)
	}
	f := &memoryFile{make([]byte, info.Size)}
	m.files[info.Name] = f
	return f, nil
}

// Commit ends the output.
func (m *Memory) Commit() error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.committed = true
	return nil
}

// Files returns the content of the files by their names, nil before Commit. It belongs to the caller.
func (m *Memory) Files() map[string][]byte {
	m.lock.Lock()
	defer m.lock.Unlock()
	if !m.committed {
		return nil
	}
	files := make(map[string][]byte, len(m.files))
	for name, f := range m.files {
		files[name] = f.data
	}
	return files
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(f.data)) {
		return 0, errors.New("write beyond the end of a file in memory")
	}
	return copy(f.data[off:], p), nil
}

func (f *memoryFile) CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error {
	_, err := io.ReadFull(io.NewSectionReader(src, srcOff, n), f.data[off:off+n])
	return err
}

func (f *memoryFile) Close() error { return nil }

// spoolOf is where the residuals of an undo record wait: where the output is, or else in memory.
func spoolOf(out Output) (s undo.Spool, closeSpool func(), err error) {
	if s, ok := out.(interface {
		spool() (undo.Spool, func(), error)
	}); ok {
		return s.spool()
	}
	return new(memorySpool), func() {}, nil
}

// memorySpool is a file that grows, in memory.
type memorySpool struct {
	lock sync.RWMutex
	data []byte
}

func (s *memorySpool) WriteAt(p []byte, off int64) (int, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if missing := off + int64(len(p)) - int64(len(s.data)); missing > 0 {
		s.data = append(s.data, make([]byte, missing)...)
	}
	return copy(s.data[off:], p), nil
}

func (s *memorySpool) ReadAt(p []byte, off int64) (int, error) {
	s.lock.RLock()
	defer s.lock.RUnlock()
	return bytes.NewReader(s.data).ReadAt(p, off)
}
