package fileio

import (
	"io"
	"io/fs"
	"os"

	"github.com/loratool/loratool/internal/fault"
)

// Open opens the regular file at path for reading, and returns its size. Anything else is refused
// before it is opened: opening a pipe waits until somebody writes to it, a device may have no end,
// and neither can be read by position. The caller closes the file.
func Open(path string) (*os.File, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, notRegular(path, info.Mode())
	}
	// Between the look and the opening the file can be exchanged.
	f, err := os.OpenFile(path, os.O_RDONLY|withoutWaiting, 0)
	if err != nil {
		return nil, 0, err
	}
	if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
		err = notRegular(path, info.Mode())
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// ReadFile returns the content of the regular file at path, which may have at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, size, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fault.New(fault.Limit, "%d bytes, at most %d are read", size, limit).In(path)
	}
	content := make([]byte, size)
	if _, err := io.ReadFull(f, content); err != nil {
		return nil, fault.InFile(err, path)
	}
	return content, nil
}

// notRegular says what is at path in place of a file.
func notRegular(path string, mode fs.FileMode) error {
	what := "it is of another kind"
	hint := "give the path of a file"
	switch {
	case mode.IsDir():
		what = "it is a directory"
	case mode&fs.ModeNamedPipe != 0:
		what, hint = "it is a pipe", "it is read by position: write it to a file first, and give that"
	case mode&fs.ModeSocket != 0:
		what = "it is a socket"
	case mode&fs.ModeDevice != 0:
		what = "it is a device"
	}
	return fault.New(fault.Unsupported, "not a regular file: %s", what).In(path).WithHint("%s", hint)
}
