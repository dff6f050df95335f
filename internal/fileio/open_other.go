//go:build !unix

package fileio

// withoutWaiting is 0: opening a file does not wait here.
const withoutWaiting = 0
