//go:build !unix

package fileio

import (
	"io/fs"
	"os"
)

// tryLock takes no lock: without one the remains of a killed run cannot be told from a run at work,
// so a nil handle means that nothing may be removed.
func tryLock(path string) (lock *os.File, ok bool) { return nil, true }

// fileID is not known here. Nothing changes places with a new output here either, so the hidden
// name of one that has moved is free.
func fileID(fs.FileInfo) string { return "" }

// syncDir does nothing: a directory cannot be opened for that here.
var syncDir = func(path string) error { return nil }
