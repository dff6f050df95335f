package fileio

import (
	"os"

	"golang.org/x/sys/unix"
)

// StartWriteback asks the system to start writing a file to disk, so that Close waits less. It is a
// hint, so errors are ignored.
func StartWriteback(f *os.File) {
	unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) // length 0 means the whole file
}
