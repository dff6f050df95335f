//go:build unix

package fileio

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

// tryLock locks the file or directory at path until the handle that it returns is closed or the
// process ends; ok is false when another process holds the lock or has removed path. Where the file
// system has no locks for path, as NFS has none for a file that is open for reading, the handle is
// nil: nothing is known about other processes, and nothing that could be theirs may be removed.
func tryLock(path string) (lock *os.File, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	if err := flock(int(f.Fd())); err != nil {
		f.Close()
		return nil, !errors.Is(err, syscall.EWOULDBLOCK)
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

// fileID names a file as long as it exists, across renames and starts of the machine.
func fileID(info fs.FileInfo) string {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(uint64(st.Ino), 10)
	}
	return ""
}

// syncDir makes the entries of a directory durable. File systems that cannot say so. It is a
// variable for the tests.
var syncDir = func(path string) error {
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

func isNotSupported(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EBADF)
}
