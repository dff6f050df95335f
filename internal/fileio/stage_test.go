package fileio_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/testkit"
)

// begin starts a stage.
func begin(t *testing.T, final string, isDir bool) *fileio.Stage {
	t.Helper()
	s, err := fileio.NewStage(final, isDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Abort)
	return s
}

// put writes a file of a stage.
func put(t *testing.T, s *fileio.Stage, name, content string) {
	t.Helper()
	f, err := s.Create(name, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if err := fileio.Close(f); err != nil {
		t.Fatal(err)
	}
}

// contents reads every file below dir.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	names, err := fileio.Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	return files
}

func checkContents(t *testing.T, when, dir string, want map[string]string) {
	t.Helper()
	if got := contents(t, dir); !maps.Equal(got, want) {
		t.Errorf("%s: the files are %q, want %q", when, got, want)
	}
}

// entries lists the entries of dir.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestStageAppearsAtCommitOnly(t *testing.T) {
	for _, isDir := range []bool{false, true} {
		parent := t.TempDir()
		final := filepath.Join(parent, "out")
		s := begin(t, final, isDir)
		want := map[string]string{}
		if isDir {
			put(t, s, "a", "first")
			put(t, s, "sub/deeper/b", "second")
			put(t, s, "empty", "")
			want = map[string]string{"out/a": "first", "out/sub/deeper/b": "second", "out/empty": ""}
		} else {
			put(t, s, "", "content")
			want["out"] = "content"
		}
		if _, err := os.Lstat(final); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("before Commit: Lstat(out) = %v, want %v", err, fs.ErrNotExist)
		}
		if names := entries(t, parent); len(names) != 1 || !strings.HasPrefix(names[0], ".out.loratool-") {
			t.Errorf("before Commit: the directory holds %q, want one hidden name", names)
		}
		if err := s.Commit(false); err != nil {
			t.Fatal(err)
		}
		checkContents(t, "after Commit", parent, want)
		s.Abort()
		checkContents(t, "after Abort behind Commit", parent, want)
		if names := entries(t, parent); len(names) != 1 {
			t.Errorf("after Commit: the directory holds %q, want one name", names)
		}
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	for _, isDir := range []bool{false, true} {
		parent := t.TempDir()
		s := begin(t, filepath.Join(parent, "out"), isDir)
		if isDir {
			put(t, s, "sub/a", "content")
		} else {
			put(t, s, "", "content")
		}
		s.Abort()
		if names := entries(t, parent); len(names) > 0 {
			t.Errorf("after Abort of a stage (directory: %v): %q is there, want nothing", isDir, names)
		}
		s.Abort()
	}
}

func TestStageNeedsTheDirectoryAroundIt(t *testing.T) {
	parent := t.TempDir()
	testkit.Write(t, filepath.Join(parent, "file"), nil)
	for _, name := range []string{"absent/out", "file/out"} {
		if s, err := fileio.NewStage(filepath.Join(parent, filepath.FromSlash(name)), true); err == nil {
			s.Abort()
			t.Errorf("NewStage(%s) succeeded, want an error", name)
		}
	}
	checkContents(t, "after all", parent, map[string]string{"file": ""})
}

// TestWhatIsThereIsNotReplacedUnasked also covers outputs that appeared while the stage was built.
func TestWhatIsThereIsNotReplacedUnasked(t *testing.T) {
	for _, isDir := range []bool{false, true} {
		for there, put1 := range map[string]func(string) error{
			"a file":                func(path string) error { return os.WriteFile(path, []byte("old"), 0o666) },
			"a directory":           func(path string) error { return os.Mkdir(path, 0o777) },
			"a link that is broken": func(path string) error { return os.Symlink("nowhere", path) },
		} {
			parent := t.TempDir()
			final := filepath.Join(parent, "out")
			s := begin(t, final, isDir)
			if isDir {
				put(t, s, "a", "new")
			} else {
				put(t, s, "", "new")
			}
			if err := put1(final); err != nil {
				t.Fatal(err)
			}
			before := testkit.Tree(t, parent)["out"]
			if err := s.Commit(false); !errors.Is(err, fs.ErrExist) {
				t.Errorf("Commit over %s = %v, want %v", there, err, fs.ErrExist)
			}
			s.Abort()
			if got, want := testkit.Tree(t, parent), map[string]string{"out": before}; !maps.Equal(got, want) {
				t.Errorf("after Commit over %s: %q, want %q", there, got, want)
			}
		}
	}
}

