package convert

import (
	"path"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
)

// UnusualFile is a file in the folder of an adapter that an adapter does not need, or that can run
// code in programs that load it.
type UnusualFile struct {
	Name  string `json:"name"` // slash-separated, within the folder
	Bytes int64  `json:"bytes"`
	Kind  string `json:"kind"` // pickle, code, training state or weights
}

// The kinds of unusual files. A pickle runs code in programs that load it without care; this
// package reads pickles without running anything.
const (
	UnusualPickle   = "pickle"
	UnusualCode     = "code"
	UnusualTraining = "training state"
	UnusualWeights  = "weights"
)

// codeExt lists the endings of programs and libraries.
var codeExt = map[string]bool{
	".py": true, ".pyc": true, ".pyd": true, ".ipynb": true, ".sh": true, ".bat": true, ".cmd": true,
	".ps1": true, ".so": true, ".dll": true, ".dylib": true, ".exe": true, ".jar": true, ".js": true,
}

// UnusualFiles lists the unusual files in the folder of an opened adapter, in the order of their
// names; none for an adapter that was opened as a file. It goes by names and opens no file.
func UnusualFiles(src format.Source) (all []UnusualFile, err error) {
	s := openedOf(src)
	if s == nil || !s.in.isFolder() {
		return nil, nil
	}
	in := s.in
	places := []string{"."}
	if at := path.Dir(in.name); at != "." {
		places = append(places, at)
	}
	for _, dir := range places {
		entries, err := in.dir.List(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			kind := in.unusual(name)
			if kind == "" {
				continue
			}
			info, err := in.dir.Stat(name)
			if err != nil || !info.Mode().IsRegular() {
				continue // a broken link, or a directory
			}
			all = append(all, UnusualFile{name, info.Size(), kind})
		}
	}
	return all, nil
}

// unusual returns the kind of an unusual file, "" for any other.
func (in *Input) unusual(name string) string {
	kind := kindOf(name)
	switch {
	case codeExt[strings.ToLower(path.Ext(name))]:
		return UnusualCode
	case isTrainingState(path.Base(name)):
		return UnusualTraining
	case kind == pickleFile, kind == anyPickle:
		return UnusualPickle
	case kind != noWeights && !slices.Contains(in.weights.files, name):
		return UnusualWeights
	}
	return ""
}
