package convert

import (
	"errors"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// SplitMember splits a path FILE#NAME, which names one adapter of a bundle. File names may contain
// a "#" themselves, so it returns a path that exists, or that has nothing before the "#", whole and
// with an empty name.
func SplitMember(path string) (file, name string) {
	if !fileio.IsAbsent(path) {
		return path, ""
	}
	for i := range len(path) {
		if path[i] != '#' || i == len(path)-1 {
			continue
		}
		if fileio.IsFile(path[:i]) {
			return path[:i], path[i+1:]
		}
	}
	return path, ""
}

// selectMember takes one adapter out of the bundle in file. On an error it closes src.
func selectMember(src format.Source, file, name string) (format.Source, error) {
	if a := src.Manifest().Adapters; len(a) == 1 && a[0].Name == "" {
		err := fault.New(fault.Mismatch, "the file holds a single adapter without a name, and none called %q", name).WithHint("give the path as %s", file)
		return nil, errors.Join(err.In(file), src.Close())
	}
	member, err := format.Select(src, name)
	if err != nil {
		return nil, errors.Join(fault.InFile(err, file), src.Close())
	}
	return member, nil
}
