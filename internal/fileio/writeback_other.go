//go:build !linux

package fileio

import "os"

// StartWriteback does nothing where the system has no such hint.
func StartWriteback(f *os.File) {}
