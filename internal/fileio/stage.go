// Package fileio writes files and directories that appear complete or not at all, and copies ranges
// of bytes between files with the help of the operating system.
//
// A Stage builds an output under a hidden name beside its place:
//
//	s, err := fileio.NewStage("out", true)
//	…
//	defer s.Abort()
//	f, err := s.Create("model.safetensors", size)
//	…
//	err = fileio.Close(f)
//	err = s.Commit(replace)
//
// Commit moves several stages as one. Place checks an output path before the work. Dir and Open
// read inputs from disk or from an fs.FS.
package fileio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Stage is an output under construction. It is built under a hidden name beside its place, and
// Commit moves it there. If the process dies before, the place stays untouched, and the next stage
// in the same directory removes the hidden remains. A lock distinguishes active stages from
// remains.
//
// Several goroutines may call Create at once.
type Stage struct {
	final   string // absolute
	temp    string // "" after the end
	isDir   bool
	allowed fs.FileMode // permissions that the umask leaves
	lock    *os.File
	made    fs.FileInfo // identity of temp
	root    *os.Root    // of a directory; stays valid if its name is reused

	mu    sync.Mutex
	files map[string]*staged
}

// File is a file of a stage.
type File = os.File

// staged is a file made by Create.
type staged struct {
	info fs.FileInfo
	size int64 // 0 if not known beforehand
}

// NewStage begins an output at path final, a directory or a file. It fails if final's directory
// does not exist.
func NewStage(final string, isDir bool) (*Stage, error) {
	final, err := filepath.Abs(final)
	if err != nil {
		return nil, err
	}
	parent, name := filepath.Split(final)
	if _, err := os.Stat(parent); err != nil {
		return nil, err
	}
	if _, err := finish(parent); err != nil {
		return nil, err
	}
	if err := restore(parent, name); err != nil {
		return nil, err
	}
	sweep(parent)
	for range 10 {
		s := &Stage{final: final, temp: hiddenPath(final), isDir: isDir, files: make(map[string]*staged)}
		if err := s.create(); err == nil {
			return s, nil
		} else if !errors.Is(err, errTaken) {
			return nil, err
		}
	}
	return nil, errTaken
}

// errTaken means that another process removed the new stage before it was locked.
var errTaken = errors.New("the hidden output was removed by another run")

// create makes the hidden file or directory and locks it. Both get all permissions that the umask
// leaves, which reveals the umask; a file loses the excess before anything is written to it.
func (s *Stage) create() (err error) {
	if s.isDir {
		err = os.Mkdir(s.temp, 0o777)
	} else {
		var f *os.File
		if f, err = os.OpenFile(s.temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o777); err == nil {
			f.Close()
		}
	}
	if err != nil {
		return err
	}
	lock, ok := tryLock(s.temp)
	if !ok {
		os.RemoveAll(s.temp)
		return errTaken
	}
	s.lock = lock
	if s.made, err = os.Lstat(s.temp); err == nil && s.isDir {
		s.root, err = os.OpenRoot(s.temp)
	}
	if err != nil {
		s.Abort()
		return err
	}
	s.allowed = s.made.Mode().Perm()
	return nil
}

// Path returns the path where the named file is built. Names are relative and use slashes; the name
// of a single-file stage is "".
func (s *Stage) Path(name string) string { return filepath.Join(s.temp, filepath.FromSlash(name)) }

// Expect checks the names of all future files before the work: each must be possible, and no two
// may be equal on a file system that ignores case.
func (s *Stage) Expect(names []string) error {
	noCase := ignoresCase(s.temp)
	seen := make(map[string]string, len(names))
	for _, name := range names {
		if s.isDir && !filepath.IsLocal(filepath.FromSlash(name)) {
			return &OutputError{Path: s.final, Why: fmt.Sprintf("cannot hold %q: it is not a file name on this system", name)}
		}
		key := name
		if noCase {
			key = strings.ToLower(strings.ToUpper(name))
		}
		if other, taken := seen[key]; taken {
			return &OutputError{Path: s.final, Why: fmt.Sprintf("cannot hold both %q and %q: the file system ignores case", other, name)}
		}
		seen[key] = name
	}
	return nil
}

// ignoresCase reports whether the file system of an existing path ignores the case of its last
// part. Tests replace it.
var ignoresCase = func(path string) bool {
	dir, name := filepath.Split(path)
	there, err1 := os.Lstat(path)
	other, err2 := os.Lstat(filepath.Join(dir, strings.ToUpper(name)))
	return err1 == nil && err2 == nil && os.SameFile(there, other)
}

// Like describes the attributes that an output copies from its input. The zero value is an ordinary
// file.
type Like struct {
	Mode   fs.FileMode // permissions, less the umask; the owner may always write; 0 means 0666
	Sparse bool        // reserve no room: the input has holes, and so will the output
}

// LikeFile describes an open input. Inputs that are not files are ordinary.
func LikeFile(input any) Like {
	f, ok := input.(*os.File)
	if !ok {
		return Like{}
	}
	info, err := f.Stat()
	if err != nil {
		return Like{}
	}
	return Like{Mode: info.Mode().Perm(), Sparse: hasHoles(f, info.Size())}
}

