package fileio

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate reserves the blocks of a file of the given size, if the file system can. A full disk
// then shows before anything is written.
func allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case isFatal(err):
			return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
		return nil // reserved, or unsupported; size 0 is invalid and needs nothing
	}
}
