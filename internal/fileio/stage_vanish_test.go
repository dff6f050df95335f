package fileio_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/testkit"
)

// TestAStageThatIsTamperedWithNeverAppears: another machine's sweep, or a user who tidies up, does
// such things.
func TestAStageThatIsTamperedWithNeverAppears(t *testing.T) {
	remove := func(path string) error { return os.RemoveAll(path) }
	for what, c := range map[string]struct {
		isDir  bool
		tamper func(s *fileio.Stage) error
	}{
		"a directory removed":             {true, func(s *fileio.Stage) error { return remove(s.Path("")) }},
		"a directory exchanged":           {true, func(s *fileio.Stage) error { return errors.Join(remove(s.Path("")), os.MkdirAll(s.Path("sub"), 0o777)) }},
		"a file in a directory removed":   {true, func(s *fileio.Stage) error { return remove(s.Path("sub/a")) }},
		"a directory in it removed":       {true, func(s *fileio.Stage) error { return remove(s.Path("sub")) }},
		"a file in a directory cut":       {true, func(s *fileio.Stage) error { return os.Truncate(s.Path("sub/a"), 1) }},
		"a file in a directory exchanged": {true, func(s *fileio.Stage) error { return exchanged(s.Path("sub/a")) }},
		"a file removed":                  {false, func(s *fileio.Stage) error { return remove(s.Path("")) }},
		"a file exchanged":                {false, func(s *fileio.Stage) error { return exchanged(s.Path("")) }},
		"a file cut":                      {false, func(s *fileio.Stage) error { return os.Truncate(s.Path(""), 1) }},
	} {
		parent := t.TempDir()
		s := begin(t, filepath.Join(parent, "out"), c.isDir)
		name := ""
		if c.isDir {
			name = "sub/a"
		}
		put(t, s, name, "content")
		if err := c.tamper(s); err != nil {
			t.Fatal(err)
		}
		if c.isDir { // the run goes on
			if f, err := s.Create("config.json", 2); err == nil {
				f.Close()
			}
		}
		var vanished *fileio.VanishedError
		if err := s.Commit(false); !errors.As(err, &vanished) {
			t.Errorf("%s: Commit = %v, want a *VanishedError", what, err)
		}
		s.Abort()
		if _, err := os.Lstat(filepath.Join(parent, "out")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: after Commit Lstat(out) = %v, want %v", what, err, fs.ErrNotExist)
		}
	}
}

// exchanged replaces a file by another with the same content.
func exchanged(path string) error {
	content, err := os.ReadFile(path)
	return errors.Join(err, os.Rename(path, path+".was"), os.WriteFile(path, content, 0o666))
}

func TestAStageIsNeverMadeAgain(t *testing.T) {
	parent := t.TempDir()
	for _, isDir := range []bool{false, true} {
		s := begin(t, filepath.Join(parent, "out"), isDir)
		if err := os.RemoveAll(s.Path("")); err != nil {
			t.Fatal(err)
		}
		name := ""
		if isDir {
			name = "sub/config.json"
		}
		var vanished *fileio.VanishedError
		if _, err := s.Create(name, 1); !errors.As(err, &vanished) {
			t.Errorf("Create in a stage that was removed (directory: %v) = %v, want a *VanishedError", isDir, err)
		}
		if names := entries(t, parent); len(names) != 0 {
			t.Errorf("after Create in a stage that was removed (directory: %v) there is %q, want nothing", isDir, names)
		}
	}
}

// TestTheStageOfAnotherMachineIsNotSwept: on a shared file system with local locks its run may be
// active.
func TestTheStageOfAnotherMachineIsNotSwept(t *testing.T) {
	for _, isDir := range []bool{false, true} {
		parent := t.TempDir()
		theirs := filepath.Join(parent, ".out.loratool-00000000-0123456789ab")
		if isDir {
			testkit.Write(t, filepath.Join(theirs, "a"), []byte("half"))
		} else {
			testkit.Write(t, theirs, []byte("half"))
		}
		before := testkit.Tree(t, parent)
		begin(t, filepath.Join(parent, "out"), isDir).Abort()
		if after := testkit.Tree(t, parent); len(after) != len(before) {
			t.Errorf("directory %v: after a run there is %v, want %v", isDir, after, before)
		}
	}
}

func TestSweepRemovesWhatNobodyHasWrittenToForLong(t *testing.T) {
	parent := t.TempDir()
	hour, now := time.Hour, time.Now()
	for name, age := range map[string]time.Duration{
		".a.loratool-00000000-1/sub/f": 3 * hour, ".b.loratool-00000000-1": 3 * hour, ".c.loratool-0123": 3 * hour,
		".young.loratool-00000000-1": hour, ".young2.loratool-00000000-1/sub/f": hour,
		".aside.loratool-00000000-1.old/f": 3 * hour, ".loratool-commit-00000000-1": 0, "plain": 3 * hour, ".hidden": 3 * hour,
	} {
		path := filepath.Join(parent, filepath.FromSlash(name))
		testkit.Write(t, path, []byte("x"))
		for ; path != parent; path = filepath.Dir(path) {
			if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
				t.Fatal(err)
			}
		}
	}
	alive := begin(t, filepath.Join(parent, "alive"), true)
	put(t, alive, "a", "x")
	before := entries(t, parent)
	want := []string{".a.loratool-00000000-1", ".b.loratool-00000000-1", ".c.loratool-0123"}
	for _, dryRun := range []bool{true, false} {
		names, err := fileio.Sweep(parent, 2*hour, dryRun)
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("Sweep(2h, dry run: %v) = %q, %v, want %q", dryRun, names, err, want)
		}
		if dryRun && !slices.Equal(entries(t, parent), before) {
			t.Errorf("a dry run left %q of %q", entries(t, parent), before)
		}
	}
	left := slices.DeleteFunc(before, func(name string) bool { return slices.Contains(want, name) })
	if got := entries(t, parent); !slices.Equal(got, left) {
		t.Errorf("after Sweep there is %q, want %q", got, left)
	}
}

