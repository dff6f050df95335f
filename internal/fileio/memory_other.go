//go:build !linux

package fileio

func availableMemory() int64 { return 0 }
