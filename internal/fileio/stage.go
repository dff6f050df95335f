// Package fileio writes files and directories that appear whole or not at all, and moves ranges of bytes between files
// with the help of the operating system.
package fileio

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Stage is an output in the making. It is built beside the place where it will appear, under a hidden name, and Commit
// moves it there. Whatever ends the process before that leaves the place untouched; the hidden remains are removed by the
// next stage for the same place, which can tell them from a stage at work because that one holds a lock.
type Stage struct {
	final string
	temp  string
	isDir bool
	lock  *os.File
}

// tempMark stands in the hidden name of every stage: .<name>.loratool-<random>.
const tempMark = ".loratool-"

// NewStage begins an output at path final, a directory or a file. It fails when the directory around final is not there.
func NewStage(final string, isDir bool) (*Stage, error) {
	final, err := filepath.Abs(final)
	if err != nil {
		return nil, err
	}
	parent, name := filepath.Split(final)
	if _, err := os.Stat(parent); err != nil {
		return nil, err
	}
	if err := restore(parent, name); err != nil {
		return nil, err
	}
	sweep(parent, name)
	for range 10 {
		s := &Stage{final: final, temp: filepath.Join(parent, "."+name+tempMark+random()), isDir: isDir}
		if err := s.create(); err == nil {
			return s, nil
		} else if !errors.Is(err, errTaken) {
			return nil, err
		}
	}
	return nil, errTaken
}

// errTaken: another process removed what create had made before it was locked.
var errTaken = errors.New("the hidden output was removed by another run")

func (s *Stage) create() error {
	if s.isDir {
		if err := os.Mkdir(s.temp, 0o777); err != nil {
			return err
		}
	} else {
		f, err := os.OpenFile(s.temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
		if err != nil {
			return err
		}
		f.Close()
	}
	lock, ok := tryLock(s.temp)
	if !ok {
		os.RemoveAll(s.temp)
		return errTaken
	}
	s.lock = lock
	return nil
}

// stages lists the hidden paths of stages for a place: those that end in oldMark, or those that do not.
func stages(parent, name string, old bool) (paths []string) {
	entries, _ := os.ReadDir(parent) // the directory may be writable and not readable; then nothing can be found
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+name+tempMark) && strings.HasSuffix(e.Name(), oldMark) == old {
			paths = append(paths, filepath.Join(parent, e.Name()))
		}
	}
	return paths
}

// restore puts the previous output back where a run was ended while it replaced it, and says so: whoever wants to write here has not
// seen it. Where something else has taken the place meanwhile, the previous output stays under its hidden name.
func restore(parent, name string) error {
	final := filepath.Join(parent, name)
	for _, old := range stages(parent, name, true) {
		temp := strings.TrimSuffix(old, oldMark)
		lock, ok := tryLock(temp)
		if lock != nil {
			lock.Close()
		}
		if _, err := os.Lstat(temp); err == nil && !ok {
			continue // that run is at work
		}
		if _, err := os.Lstat(final); !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := os.Rename(old, final); err != nil {
			return err
		}
		return &OutputError{Path: final, Why: "was taken away by a run that was ended before it could replace it, and is restored now", Exists: true, Replaceable: true}
	}
	return nil
}

// sweep removes the remains of killed stages for the same place.
func sweep(parent, name string) {
	for _, path := range stages(parent, name, false) {
		if lock, ok := tryLock(path); ok && lock != nil {
			os.RemoveAll(path)
			lock.Close()
		}
	}
}

func random() string {
	var b [6]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Path is where the file called name, relative and with slashes, is built; a stage for one file has the name "".
func (s *Stage) Path(name string) string { return filepath.Join(s.temp, filepath.FromSlash(name)) }

// Create makes a file of the stage, and the directories above it, with its final size and, where the system can, room on the
// disk for all of it.
func (s *Stage) Create(name string, size int64) (*os.File, error) {
	path := s.Path(name)
	if s.isDir {
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(allocate(f, size), f.Truncate(size)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close makes the content of a file of the stage durable, and closes it.
func Close(f *os.File) error {
	return errors.Join(f.Sync(), f.Close())
}

// Commit moves the output to its place. Every file must have been closed with Close. An existing file there is replaced
// only if replace is true, an existing directory only if, besides, every file in it is one that the stage has too: a
// directory that holds anything else is not ours to remove.
func (s *Stage) Commit(replace bool) error {
	if s.isDir {
		err := filepath.WalkDir(s.temp, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = syncDir(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := s.move(replace); err != nil {
		return err
	}
	s.unlock()
	return syncDir(filepath.Dir(s.final))
}

func (s *Stage) move(replace bool) error {
	if !replace {
		if !s.isDir {
			// A link, unlike a rename, fails when the place has been taken meanwhile.
			if err := os.Link(s.temp, s.final); err == nil || errors.Is(err, fs.ErrExist) {
				return errors.Join(err, os.Remove(s.temp))
			}
		}
		if _, err := os.Lstat(s.final); err == nil {
			return &fs.PathError{Op: "create", Path: s.final, Err: fs.ErrExist}
		}
		return os.Rename(s.temp, s.final)
	}
	if !s.isDir {
		return os.Rename(s.temp, s.final)
	}
	foreign, err := s.Foreign()
	if err != nil {
		return err
	}
	if len(foreign) > 0 {
		return foreignError(s.final, foreign[0])
	}
	switch err := exchange(s.temp, s.final); {
	case err == nil:
		return os.RemoveAll(s.temp) // the old one
	case errors.Is(err, fs.ErrNotExist):
		return os.Rename(s.temp, s.final)
	case !errors.Is(err, errNoExchange):
		return err
	}
	return s.replaceInSteps()
}

// errNoExchange: the system cannot let two names change places.
var errNoExchange = errors.New("names cannot be exchanged here")

// oldMark ends the hidden name of an output while another one takes its place.
const oldMark = ".old"

// replaceInSteps replaces a directory where the system has no exchange. Between the first two renames the place is empty: what ends
// the process there leaves the old output under a name that restore knows.
func (s *Stage) replaceInSteps() error {
	old := s.temp + oldMark
	if err := os.Rename(s.final, old); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return os.Rename(s.temp, s.final)
		}
		return err
	}
	if err := os.Rename(s.temp, s.final); err != nil {
		return errors.Join(err, os.Rename(old, s.final))
	}
	if err := os.Rename(old, s.temp); err != nil { // from here on it may be swept
		return err
	}
	return os.RemoveAll(s.temp)
}

// Foreign lists the files below the final place that the stage does not have.
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

// Files lists everything below dir that is not a directory, sorted, with slashes.
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
	if s.lock == nil && s.temp == "" {
		return
	}
	os.RemoveAll(s.temp)
	s.unlock()
}

func (s *Stage) unlock() {
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
	}
	s.temp = ""
}