// TestTheOldOutputIsRemovedWhenTheNewOneIsOnTheDisk checks when the directory of the place is
// flushed.
func TestTheOldOutputIsRemovedWhenTheNewOneIsOnTheDisk(t *testing.T) {
	parent := t.TempDir()
	testkit.Write(t, filepath.Join(parent, "out", "a"), []byte("old"))
	s := begin(t, filepath.Join(parent, "out"), true)
	put(t, s, "a", "new")
	var seen []string
	fileio.WithSyncDir(func(path string) {
		if path != parent {
			return
		}
		for _, text := range contents(t, parent) {
			seen = append(seen, text)
		}
	}, func() {
		if err := s.Commit(true); err != nil {
			t.Fatal(err)
		}
	})
	slices.Sort(seen)
	if !slices.Equal(seen, []string{"new", "old"}) {
		t.Errorf("when the directory was made durable it held %q, want the new and the old output", seen)
	}
	checkContents(t, "after Commit", parent, map[string]string{"out/a": "new"})
}

// TestAnOutputInPlaceIsSaidToBeThere: the flush of its directory fails after the move.
func TestAnOutputInPlaceIsSaidToBeThere(t *testing.T) {
	for _, replace := range []bool{false, true} {
		parent := t.TempDir()
		out, record := filepath.Join(parent, "out"), filepath.Join(parent, "record")
		if replace {
			testkit.Write(t, filepath.Join(out, "a"), []byte("old"))
			testkit.Write(t, record, []byte("old"))
		}
		stages := []*fileio.Stage{begin(t, out, true), begin(t, record, false)}
		put(t, stages[0], "a", "new")
		put(t, stages[1], "", "new")
		var err error
		fileio.WithSyncError(func(path string) error {
			if got, _ := os.ReadFile(record); path == parent && string(got) == "new" {
				return syscall.EIO
			}
			return nil
		}, func() { err = fileio.Commit(replace, stages...) })
		for _, s := range stages {
			s.Abort()
		}
		var placed *fileio.PlacedError
		if !errors.As(err, &placed) || !slices.Equal(placed.Paths, []string{out, record}) ||
			!errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "in place, but may not survive a power cut") {
			t.Errorf("Commit(%v) = %v, want a PlacedError for %s and %s", replace, err, out, record)
		}
		for _, path := range []string{filepath.Join(out, "a"), record} {
			if got, err := os.ReadFile(path); string(got) != "new" {
				t.Errorf("Commit(%v): %s holds %q (%v), want the new output", replace, path, got, err)
			}
		}
	}
}

func TestExpectRefusesNamesThatCannotBeTogether(t *testing.T) {
	for _, c := range []struct {
		names   []string
		noCase  bool
		refused string
	}{
		{[]string{"README.md", "readme.md"}, false, ""},
		{[]string{"README.md", "readme.md"}, true, `both "README.md" and "readme.md"`},
		{[]string{"sub/A", "SUB/a"}, true, `both "sub/A" and "SUB/a"`},
		{[]string{"STRASSE.txt", "straſſe.txt"}, true, "both"},
		{[]string{"a", "b"}, true, ""},
		{[]string{"a", "../b"}, false, `cannot hold "../b"`},
	} {
		s := begin(t, filepath.Join(t.TempDir(), "out"), true)
		var err error
		expect := func() { err = s.Expect(c.names) }
		if c.noCase {
			fileio.WithoutCase(expect)
		} else {
			expect()
		}
		var refused *fileio.OutputError
		if c.refused == "" && err != nil || c.refused != "" && (!errors.As(err, &refused) || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("Expect(%q, without case: %v) = %v, want %q", c.names, c.noCase, err, c.refused)
		}
	}
}

func TestPlaceKnowsTheOtherOutputsOfItsRun(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	if err := errors.Join(os.Mkdir(in("real"), 0o777), os.Symlink(in("real"), in("link"))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path    string
		refused bool
	}{
		{"real/out", true}, {"link/out", true}, {"link/../real/out/", true}, {"real/OUT", true}, {"real/out/record", true},
		{"real", true}, {"real/out.undo", false}, {"link/out.undo", false}, {"out", false},
	} {
		p := fileio.Place{Path: in(c.path), Replace: true, Known: func(string) bool { return true }, Apart: []string{in("real/out/")}}
		var refused *fileio.OutputError
		err := p.Check()
		if got := errors.As(err, &refused) && strings.Contains(err.Error(), "both are written by this run"); got != c.refused {
			t.Errorf("Check(%s beside link/out) = %v, want refused: %v", c.path, err, c.refused)
		}
	}
}
