package fileio

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// copyFileRange copies as much of the range as copy_file_range(2) will, which is none where the two files or their file
// systems do not allow it; the caller copies the rest.
func copyFileRange(dst *os.File, dstOff int64, src *os.File, srcOff, n int64) (done int64, err error) {
	const most = 1 << 30 // the system call takes up to 2 GiB
	for done < n {
		from, to := srcOff+done, dstOff+done
		k, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(min(n-done, most)), 0)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EIO):
			return done, &os.PathError{Op: "copy_file_range", Path: dst.Name(), Err: err}
		case err != nil || k == 0: // not possible between these files, or the source ended: a plain copy tells which
			return done, nil
		}
		done += int64(k)
	}
	return done, nil
}
