package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// hintFor returns the next step after an error, "" if there is none. commandUsage is the usage of
// the command.
func hintFor(err error, commandUsage string) string {
	var usage *usageError
	var output *fileio.OutputError
	var space *fileio.SpaceError
	var results *resultsError
	var placed *fileio.PlacedError
	switch {
	case errors.As(err, &usage):
		return usage.hint
	case errors.As(err, &results):
		return "check where standard output goes; the files that the command wrote are complete"
	case errors.As(err, &placed):
		return "check the disk, then run sync or make the output again"
	case errors.As(err, &output) && output.Replaceable:
		return "choose another path with " + flagOfPath(err) + ", or use --force to replace it"
	case errors.As(err, &output):
		return "choose another path with " + flagOfPath(err)
	case errors.As(err, &space), errors.Is(err, syscall.ENOSPC):
		return "free some space, or write to another disk with -o"
	case errors.Is(err, syscall.EROFS):
		return "choose another path with -o"
	case errors.Is(err, fs.ErrPermission):
		return "check the permissions of the inputs and of OUT's directory"
	}
	return inputHint(err, commandUsage)
}

// pathError is an error about an output that a flag other than -o names.
type pathError struct {
	error
	flag string
}

func (e pathError) Unwrap() error { return e.error }

func flagOfPath(err error) string {
	if e := new(pathError); errors.As(err, e) {
		return e.flag
	}
	return "-o"
}

// inputHint returns the next step after an error about an input, "" if there is none.
func inputHint(err error, usage string) string {
	var path *fs.PathError
	if errors.As(err, &path) && errors.Is(err, fs.ErrNotExist) && fileio.IsInterrupted(path.Path) {
		return hintInterrupted
	}
	if errors.As(err, &path) && errors.Is(err, fs.ErrNotExist) && isHubName(path.Path) {
		return fmt.Sprintf("loratool downloads nothing, and no %s exists here: hf download %s --local-dir %s", path.Path, path.Path, filepath.Base(path.Path))
	}
	if there := new(absentError); errors.As(err, there) {
		return there.hint()
	}
	var found *findings
	if errors.As(err, &found) && found.damaged && fault.Hint(err) == "" {
		return "copy or download the file again; if it is damaged at its origin, make it again from its source"
	}
	var e *fault.Error
	if !errors.As(err, &e) {
		return ""
	}
	if e.Path != "" && fileio.IsInterrupted(e.Path) {
		return hintInterrupted
	}
	if snapshot := hubSnapshot(e.Path); snapshot != "" {
		return "this directory of the hub's cache holds all revisions; use " + snapshot
	}
	if name := emptyHub(e.Path); name != "" {
		return fmt.Sprintf("the hub's cache holds no revision of %s here: hf download %s", name, name)
	}
	if e.Hint == "" && e.Rule != "" && (errors.Is(err, fault.Corrupt) || errors.Is(err, fault.Truncated)) {
		return "the file is damaged: copy or download it again, or make it again from its source; loratool verify lists all damage"
	}
	if e.Misplaced {
		return e.Hint + "; the arguments are: " + usage
	}
	return e.Hint
}

const hintInterrupted = "another run is replacing files here, or was interrupted while it did: " +
	"wait for it, or run its command again to complete it"

var hubName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$`)

// isHubName reports whether a missing path is more likely the name of a repository,
// organisation/name.
func isHubName(path string) bool {
	if !hubName.MatchString(path) {
		return false
	}
	for _, suffix := range []string{".safetensors", ".lora", ".json", ".bin", ".undo"} {
		if strings.HasSuffix(path, suffix) {
			return false
		}
	}
	_, err := os.Stat(filepath.Dir(path))
	return errors.Is(err, fs.ErrNotExist)
}

// emptyHub returns the name of a repository whose directory in the hub's cache holds no revision,
// "" for any other directory.
func emptyHub(dir string) string {
	repository, ok := strings.CutPrefix(filepath.Base(dir), "models--")
	if info, err := os.Stat(filepath.Join(dir, "snapshots")); !ok || err != nil || !info.IsDir() || hubSnapshot(dir) != "" {
		return ""
	}
	return strings.ReplaceAll(repository, "--", "/")
}

// hubSnapshot returns the directory of a revision in models--organisation--name of the hub's cache:
// that of main or, without main, the first. It returns "" if there is none.
func hubSnapshot(dir string) string {
	if dir == "" {
		return ""
	}
	all, err := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
	if err != nil || len(all) == 0 {
		return ""
	}
	if main, err := os.ReadFile(filepath.Join(dir, "refs", "main")); err == nil {
		path := filepath.Join(dir, "snapshots", strings.TrimSpace(string(main)))
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return all[0]
}
