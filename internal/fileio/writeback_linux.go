package fileio

import (
	"os"

	"golang.org/x/sys/unix"
)

// StartWriteback asks the system to begin writing a range of a file to the disk, so that less is left for Close to wait for.
// It is a hint: what it returns is of no interest.
func StartWriteback(f *os.File, off, n int64) {
	unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}
