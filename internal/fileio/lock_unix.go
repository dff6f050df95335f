//go:build unix

package fileio

import (
	"os"
	"syscall"
)

// tryLock locks the file or directory at path until the handle that it returns is closed or the process ends; ok is
// false when another process holds the lock or has removed path.
func tryLock(path string) (lock *os.File, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil && err != syscall.ENOTSUP && err != syscall.ENOSYS {
		f.Close()
		return nil, false
	}
	// Whoever swept path between our open and our lock has removed it.
	ours, err1 := f.Stat()
	there, err2 := os.Lstat(path)
	if err1 != nil || err2 != nil || !os.SameFile(ours, there) {
		f.Close()
		return nil, false
	}
	return f, true
}

// syncDir makes the entries of a directory durable. File systems that cannot say so.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !isNotSupported(err) {
		return err
	}
	return nil
}
