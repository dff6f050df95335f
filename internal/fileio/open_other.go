//go:build !unix

package fileio

// withoutWaiting is nothing here: opening a file does not wait.
const withoutWaiting = 0
