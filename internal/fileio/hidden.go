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

// A stage has the hidden name .<name>.loratool-<host>-<random>. The host is part of it because
// machines that share a file system may keep their locks apart: a local lock then says nothing
// about a run on another machine.

const tempMark = ".loratool-"

// oldMark ends the hidden name of an output that is being replaced.
const oldMark = ".old"

// hiddenPath returns a new hidden name beside final.
func hiddenPath(final string) string {
	parent, name := filepath.Split(final)
	return filepath.Join(parent, "."+name+tempMark+hostTag()+"-"+random())
}

func random() string {
	var b [6]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// hostTag identifies this machine, since its last boot, among machines that share a file system.
var hostTag = sync.OnceValue(func() string {
	sum := sha256.Sum256([]byte(bootID()))
	return hex.EncodeToString(sum[:4])
})

// isOurs reports whether this machine made a hidden name since its last boot, so that locks tell
// whether its run is active.
func isOurs(path string) bool {
	name := filepath.Base(path)
	i := strings.LastIndex(name, tempMark)
	return i >= 0 && strings.HasPrefix(name[i+len(tempMark):], hostTag()+"-")
}

// asides lists the hidden paths of outputs moved aside from a place.
func asides(parent, name string) (paths []string) {
	entries, _ := os.ReadDir(parent) // an unreadable directory shows nothing, even if it is writable
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+name+tempMark) && strings.HasSuffix(e.Name(), oldMark) {
			paths = append(paths, filepath.Join(parent, e.Name()))
		}
	}
	return paths
}

// restore moves the previous output back if an interrupted run had moved it aside, and returns an
// error that says so: the caller has not seen this output. If the place is occupied again, the
// previous output keeps its hidden name.
func restore(parent, name string) error {
	final := filepath.Join(parent, name)
	for _, old := range asides(parent, name) {
		temp := strings.TrimSuffix(old, oldMark)
		lock, ok := tryLock(temp)
		if lock != nil {
			lock.Close()
		}
		if _, err := os.Lstat(temp); err == nil && !ok {
			continue // that run is active
		}
		if _, err := os.Lstat(final); !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := rename(old, final); err != nil {
			return err
		}
		return &OutputError{Path: final, Why: "had been moved aside by an interrupted run and has been restored; run again", Exists: true, Replaceable: true}
	}
	return nil
}

// sweep removes the remains of killed runs of this machine from a directory, for any place: a run
// has several places, and the next run need not write to all of them.
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

// pending lists the moves in the directory's journals. A journal's run may have lost its locks
// while another run finishes the journal.
func pending(dir string, entries []fs.DirEntry) map[string]bool {
	paths := make(map[string]bool)
	for _, e := range entries {
		if !isJournal(e) {
			continue
		}
		_, moves, _ := readJournal(dir, filepath.Join(dir, e.Name())) // none if the journal is not ours
		for _, m := range moves {
			paths[m.temp] = true
		}
	}
	return paths
}

// Sweep removes remains of killed runs from a directory if nothing was written to them for the
// given time, and returns their names. With dryRun it only lists them. It keeps stages that a run
// on this machine holds, stages that a journal is about to move, and outputs that a killed run had
// moved aside, since the next run for their place puts them back.
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

// removeOld removes a stage that no run holds and that nothing was written to for the given time.
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

// isStage reports whether a directory entry is a stage under construction, by its name. A link is
// none, and neither is a FIFO, which would block.
func isStage(e fs.DirEntry) bool {
	name := e.Name()
	return (e.IsDir() || e.Type().IsRegular()) && strings.HasPrefix(name, ".") && strings.LastIndex(name, tempMark) > 0 && !strings.HasSuffix(name, oldMark)
}

// lastWrite returns the time of the last write to path or anything below it.
func lastWrite(path string) (last time.Time) {
	filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			last = time.Now() // an entry that cannot be examined may be in use
			return nil
		}
		if info, err := d.Info(); err == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
		return nil
	})
	return last
}
