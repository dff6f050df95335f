package fileio

import (
	"bytes"
	"io"
	"os"
)

// copyBufferBytes is the piece that a plain copy moves at a time.
const copyBufferBytes = 1 << 18

// CopyRange copies n bytes of src from srcOff to dst at dstOff. From file to file the operating
// system does it where it can, without the bytes passing through the process, and shares blocks
// where the file system can.
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

// WriteNonzero writes p to f at off, where the file has never been written and reads as zeros.
// Whole pages of zeros are left out, so that a file with holes keeps them.
func WriteNonzero(f *os.File, p []byte, off int64) error {
	first := 0 // of the bytes to write before those at i
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

func writeUnlessEmpty(f *os.File, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	_, err := f.WriteAt(p, off)
	return err
}

// pageBytes is how finely file systems keep holes.
const pageBytes = 4096

var zeros [pageBytes]byte

func allZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }
