//go:build !linux

package fileio

import "os"

// StartWriteback does nothing: this system has no such hint.
func StartWriteback(f *os.File) {}
