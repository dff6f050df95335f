package fileio

import (
	"os"
	"path/filepath"
	"slices"
)

// IsInterrupted reports whether a run has begun to replace the file or directory at path, or others
// in it or beside it, and has not ended: a journal lies there, or the previous output was moved
// aside. The next run that writes there completes the work; one that only reads must not.
func IsInterrupted(path string) bool {
	parent := filepath.Dir(path)
	return hasJournal(path) || hasJournal(parent) || len(asides(parent, filepath.Base(path))) > 0
}

func hasJournal(dir string) bool {
	entries, _ := os.ReadDir(dir) // nothing can be found where nothing can be read
	return slices.ContainsFunc(entries, isJournal)
}
