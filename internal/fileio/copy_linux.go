package fileio

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// copyFileRange copies as much of the range as the system supports: nothing if the files or their
// file systems do not allow it. The caller copies the rest. Holes of the source become holes.
func copyFileRange(dst *os.File, dstOff int64, src *os.File, srcOff, n int64) (done int64, err error) {
	for done < n {
		data, length, err := extent(src, srcOff+done, n-done)
		if err != nil {
			return done, err
		}
		var k int64
		if data {
			k, err = copyData(dst, dstOff+done, src, srcOff+done, length)
		} else {
			k, err = punchHole(dst, dstOff+done, length)
		}
		done += k
		if err != nil || k < length {
			return done, err
		}
	}
	return done, nil
}

// extent returns how many of the n bytes at off are all data or all hole. Beyond the end of the
// file, and where the file system cannot tell, all bytes count as data.
func extent(f *os.File, off, n int64) (data bool, length int64, err error) {
	from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // no data from here to the end
		info, err := f.Stat()
		if err != nil {
			return false, 0, err
		}
		from = info.Size()
	} else if err != nil {
		return true, n, nil
	}
	if from > off {
		return false, min(n, from-off), nil
	}
	end, err := unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE)
	if err != nil || end <= off {
		return true, n, nil
	}
	return true, min(n, end-off), nil
}

// hasHoles reports whether a file holds less data than its size.
func hasHoles(f *os.File, size int64) bool {
	end, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	return err == nil && end < size
}

// HoleBytes returns the number of hole bytes in an open file. It returns 0 if the file system
// cannot tell, or if input is not a file.
func HoleBytes(input any) (n int64) {
	f, ok := input.(*os.File)
	if !ok {
		return 0
	}
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	for off := int64(0); off < info.Size(); {
		data, length, err := extent(f, off, info.Size()-off)
		if err != nil {
			return 0
		}
		if !data {
			n += length
		}
		off += length
	}
	return n
}

// copyData is copy_file_range(2).
func copyData(dst *os.File, dstOff int64, src *os.File, srcOff, n int64) (done int64, err error) {
	const most = 1 << 30 // the system call takes up to 2 GiB
	for done < n {
		from, to := srcOff+done, dstOff+done
		k, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(min(n-done, most)), 0)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case isFatal(err):
			return done, &os.PathError{Op: "copy_file_range", Path: dst.Name(), Err: err}
		case err != nil || k == 0: // unsupported for these files, or the source ended; a plain copy finds out
			return done, nil
		}
		done += int64(k)
	}
	return done, nil
}

// punchHole turns n bytes of a file into a hole and extends the file if needed. It returns 0 if the
// file system cannot.
func punchHole(f *os.File, off, n int64) (int64, error) {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if isFatal(err) {
		return 0, &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	if err != nil {
		return 0, nil
	}
	info, err := f.Stat()
	if err == nil && info.Size() < off+n {
		_, err = f.WriteAt([]byte{0}, off+n-1) // unlike Truncate, this cannot cut off a goroutine that writes farther on
	}
	return n, err
}

// isFatal reports whether any other way of copying would fail too.
func isFatal(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EIO)
}
