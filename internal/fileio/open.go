package fileio

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/loratool/loratool/internal/fault"
)

// Open opens the regular file at path for reading and returns its size. It refuses everything else
// before opening it: opening a pipe waits for a writer, a device may have no end, and neither can
// be read by position. The caller closes the file.
func Open(path string) (*os.File, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, notRegular(path, info.Mode())
	}
	// The file can be exchanged between the check and the opening.
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

// ReadFile returns the content of the regular file at path, at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, size, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fault.New(fault.Limit, "the file has %d bytes, the limit is %d", size, limit).In(path)
	}
	content := make([]byte, size)
	if _, err := io.ReadFull(f, content); err != nil {
		return nil, fault.InFile(err, path)
	}
	return content, nil
}

// notRegular returns an error that names the kind of file at path.
func notRegular(path string, mode fs.FileMode) error {
	kind := "it is of an unknown kind"
	hint := "give the path of a file"
	switch {
	case mode.IsDir():
		kind = "it is a directory"
	case mode&fs.ModeNamedPipe != 0:
		kind, hint = "it is a pipe", "write its content to a file first, and give that file"
	case mode&fs.ModeSocket != 0:
		kind = "it is a socket"
	case mode&fs.ModeDevice != 0:
		kind = "it is a device"
	}
	return fault.New(fault.Unsupported, "not a regular file: %s", kind).In(path).WithHint("%s", hint)
}

// IsFile reports whether path leads to something other than a directory.
func IsFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}

// IsAbsent reports whether nothing is at path.
func IsAbsent(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// IsName reports whether a file or directory can have this name on every system, without being
// hidden. Names that a system keeps for devices are the affair of a stage (Stage.Expect).
func IsName(name string) bool {
	return name != "" && name[0] != '.' && !strings.ContainsAny(name, `/\:`)
}
