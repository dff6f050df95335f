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

// Place is where an output is to appear, and what decides whether it may.
type Place struct {
	Path    string
	IsDir   bool     // a directory is to appear, not a file
	Replace bool     // what is there may be replaced, if Known knows it
	Inputs  []string // what the run reads, of a directory everything below; what is no path is passed over
	Files   []string // of a directory: the files that the run writes, with slashes
	Apart   []string // other outputs of the run, which this one may not be, hold, or lie in

	Known func(path string) bool // reports whether what is there is of the kind that may be replaced; never called for an empty directory
	Kind  string                 // what Known knows, such as "a checkpoint"
	Bytes int64                  // that the output takes at least; 0 is not known
}

// OutputError is an output path that cannot be used as the caller wants. One that is taken wraps
// fs.ErrExist.
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

// SpaceError is a disk that is too full, found out before anything is written.
type SpaceError struct {
	Path       string
	Need, Free int64
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("the output takes %s and %s has %s free", FormatBytes(e.Need), e.Path, FormatBytes(e.Free))
}

// Check reports whether the output can be made, before work is done for it: it is not one of the
// inputs, nothing is there that may not be replaced, and the directory around it is there, can be
// written to, and has room. What a run that was ended has taken away from the place is put back
// first, and that is an error, as the caller has not seen it. The error is an *OutputError, a
// *SpaceError or one of the system.
func (p *Place) Check() error {
	out, err := realPath(p.Path)
	if err != nil {
		return err
	}
	parent, err := realPath(filepath.Dir(filepath.Clean(p.Path))) // where a link would be replaced, not where it leads to
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

// checkInput refuses an output that is an input or lies in one, or that an input lies in, whatever
// the names by which they are called.
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
			return &OutputError{Path: p.Path, Why: "holds " + in + ", which is one of the inputs"}
		}
		return nil
	}
	// The output is a file: a link, of either kind, may lead from it to a file below the input.
	return filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // what cannot be read is not what the output leads to
		}
		if file, err := os.Stat(path); err == nil && os.SameFile(file, there) {
			return refused
		}
		return nil
	})
}

// checkApart refuses an output that is, holds, or lies in another one of the same run, by whatever
// links its directory is called. Names that differ only in case are one on some systems, and no
// pair of outputs needs them.
func (p *Place) checkApart(parent, other string) error {
	theirs, err := realPath(filepath.Dir(filepath.Clean(other)))
	if err != nil {
		return err
	}
	us := strings.ToLower(filepath.Join(parent, filepath.Base(filepath.Clean(p.Path))) + string(filepath.Separator))
	them := strings.ToLower(filepath.Join(theirs, filepath.Base(filepath.Clean(other))) + string(filepath.Separator))
	if strings.HasPrefix(us, them) || strings.HasPrefix(them, us) {
		return &OutputError{Path: p.Path, Why: "is " + other + ", or inside it, or around it, and both are written by this run"}
	}
	return nil
}

// finish completes what an interrupted run had not moved to its place, and says so to whoever has
// not asked to replace it.
func (p *Place) finish(parent string) error {
	done, err := finish(parent)
	if err != nil || p.Replace || !slices.Contains(done, filepath.Join(parent, filepath.Base(filepath.Clean(p.Path)))) {
		return err
	}
	return &OutputError{Path: p.Path, Why: "was written by a run that was interrupted before all of its files were in their places; they are now", Exists: true, Replaceable: true}
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

// checkThere judges what is at the place of the output.
func (p *Place) checkThere() error {
	info, err := os.Lstat(filepath.Clean(p.Path)) // a slash at the end would follow a link, and be an error behind a file
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
		return &OutputError{Path: p.Path, Why: "exists already", Replaceable: true, Exists: true}
	}
	if info.IsDir() != p.IsDir {
		want := "a file"
		if p.IsDir {
			want = "a directory"
		}
		return refuse("is there and is not %s: it is not replaced", want)
	}
	if info.IsDir() {
		if isEmpty, err := p.checkForeign(); err != nil || isEmpty {
			return err
		}
	}
	if !p.Known(p.Path) {
		return refuse("is there and is not %s: it is not replaced", p.Kind)
	}
	return nil
}

// checkForeign looks for the first file in the directory that the run does not write, and no
// further: the directory may be any.
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
		if name = filepath.ToSlash(name); err != nil || !slices.Contains(p.Files, name) { // what cannot be read is not ours either
			return foreignError(p.Path, name)
		}
		return nil
	})
	return isEmpty, err
}

// foreignError is that of a directory that holds a file which the run does not write.
func foreignError(dir, name string) error {
	return &OutputError{Path: dir, Why: fmt.Sprintf("holds %q, which this run does not write, and is not replaced", name), Exists: true}
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

// FormatBytes is a size as people say it: three digits and a decimal unit.
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