// perm returns the mode for creating a file.
func (l Like) perm() fs.FileMode {
	if l.Mode == 0 {
		return 0o666
	}
	return l.Mode.Perm() | 0o200
}

// Create is CreateLike for an ordinary file.
func (s *Stage) Create(name string, size int64) (*os.File, error) {
	return s.CreateLike(name, size, Like{})
}

// CreateLike makes a file of the stage and the directories above it, with its final size and, if
// the system can, reserved room on the disk. Size 0 means unknown. It fails if the stage has been
// removed, which it never makes again, or if an existing file has the name without being the
// stage's own.
func (s *Stage) CreateLike(name string, size int64, like Like) (*os.File, error) {
	f, err := s.open(name, like)
	if err != nil {
		return nil, s.vanished(err)
	}
	if !like.Sparse {
		err = allocate(f, size)
	}
	var info fs.FileInfo
	if err = errors.Join(err, f.Truncate(size)); err == nil {
		info, err = f.Stat()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = &staged{info: info, size: size}
	return f, nil
}

// open creates a file through the stage's own handle of its directory, so that a directory
// exchanged meanwhile cannot redirect the write.
func (s *Stage) open(name string, like Like) (*os.File, error) {
	if s.isDir {
		if dir := path.Dir(name); dir != "." {
			if err := s.root.MkdirAll(filepath.FromSlash(dir), s.dirMode()); err != nil {
				return nil, err
			}
		}
		how := os.O_CREATE | os.O_RDWR | largeFile
		s.mu.Lock()
		if s.files[name] == nil {
			how |= os.O_EXCL
		}
		s.mu.Unlock()
		return s.root.OpenFile(filepath.FromSlash(name), how, like.perm())
	}
	f, err := os.OpenFile(s.temp, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !os.SameFile(info, s.made) {
		f.Close()
		return nil, errors.Join(err, fs.ErrNotExist)
	}
	if err := setMode(f, like.perm()&(s.allowed|0o200)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// setMode sets the permissions of an open file. File systems without permissions refuse, and there
// is nothing to restrict.
func setMode(f *os.File, mode fs.FileMode) error {
	info, err := f.Stat()
	if err != nil || info.Mode().Perm() == mode {
		return err
	}
	if err := f.Chmod(mode); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// Narrow removes permissions from a directory that its input lacks. The owner keeps all.
func (s *Stage) Narrow(input fs.FileMode) error {
	d, err := s.root.Open(".")
	if err != nil {
		return s.vanished(err)
	}
	defer d.Close()
	s.allowed &= input.Perm() | 0o700
	return setMode(d, s.allowed)
}

func (s *Stage) dirMode() fs.FileMode { return s.allowed | 0o700 }

// vanished explains an error if the stage has been removed or exchanged.
func (s *Stage) vanished(err error) error {
	if there, statErr := os.Lstat(s.temp); statErr != nil || !os.SameFile(there, s.made) {
		return &VanishedError{s.temp, err}
	}
	return err
}

// VanishedError is an output that somebody removed or changed while it was being made.
type VanishedError struct {
	Path string
	Err  error // may be nil
}

func (e *VanishedError) Error() string {
	return e.Path + ", in which the output was being made, has been removed or changed by somebody else"
}

func (e *VanishedError) Unwrap() error { return e.Err }

// Close flushes a file of the stage to disk and closes it.
func Close(f *os.File) error {
	return errors.Join(f.Sync(), f.Close())
}

// verify returns an error unless the stage still holds every file made in it, with its size.
func (s *Stage) verify() error {
	there, err := os.Lstat(s.temp)
	if err != nil || !os.SameFile(there, s.made) {
		return &VanishedError{s.temp, err}
	}
	for name, f := range s.files {
		there, err := os.Lstat(s.Path(name))
		if err != nil || !os.SameFile(there, f.info) || f.size > 0 && there.Size() != f.size {
			return &VanishedError{s.Path(name), err}
		}
	}
	return nil
}

// Foreign lists the files below the final place that the stage lacks.
func (s *Stage) Foreign() ([]string, error) {
	ours, err := Files(s.temp)
	if err != nil {
		return nil, err
	}
	theirs, err := Files(s.final)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var foreign []string
	for _, name := range theirs {
		if !slices.Contains(ours, name) {
			foreign = append(foreign, name)
		}
	}
	return foreign, nil
}

// Files lists everything below dir except directories, sorted, with slashes.
func Files(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		names = append(names, filepath.ToSlash(name))
		return err
	})
	return names, err
}

// Abort removes the output. After Commit it does nothing.
func (s *Stage) Abort() {
	if s.temp == "" {
		return
	}
	s.release()
	if there, err := os.Lstat(s.temp); err == nil && (s.made == nil || os.SameFile(there, s.made)) {
		os.RemoveAll(s.temp)
	}
	s.unlock()
}

// release closes the directory: some systems cannot move an open one.
func (s *Stage) release() {
	if s.root != nil {
		s.root.Close()
		s.root = nil
	}
}

func (s *Stage) unlock() {
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
	}
	s.temp = ""
}
