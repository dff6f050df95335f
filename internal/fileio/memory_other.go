//go:build !linux

package fileio

import "runtime"

// AvailableMemory returns 0: unknown on this system.
func AvailableMemory() int64 { return 0 }

// HeldMemory returns the memory that the Go runtime has taken from the system.
func HeldMemory() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys - m.HeapReleased)
}
