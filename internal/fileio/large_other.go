//go:build !linux

package fileio

// largeFile is 0: every file may grow beyond 2 GiB here.
const largeFile = 0
