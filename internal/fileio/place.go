package fileio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Place is the future path of an output, with the conditions for writing there.
type Place struct {
	Path    string
	IsDir   bool     // the output is a directory
	Replace bool     // an existing output may be replaced, if Known knows it
	Inputs  []string // paths that the run reads; directories include everything below them; entries that are not paths are ignored
	Files   []string // files that the run writes into the directory, with slashes
	Apart   []string // other outputs of the run; none may be this one, contain it, or lie in it

	Known func(path string) bool // reports whether path holds a replaceable kind of output; never called for an empty directory
	Kind  string                 // the kind that Known accepts, such as "a checkpoint"
	Bytes int64                  // least size of the output; 0 means unknown
}

// OutputError is an output path that cannot be used as the caller wants. It wraps fs.ErrExist if
// the path exists.
type OutputError struct {
	Path, Why   string
	Replaceable bool // Replace would allow it
	Exists      bool
}

func (e *OutputError) Error() string { return fmt.Sprintf("output %s %s", e.Path, e.Why) }

func (e *OutputError) Unwrap() error {
	if e.Exists {
		return fs.ErrExist
	}
	return nil
}

// SpaceError is a disk without enough room, found before anything is written.
type SpaceError struct {
	Path       string
	Need, Free int64
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("the output takes %s and %s has %s free", FormatBytes(e.Need), e.Path, FormatBytes(e.Free))
}

// Check reports whether the output can be made, before any work: it is not an input, nothing
// irreplaceable is there, and its directory exists, is writable, and has room. First, Check
// restores an output that an interrupted run had moved aside, and returns an error for that, as the
// caller has not seen it. The error is an *OutputError, a *SpaceError or a system error.
func (p *Place) Check() error {
	out, err := realPath(p.Path)
	if err != nil {
		return err
	}
	parent, err := realPath(filepath.Dir(filepath.Clean(p.Path))) // a link itself would be replaced, not its target
	if err != nil {
		return err
	}
	for _, in := range p.Inputs {
		if err := p.checkInput(parent, out, in); err != nil {
			return err
		}
	}
	for _, other := range p.Apart {
		if err := p.checkApart(parent, other); err != nil {
			return err
		}
	}
	if info, err := os.Stat(parent); err != nil || !info.IsDir() {
		return &OutputError{Path: p.Path, Why: "cannot be made: there is no directory " + parent}
	}
	if err := p.finish(parent); err != nil {
		return err
	}
	if err := restore(parent, filepath.Base(filepath.Clean(p.Path))); err != nil {
		return err
	}
	if err := p.checkThere(); err != nil {
		return err
	}
	if err := writable(parent); err != nil {
		return err
	}
	if free, err := FreeBytes(parent); err == nil && free < p.Bytes {
		return &SpaceError{Path: parent, Need: p.Bytes, Free: free}
	}
	return nil
}

// checkInput refuses an output that is an input, lies in one, or contains one, under any name.
func (p *Place) checkInput(parent, out, in string) error {
	read, err := os.Stat(in)
	if err != nil {
		return nil
	}
	refused := &OutputError{Path: p.Path, Why: "is one of the inputs, or inside one"}
	if isWithin(out, read) || isWithin(parent, read) {
		return refused
	}
	there, err := os.Stat(out)
	if err != nil {
		return nil
	}
	real, err := filepath.EvalSymlinks(in)
	if err != nil {
		return err
	}
	if there.IsDir() {
		if isWithin(real, there) {
			return &OutputError{Path: p.Path, Why: "contains " + in + ", which is one of the inputs"}
		}
		return nil
	}
	// The output is a file; a link below the input, symbolic or hard, may lead to it.
	return filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // the output can be read, so an unreadable file is not the output
		}
		if file, err := os.Stat(path); err == nil && os.SameFile(file, there) {
			return refused
		}
		return nil
	})
}

// checkApart refuses an output that is, contains, or lies in another output of the run, through any
// links. Names that differ only in case count as one, since some systems ignore case and no pair of
// outputs needs both.
func (p *Place) checkApart(parent, other string) error {
	theirs, err := realPath(filepath.Dir(filepath.Clean(other)))
	if err != nil {
		return err
	}
	us := strings.ToLower(filepath.Join(parent, filepath.Base(filepath.Clean(p.Path))) + string(filepath.Separator))
	them := strings.ToLower(filepath.Join(theirs, filepath.Base(filepath.Clean(other))) + string(filepath.Separator))
	if strings.HasPrefix(us, them) || strings.HasPrefix(them, us) {
		return &OutputError{Path: p.Path, Why: "overlaps " + other + ", and both are written by this run"}
	}
	return nil
}

// finish completes the moves of an interrupted run. It returns an error that says so, unless the
// caller asked to replace.
func (p *Place) finish(parent string) error {
	done, err := finish(parent)
	if err != nil || p.Replace || !slices.Contains(done, filepath.Join(parent, filepath.Base(filepath.Clean(p.Path)))) {
		return err
	}
	return &OutputError{Path: p.Path, Why: "was left incomplete by an interrupted run and has been completed; run again to replace it", Exists: true, Replaceable: true}
}

// isWithin reports whether path is the given file or directory, or below it.
func isWithin(path string, of fs.FileInfo) bool {
	for {
		if info, err := os.Stat(path); err == nil && os.SameFile(info, of) {
			return true
		}
		parent := filepath.Dir(path)
		if parent == path {
			return false
		}
		path = parent
	}
}

// checkThere checks an existing file or directory at the output's path.
func (p *Place) checkThere() error {
	info, err := os.Lstat(filepath.Clean(p.Path)) // a trailing slash would follow a link, and fail after a file
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return &OutputError{Path: p.Path, Why: fmt.Sprintf(format, args...), Exists: true}
	}
	if !p.Replace {
		return &OutputError{Path: p.Path, Why: "already exists", Replaceable: true, Exists: true}
	}
	if info.IsDir() != p.IsDir {
		want := "a file"
		if p.IsDir {
			want = "a directory"
		}
		return refuse("exists and is not %s, so it is not replaced", want)
	}
	if info.IsDir() {
		if isEmpty, err := p.checkForeign(); err != nil || isEmpty {
			return err
		}
	}
	if !p.Known(p.Path) {
		return refuse("exists and is not %s, so it is not replaced", p.Kind)
	}
	return nil
}

// checkForeign finds a file in the directory that the run does not write. It stops at the first:
// the directory may be huge.
func (p *Place) checkForeign() (isEmpty bool, err error) {
	isEmpty = true
	err = filepath.WalkDir(p.Path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return nil
		}
		isEmpty = false
		name, relErr := filepath.Rel(p.Path, path)
		if relErr != nil {
			return relErr
		}
		if name = filepath.ToSlash(name); err != nil || !slices.Contains(p.Files, name) { // an unreadable file is not ours either
			return foreignError(p.Path, name)
		}
		return nil
	})
	return isEmpty, err
}

// foreignError is the error for a directory with a file that the run does not write.
func foreignError(dir, name string) error {
	return &OutputError{Path: dir, Why: fmt.Sprintf("contains %q, which this run does not write, so it is not replaced", name), Exists: true}
}

// realPath follows links as far as the path exists.
func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		return filepath.Join(parent, filepath.Base(abs)), nil
	}
	return abs, nil
}

// FormatBytes formats a size with three digits and a decimal unit.
func FormatBytes(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	x, i := float64(n), 0
	for x >= 999.5 && i < len(units)-1 {
		x, i = x/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.3g %s", x, units[i])
}
