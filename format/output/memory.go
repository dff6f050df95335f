package output

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Memory is an output in memory. The zero value is ready to use. Commit makes the files readable.
type Memory struct {
	lock  sync.Mutex
	files map[string]*memoryFile
	state state
}

type state int

const (
	writing state = iota
	committed
	aborted
)

// Create starts a file, at its full size if that is known.
func (m *Memory) Create(info Info) (File, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.files == nil {
		m.files = make(map[string]*memoryFile)
	}
	if _, ok := m.files[info.Name]; ok || m.state != writing {
		return nil, fmt.Errorf("file %q exists in the output, or the output has ended", info.Name)
	}
	f := &memoryFile{isFixed: info.Size > 0, data: make([]byte, info.Size)}
	m.files[info.Name] = f
	return f, nil
}

// Commit ends the output. It is an error after Abort.
func (m *Memory) Commit() error {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.state == aborted {
		return errors.New("the output was aborted")
	}
	m.state = committed
	return nil
}

// Abort drops the files unless they are committed.
func (m *Memory) Abort() {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.state == writing {
		m.state, m.files = aborted, nil
	}
}

// Files returns the content of all files by name; nil before Commit. A result of a single file is
// called "". The map is the caller's. Every call returns the same slices, and FS reads them too;
// the Memory itself no longer changes them.
func (m *Memory) Files() map[string][]byte {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.state != committed {
		return nil
	}
	files := make(map[string][]byte, len(m.files))
	for name, f := range m.files {
		files[name] = f.data
	}
	return files
}

// memoryFile is a file in memory. A file of fixed size needs no lock, because no byte is written
// twice. The zero value grows.
type memoryFile struct {
	isFixed bool
	lock    sync.RWMutex // guards data if the file grows
	data    []byte
}

var errBeyond = errors.New("write beyond the end of a file in memory")

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || f.isFixed && off > int64(len(f.data))-int64(len(p)) {
		return 0, errBeyond
	}
	if f.isFixed {
		return copy(f.data[off:], p), nil
	}
	f.lock.Lock()
	defer f.lock.Unlock()
	if missing := off + int64(len(p)) - int64(len(f.data)); missing > 0 {
		f.data = append(f.data, make([]byte, missing)...)
	}
	return copy(f.data[off:], p), nil
}

func (f *memoryFile) CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error {
	section := io.NewSectionReader(src, srcOff, n)
	if !f.isFixed {
		p := make([]byte, n)
		if _, err := io.ReadFull(section, p); err != nil {
			return err
		}
		_, err := f.WriteAt(p, off)
		return err
	}
	if off < 0 || off > int64(len(f.data))-n {
		return errBeyond
	}
	_, err := io.ReadFull(section, f.data[off:off+n])
	return err
}

func (f *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	f.lock.RLock()
	defer f.lock.RUnlock()
	return bytes.NewReader(f.data).ReadAt(p, off)
}

func (f *memoryFile) Close() error { return nil }
