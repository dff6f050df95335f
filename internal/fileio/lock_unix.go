//go:build unix

package fileio

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

// tryLock locks the file or directory at path until the returned handle is closed or the process
// ends. ok is false if another process holds the lock or has removed path. The handle is nil if the
// file system cannot lock path, as NFS cannot lock a file open for reading. Then nothing is known
// about other processes, and nothing that might be theirs may be removed.
func tryLock(path string) (lock *os.File, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	if err := flock(int(f.Fd())); err != nil {
		f.Close()
		return nil, !errors.Is(err, syscall.EWOULDBLOCK)
	}
	// A sweep between our open and our lock has removed path.
	ours, err1 := f.Stat()
	there, err2 := os.Lstat(path)
	if err1 != nil || err2 != nil || !os.SameFile(ours, there) {
		f.Close()
		return nil, false
	}
	return f, true
}

// fileID names a file for its lifetime, across renames and reboots.
func fileID(info fs.FileInfo) string {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(uint64(st.Ino), 10)
	}
	return ""
}

// syncDir flushes the entries of a directory to disk. Some file systems do not support that, and
// need no flush. Tests replace it.
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
