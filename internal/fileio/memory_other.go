//go:build !linux

package fileio

// AvailableMemory is 0: what this system has available is not known.
func AvailableMemory() int64 { return 0 }