func TestReplaceTakesTheOldAway(t *testing.T) {
	parent := t.TempDir()
	testkit.Write(t, filepath.Join(parent, "file"), []byte("old and longer"))
	testkit.Write(t, filepath.Join(parent, "dir", "a"), []byte("old"))
	testkit.Write(t, filepath.Join(parent, "dir", "sub", "b"), []byte("old"))
	f, d, fresh := begin(t, filepath.Join(parent, "file"), false), begin(t, filepath.Join(parent, "dir"), true), begin(t, filepath.Join(parent, "fresh"), true)
	put(t, f, "", "new")
	for _, name := range []string{"a", "sub/b", "c"} {
		put(t, d, name, "new")
	}
	put(t, fresh, "a", "new")
	for _, s := range []*fileio.Stage{f, d, fresh} {
		if err := s.Commit(true); err != nil {
			t.Fatal(err)
		}
	}
	checkContents(t, "after Commit", parent, map[string]string{"file": "new", "dir/a": "new", "dir/sub/b": "new", "dir/c": "new", "fresh/a": "new"})
	if names := entries(t, parent); len(names) != 3 {
		t.Errorf("the directory holds %q, want three names", names)
	}
}

func TestReplaceTakesTheOldAwayInSteps(t *testing.T) {
	fileio.WithoutExchange(func() { TestReplaceTakesTheOldAway(t) })
}

// TestWhatAKilledRunHadTakenAwayIsRestored: the place is as a run leaves it that dies between the
// two renames of a replacement.
func TestWhatAKilledRunHadTakenAwayIsRestored(t *testing.T) {
	for _, left := range []string{"both the old and the new", "the old alone"} {
		parent := t.TempDir()
		final := filepath.Join(parent, "out")
		testkit.Write(t, filepath.Join(parent, ".out.loratool-0123.old", "a"), []byte("precious"))
		if left != "the old alone" {
			testkit.Write(t, filepath.Join(parent, ".out.loratool-0123", "a"), []byte("new"))
		}
		s, err := fileio.NewStage(final, true)
		var e *fileio.OutputError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), "has been restored") {
			t.Errorf("%s: NewStage = %v, want an *OutputError that says what was done", left, err)
		}
		if err == nil {
			s.Abort()
		}
		if got := contents(t, parent)["out/a"]; got != "precious" {
			t.Errorf("%s: out/a is %q, want what was there before the killed run", left, got)
		}
		s = begin(t, final, true) // the next run finds it there
		put(t, s, "a", "newer")
		if err := s.Commit(true); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, parent)["out/a"]; got != "newer" {
			t.Errorf("%s: after the next run out/a is %q, want what that has written", left, got)
		}
	}
}

func TestWhatAKilledRunHadTakenAwayIsRestoredBeforeTheNextOneWorks(t *testing.T) {
	parent := t.TempDir()
	testkit.Write(t, filepath.Join(parent, ".out.loratool-0123.old", "a"), []byte("precious"))
	p := fileio.Place{Path: filepath.Join(parent, "out") + "/", IsDir: true, Files: []string{"a"}}
	if err := p.Check(); err == nil || !strings.Contains(err.Error(), "has been restored") {
		t.Errorf("Check = %v, want an error that says what was done", err)
	}
	checkContents(t, "after Check", parent, map[string]string{"out/a": "precious"})
}

// TestWhatAKilledRunHadTakenAwayIsNeverDeleted: another output has taken the place meanwhile.
func TestWhatAKilledRunHadTakenAwayIsNeverDeleted(t *testing.T) {
	parent := t.TempDir()
	testkit.Write(t, filepath.Join(parent, ".out.loratool-0123.old", "a"), []byte("precious"))
	testkit.Write(t, filepath.Join(parent, "out", "a"), []byte("other"))
	s := begin(t, filepath.Join(parent, "out"), true)
	s.Abort()
	checkContents(t, "after a run", parent, map[string]string{".out.loratool-0123.old/a": "precious", "out/a": "other"})
}

func TestReplaceRefusesADirectoryWithForeignFiles(t *testing.T) {
	for _, name := range []string{"thesis.tex", "sub/thesis.tex", ".hidden"} {
		parent := t.TempDir()
		final := filepath.Join(parent, "out")
		testkit.Write(t, filepath.Join(final, "a"), []byte("old"))
		testkit.Write(t, filepath.Join(final, filepath.FromSlash(name)), []byte("precious"))
		s := begin(t, final, true)
		put(t, s, "a", "new")
		if err := s.Commit(true); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Commit over a directory with %s = %v, want an error that names it", name, err)
		}
		s.Abort()
		checkContents(t, "after Commit", parent, map[string]string{"out/a": "old", "out/" + name: "precious"})
	}
}

func TestAnotherNameIsNotSwept(t *testing.T) {
	parent := t.TempDir()
	want := map[string]string{}
	for _, name := range []string{".out2.loratool-0123", ".ou.loratool-0123", "out.loratool-0123", ".out.loratool", ".out"} {
		testkit.Write(t, filepath.Join(parent, name), []byte("mine"))
		want[name] = "mine"
	}
	s := begin(t, filepath.Join(parent, "out"), true)
	s.Abort()
	checkContents(t, "after a run", parent, want)
}
