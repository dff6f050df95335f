package fileio

import (
	"io"
	"os"
)

// copyBufferBytes is the piece that a plain copy moves at a time.
const copyBufferBytes = 1 << 18

// CopyRange copies n bytes of src from srcOff to dst at dstOff. From file to file the operating system does it where it
// can, without the bytes passing through the process, and shares blocks where the file system can.
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
