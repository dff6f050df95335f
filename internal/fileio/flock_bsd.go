//go:build unix && !aix && !solaris

package fileio

import "syscall"

// flock takes the lock of a file for this process, or fails with EWOULDBLOCK when another one holds
// it. It is a variable for the tests.
var flock = func(fd int) error { return syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) }
