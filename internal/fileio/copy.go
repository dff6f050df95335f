package fileio

import (
	"bytes"
	"io"
	"os"
)

// copyBufferBytes is the buffer size of a plain copy.
const copyBufferBytes = 1 << 18

// CopyRange copies n bytes of src from srcOff to dst at dstOff. Between files the operating system
// copies without moving the bytes through the process, and shares blocks if the file system
// supports it.
func CopyRange(dst *os.File, dstOff int64, src io.ReaderAt, srcOff, n int64) error {
	if f, ok := src.(*os.File); ok {
		done, err := copyFileRange(dst, dstOff, f, srcOff, n)
		if err != nil {
			return err
		}
		dstOff, srcOff, n = dstOff+done, srcOff+done, n-done
	}
	buf := make([]byte, min(n, copyBufferBytes))
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		if _, err := io.ReadFull(io.NewSectionReader(src, srcOff, int64(len(p))), p); err != nil {
			return err
		}
		if _, err := dst.WriteAt(p, dstOff); err != nil {
			return err
		}
		k := int64(len(p))
		dstOff, srcOff, n = dstOff+k, srcOff+k, n-k
	}
	return nil
}

// WriteNonzero writes p to f at off, in a region never written before, which reads as zeros. It
// skips whole pages of zeros, so holes stay holes.
func WriteNonzero(f *os.File, p []byte, off int64) error {
	first := 0 // start of the bytes to write before i
	for i := 0; i < len(p); {
		end := min(len(p), i+int(pageBytes-(off+int64(i))%pageBytes))
		if allZero(p[i:end]) {
			if err := writeUnlessEmpty(f, p[first:i], off+int64(first)); err != nil {
				return err
			}
			first = end
		}
		i = end
	}
	return writeUnlessEmpty(f, p[first:], off+int64(first))
}

// writeUnlessEmpty skips the system call for an empty run between two pages of zeros.
func writeUnlessEmpty(f *os.File, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	_, err := f.WriteAt(p, off)
	return err
}

// pageBytes is the granularity of holes.
const pageBytes = 4096

var zeros [pageBytes]byte

func allZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }
