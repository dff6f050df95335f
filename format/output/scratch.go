package output

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/loratool/loratool/internal/fileio"
)

// Scratch is a file for data that a run sets aside and writes out later. It grows as it is written,
// in any order and by several goroutines. Closing it removes it.
type Scratch interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// NewScratch returns scratch space on the same storage as an output. If out has a method Scratch()
// (Scratch, error), as Disk does, NewScratch calls it; otherwise the space is in memory. If out is
// nil, it is a temporary file in the system's directory for these ($TMPDIR on Unix).
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

// ScratchBeside returns scratch space in a hidden file beside path, the future place of an output.
// Only the user can read it. The next output in the same directory removes the file of a killed
// process.
func ScratchBeside(path string) (Scratch, error) {
	stage, err := fileio.NewStage(filepath.Clean(path)+".scratch", false)
	if err != nil {
		return nil, err
	}
	f, err := stage.CreateLike("", 0, fileio.Like{Mode: 0o600})
	if err != nil {
		stage.Abort()
		return nil, err
	}
	return &diskScratch{f, stage}, nil
}

// diskScratch is a file that is never committed.
type diskScratch struct {
	*fileio.File
	stage *fileio.Stage
}

func (s *diskScratch) Close() error {
	err := s.File.Close()
	s.stage.Abort()
	return err
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

// tempError tells the purpose of the file, because the user did not name it.
func tempError(err error) error {
	return fmt.Errorf("cannot write intermediate results to a temporary file in %s (set TMPDIR to move it): %w", fileio.TempDir(), err)
}
