package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fileio"
)

// unknown returns the error for an unknown name, with the nearest known one.
func unknown(what, name string, known []string, hint string) error {
	if near := nearest(name, known); near != "" {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	return usagef(hint, "unknown %s %q", what, name)
}

// nearest returns the known name closest to name, at most one edit in three letters away, or "".
func nearest(name string, known []string) string {
	best, least := "", (len(strings.TrimLeft(name, "-"))+2)/3+1
	for _, k := range known {
		if d := edits(strings.TrimLeft(name, "-"), strings.TrimLeft(k, "-")); d < least {
			best, least = k, d
		}
	}
	return best
}

// edits counts the insertions, deletions, substitutions and swaps of neighbours that turn a into b
// (optimal string alignment distance).
func edits(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range len(b) {
		d[0][j+1] = j + 1
	}
	for i := range len(a) {
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			d[i+1][j+1] = min(d[i][j+1]+1, d[i+1][j]+1, d[i][j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d[i+1][j+1] = min(d[i+1][j+1], d[i-1][j-1]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// absentError reports a path of the command line that does not exist.
type absentError struct {
	error
	role, path string // the role is a word of the command's usage, such as BASE
}

func (e absentError) Error() string {
	return e.role + " " + strconv.Quote(e.path) + " does not exist"
}

func (e absentError) Unwrap() error { return e.error }

// hint suggests the nearest name in the same directory.
func (e absentError) hint() string {
	dir, name := filepath.Split(filepath.Clean(e.path))
	if dir == "" {
		dir = "."
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if near := nearest(name, names); near != "" {
		return "did you mean " + filepath.Join(dir, near) + "?"
	}
	return ""
}

// named adds the role of a path to the error that the path does not exist.
func (t *terminal) named(err error) error {
	var path *fs.PathError
	if !errors.As(err, &path) || !errors.Is(err, fs.ErrNotExist) || isHubName(path.Path) || fileio.IsInterrupted(path.Path) {
		return err
	}
	role, ok := t.roles[filepath.Clean(path.Path)]
	if _, statErr := os.Lstat(path.Path); !ok || !errors.Is(statErr, fs.ErrNotExist) {
		return err
	}
	return absentError{err, role, path.Path}
}

// rolesOf finds the roles of the paths of a command line, by the usage of the command, such as
// "BASE ADAPTER... -o OUT", and by the names of flags.
func rolesOf(usage string, flags, args []string) map[string]string {
	roles := make(map[string]string)
	words := strings.Fields(usage)
	for i, arg := range args {
		role := "path"
		for k, word := range words {
			if strings.HasPrefix(word, "-") || strings.HasPrefix(word, "[") {
				break
			}
			if k <= i {
				role = strings.TrimSuffix(word, "...")
			}
		}
		roles[filepath.Clean(arg)] = role
	}
	for _, flag := range flags {
		if name, value, ok := strings.Cut(flag, "="); ok && name != "--out" && name != "--o" && value != "" {
			roles[filepath.Clean(value)] = name
		}
	}
	return roles
}
