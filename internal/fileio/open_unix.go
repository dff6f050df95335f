//go:build unix

package fileio

import "syscall"

// withoutWaiting opens a pipe at once instead of waiting for a writer.
const withoutWaiting = syscall.O_NONBLOCK
