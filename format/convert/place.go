package convert

import (
	"io"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// place is a directory that may hold an adapter.
type place struct {
	dir          fileio.Dir
	own, ownPath string // the file that the user named, and the path as given
}

func onDisk(dir string) place { return place{dir: fileio.OnDisk(dir)} }

// path returns the path of a file for messages; "." stands for the directory.
func (p place) path(name string) string {
	if name == p.own && name != "" {
		return p.ownPath
	}
	return p.dir.Path(name)
}

func (p place) exists(name string) bool {
	_, err := p.dir.Stat(name)
	return err == nil
}

func (p place) isFile(name string) bool {
	info, err := p.dir.Stat(name)
	return err == nil && !info.IsDir()
}

// startOf returns the first bytes of a file, at most n.
func startOf(f *fileio.Input, n int64) ([]byte, error) {
	p := make([]byte, min(f.Size, n))
	_, err := io.ReadFull(io.NewSectionReader(f, 0, f.Size), p)
	return p, err
}

// readFull fills p with the bytes of a file from offset off.
func readFull(f *fileio.Input, p []byte, off int64) error {
	_, err := io.ReadFull(io.NewSectionReader(f, off, int64(len(p))), p)
	return fault.InFile(err, f.Path)
}
