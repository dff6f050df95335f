//go:build !linux

package fileio

// AvailableMemory returns 0: unknown on this system.
func AvailableMemory() int64 { return 0 }
