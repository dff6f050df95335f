package fileio

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate reserves the blocks of a file of that size, where the file system can: writing then
// finds them there, and a full disk is known before anything is written.
func allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case isFatal(err):
			return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
		return nil // there, or the file system cannot; a size of 0 is not valid and needs none
	}
}
