//go:build !linux

package fileio

// largeFile is nothing here: every file may grow beyond 2 GiB.
const largeFile = 0
