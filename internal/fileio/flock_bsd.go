//go:build unix && !aix && !solaris

package fileio

import "syscall"

// flock locks a file for this process. It fails with EWOULDBLOCK if another process holds the lock.
// Tests replace it.
var flock = func(fd int) error { return syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) }
