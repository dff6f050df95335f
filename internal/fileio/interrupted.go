package fileio

import (
	"os"
	"path/filepath"
	"slices"
)

// IsInterrupted reports whether an unfinished run was replacing path, or files in it or beside it:
// a journal lies there, or a previous output was moved aside. The next run that writes there
// completes the work; a reader must not.
func IsInterrupted(path string) bool {
	parent := filepath.Dir(path)
	return hasJournal(path) || hasJournal(parent) || len(asides(parent, filepath.Base(path))) > 0
}

func hasJournal(dir string) bool {
	entries, _ := os.ReadDir(dir) // an unreadable directory shows nothing
	return slices.ContainsFunc(entries, isJournal)
}
