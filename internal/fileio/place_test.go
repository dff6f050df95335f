package fileio_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/testkit"
)

func TestPlaceKnowsAnInputByEveryName(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	testkit.Write(t, in("blobs/1"), []byte("content"))
	testkit.Write(t, in("model/sub/a"), []byte("content"))
	err := errors.Join(
		os.Symlink(in("blobs/1"), in("model/b")), // as in the hub's cache
		os.Link(in("model/sub/a"), in("hard")),
		os.Symlink(in("model"), in("alias")),
		os.Mkdir(in("other"), 0o777),
	)
	if err != nil {
		t.Fatal(err)
	}
	for out, want := range map[string]string{
		"model":           "is one of the inputs",
		"model/new":       "inside one",
		"model/sub/new":   "inside one",
		"model/sub/a":     "is one of the inputs",
		"alias":           "is one of the inputs",
		"alias/new":       "inside one",
		"other/../model":  "is one of the inputs",
		"blobs/1":         "is one of the inputs",
		"hard":            "is one of the inputs",
		".":               "which is one of the inputs",
		"other/new":       "",
		"blobs/new":       "",
		"model.lora":      "",
		"other/model.new": "",
	} {
		p := fileio.Place{Path: in(out), Replace: true, Inputs: []string{in("model"), "no path at all"}}
		err := p.Check()
		var refused *fileio.OutputError
		switch {
		case want == "" && err != nil:
			t.Errorf("Check(%s) = %v, want nil", out, err)
		case want != "" && (!errors.As(err, &refused) || !strings.Contains(err.Error(), want)):
			t.Errorf("Check(%s) = %v, want an *OutputError with %q", out, err, want)
		}
	}
}

func TestPlaceReplacesWhatItKnows(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	testkit.Write(t, path, []byte("old"))
	for _, c := range []struct {
		replace, known bool
		want           string // in the error; "" means none
		replaceable    bool
	}{
		{false, true, "already exists", true},
		{true, true, "", false},
		{true, false, "exists and is not a thing", false},
	} {
		p := fileio.Place{Path: path, Replace: c.replace, Known: func(string) bool { return c.known }, Kind: "a thing"}
		err := p.Check()
		if c.want == "" {
			if err != nil {
				t.Errorf("Check(%+v) = %v, want nil", c, err)
			}
			continue
		}
		var e *fileio.OutputError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) || e.Replaceable != c.replaceable || !errors.Is(err, fs.ErrExist) {
			t.Errorf("Check(%+v) = %v, want %q", c, err, c.want)
		}
	}
}

// TestPlaceStopsAtTheFirstForeignFile: the directory may hold all the user's files.
func TestPlaceStopsAtTheFirstForeignFile(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	testkit.Write(t, filepath.Join(out, "a"), []byte("ours"))
	known := 0
	p := fileio.Place{Path: out + string(filepath.Separator), IsDir: true, Replace: true, Files: []string{"a", "sub/b"}, Known: func(string) bool { known++; return true }}
	if err := p.Check(); err != nil || known != 1 {
		t.Errorf("Check of a directory with a file of the run = %v, want nil", err)
	}
	testkit.Write(t, filepath.Join(out, "sub", "b"), []byte("ours"))
	if err := p.Check(); err != nil {
		t.Errorf("Check of a directory with two files of the run = %v, want nil", err)
	}
	testkit.Write(t, filepath.Join(out, "sub", "foreign"), nil)
	testkit.Write(t, filepath.Join(out, "zzz"), nil)
	if err := p.Check(); err == nil || !strings.Contains(err.Error(), `contains "sub/foreign"`) {
		t.Errorf("Check of a directory with foreign files = %v, want an error that names the first", err)
	}
	empty := fileio.Place{Path: filepath.Join(dir, "empty"), IsDir: true, Replace: true}
	if err := os.Mkdir(empty.Path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := empty.Check(); err != nil {
		t.Errorf("Check of an empty directory = %v, want nil", err)
	}
	file := fileio.Place{Path: filepath.Join(out, "a") + string(filepath.Separator), IsDir: true, Replace: true}
	if err := file.Check(); err == nil || !strings.Contains(err.Error(), "is not a directory") {
		t.Errorf("Check of a file with a slash behind it = %v, want an error that it is not a directory", err)
	}
}

func TestPlaceNeedsRoom(t *testing.T) {
	p := fileio.Place{Path: filepath.Join(t.TempDir(), "out"), Bytes: 1 << 60}
	var e *fileio.SpaceError
	if err := p.Check(); !errors.As(err, &e) || !strings.Contains(err.Error(), "takes 1.15 EB") {
		t.Errorf("Check of an exabyte = %v, want a *SpaceError that says it", err)
	}
}
