//go:build unix

package fileio

import "syscall"

// withoutWaiting opens what is a pipe in spite of all at once, in place of waiting for somebody who
// writes to it.
const withoutWaiting = syscall.O_NONBLOCK
