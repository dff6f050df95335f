package fileio

import (
	"io/fs"
	"os"
	"time"

	"github.com/loratool/loratool/internal/fault"
)

// Identity recognises a file, and notices writes to it. The zero value stands for no file, and
// never changes.
type Identity struct {
	path string
	info fs.FileInfo
}

// Identify returns the identity of the file at path, following links.
func Identify(path string) (Identity, error) {
	info, err := os.Stat(path)
	return Identity{path, info}, err
}

// IsDir reports whether the identity is a directory's.
func (id Identity) IsDir() bool { return id.info != nil && id.info.IsDir() }

// IdentityOf returns the identity of an open file, or none for other inputs.
func IdentityOf(input any) (Identity, error) {
	f, ok := input.(*os.File)
	if !ok {
		return Identity{}, nil
	}
	info, err := f.Stat()
	return Identity{f.Name(), info}, err
}

// Check returns an error unless the same file is still at the path, without a write since.
func (id Identity) Check() error {
	if id.info == nil {
		return nil
	}
	why := ""
	now, err := os.Stat(id.path)
	switch {
	case err != nil:
		why = "it is gone"
	case !os.SameFile(now, id.info):
		why = "another file has taken its place"
	case now.Size() != id.info.Size():
		why = "its size was " + FormatBytes(id.info.Size()) + " and is " + FormatBytes(now.Size())
	case !now.ModTime().Equal(id.info.ModTime()):
		why = "it was written to at " + now.ModTime().Format(time.TimeOnly)
	case !changeTime(now).Equal(changeTime(id.info)):
		why = "its inode was changed at " + changeTime(now).Format(time.TimeOnly)
	default:
		return nil
	}
	return fault.New(fault.Mismatch, "the file changed while this run read it: %s", why).In(id.path).
		WithHint("run again when nothing else writes to it")
}

// Unchanged returns an error if a file behind input has changed since it was opened. Inputs without
// an identity count as unchanged.
func Unchanged(input any) error {
	if known, ok := input.(interface{ Unchanged() error }); ok {
		return known.Unchanged()
	}
	return nil
}

// Identities are the identities of several files.
type Identities []Identity

// Unchanged checks each of them, up to the first error.
func (ids Identities) Unchanged() error {
	for _, id := range ids {
		if err := id.Check(); err != nil {
			return err
		}
	}
	return nil
}
