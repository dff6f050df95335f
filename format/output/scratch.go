package output

import (
	"fmt"
	"io"

	"github.com/loratool/loratool/internal/fileio"
)

// Scratch is a file for data that a run puts aside until it can write them. It grows as it is
// written, in any order and from several goroutines, and is gone when it is closed.
type Scratch interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// NewScratch returns scratch space where an output has room for it: if out has a method
// Scratch() (Scratch, error), as Disk does, what that returns, and else memory. Without an output
// it is a temporary file where the system keeps these ($TMPDIR on Unix).
func NewScratch(out Output) (Scratch, error) {
	if out == nil {
		f, err := fileio.NewTemp()
		if err != nil {
			return nil, tempError(err)
		}
		return tempScratch{f}, nil
	}
	if s, ok := out.(interface{ Scratch() (Scratch, error) }); ok {
		return s.Scratch()
	}
	return new(memoryFile), nil
}

// tempScratch is scratch space without an output.
type tempScratch struct{ *fileio.Temp }

func (s tempScratch) WriteAt(p []byte, off int64) (int, error) {
	n, err := s.Temp.WriteAt(p, off)
	if err != nil {
		err = tempError(err)
	}
	return n, err
}

// tempError adds the purpose of the file, which the user did not name.
func tempError(err error) error {
	return fmt.Errorf("cannot put results aside in a temporary file in %s (set TMPDIR to move it): %w", fileio.TempDir(), err)
}
