//go:build unix

package fileio

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// writable returns the reason why this process cannot create a file in dir, as far as the system
// tells beforehand.
func writable(dir string) error {
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "write to", Path: dir, Err: err}
	}
	return nil
}
