package fileio

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A stage has the hidden name .<name>.loratool-<host>-<random>. The host is part of it because some
// file systems are shared by several machines and keep the locks of each apart: a lock then says
// nothing about a run on another machine.

const tempMark = ".loratool-"

// oldMark ends the hidden name of an output while another one takes its place.
const oldMark = ".old"

// hiddenPath is a new hidden name beside final.
func hiddenPath(final string) string {
	parent, name := filepath.Split(final)
	return filepath.Join(parent, "."+name+tempMark+hostTag()+"-"+random())
}

func random() string {
	var b [6]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// hostTag tells machines apart that share a file system, and a machine from itself before it was
// started anew.
var hostTag = sync.OnceValue(func() string {
	sum := sha256.Sum256([]byte(bootID()))
	return hex.EncodeToString(sum[:4])
})

// isOurs reports whether a hidden name was made on this machine since it was started, so that locks
// tell whether its run is at work.
func isOurs(path string) bool {
	name := filepath.Base(path)
	i := strings.LastIndex(name, tempMark)
	return i >= 0 && strings.HasPrefix(name[i+len(tempMark):], hostTag()+"-")
}

// asides lists the hidden paths of outputs that were moved aside from a place.
func asides(parent, name string) (paths []string) {
	entries, _ := os.ReadDir(parent) // the directory may be writable and not readable; then nothing can be found
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+name+tempMark) && strings.HasSuffix(e.Name(), oldMark) {
			paths = append(paths, filepath.Join(parent, e.Name()))
		}
	}
	return paths
}

// restore puts the previous output back where a run was ended while it replaced it, and says so:
// whoever wants to write here has not seen it. Where something else has taken the place meanwhile,
// the previous output stays under its hidden name.
func restore(parent, name string) error {
	final := filepath.Join(parent, name)
	for _, old := range asides(parent, name) {
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
		if err := rename(old, final); err != nil {
			return err
		}
		return &OutputError{Path: final, Why: "was taken away by a run that was ended before it could replace it, and is restored now", Exists: true, Replaceable: true}
	}
	return nil
}

// sweep removes from a directory the remains of stages whose runs were killed on this machine,
// whatever their places: a run has several, and the next run need not write all of them.
func sweep(dir string) {
	entries, _ := os.ReadDir(dir)
	moving := pending(dir, entries)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !isStage(e) || !isOurs(path) || moving[path] {
			continue
		}
		if lock, ok := tryLock(path); ok && lock != nil {
			os.RemoveAll(path)
			lock.Close()
		}
	}
}

// pending is what the journals in a directory are about to move. Its run may have lost its locks,
// and another one be at work on its journal.
func pending(dir string, entries []fs.DirEntry) map[string]bool {
	paths := make(map[string]bool)
	for _, e := range entries {
		if !isJournal(e) {
			continue
		}
		_, moves, _ := readJournal(dir, filepath.Join(dir, e.Name())) // none, if it is not one of ours
		for _, m := range moves {
			paths[m.temp] = true
		}
	}
	return paths
}

// Sweep removes from a directory the remains of killed runs to which nothing has been written for
// the given time, and returns their names; with dryRun it only lists them. A stage that a run on
// this machine holds stays. So does an output that a killed run had moved aside: the next run for
// its place puts it back. What a journal is about to move stays, too.
func Sweep(dir string, age time.Duration, dryRun bool) (names []string, err error) {
	if !dryRun {
		if err := Finish(dir); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	moving := pending(dir, entries)
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !isStage(e) || moving[path] {
			continue
		}
		removed, err := removeOld(path, age, dryRun)
		if removed {
			names = append(names, e.Name())
		}
		errs = append(errs, err)
	}
	return names, errors.Join(errs...)
}

// removeOld removes a stage that nobody holds and to which nothing has been written for the given
// time.
func removeOld(path string, age time.Duration, dryRun bool) (removed bool, err error) {
	lock, ok := tryLock(path)
	if lock != nil {
		defer lock.Close()
	}
	if !ok || time.Since(lastWrite(path)) < age {
		return false, nil
	}
	if dryRun {
		return true, nil
	}
	err = os.RemoveAll(path)
	return err == nil, err
}

// isStage reports whether an entry of a directory is a stage that is being built, by its name. A
// link is none, and no stage waits for a writer as a FIFO does.
func isStage(e fs.DirEntry) bool {
	name := e.Name()
	return (e.IsDir() || e.Type().IsRegular()) && strings.HasPrefix(name, ".") && strings.LastIndex(name, tempMark) > 0 && !strings.HasSuffix(name, oldMark)
}

// lastWrite is when something was last written to path, or to anything below it.
func lastWrite(path string) (last time.Time) {
	filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			last = time.Now() // what cannot be looked at may be in use
			return nil
		}
		if info, err := d.Info(); err == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
		return nil
	})
	return last
}
