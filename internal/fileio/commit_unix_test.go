//go:build unix

package fileio_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/testkit"
)

// commitEnv turns this test binary into a process that commits the outputs of a case in the named
// directory, and dies before a change of names.
const commitEnv = "LORATOOL_TEST_COMMIT"

// commitCase is a commit of several outputs. A name with a slash is a file of an output directory;
// after @ it is an output itself.
type commitCase struct {
	outputs    []string // in the order of the commit
	isThere    bool     // old outputs exist
	noExchange bool
}

var commitCases = map[string]commitCase{
	"an adapter for an old one":                         {outputs: []string{"config", "card", "weights"}, isThere: true},
	"a new adapter":                                     {outputs: []string{"config", "card", "weights"}},
	"a checkpoint and its record for old ones":          {outputs: []string{"out/a", "record"}, isThere: true},
	"a checkpoint and its record, without an exchange":  {outputs: []string{"out/a", "record"}, isThere: true, noExchange: true},
	"a new checkpoint and its record":                   {outputs: []string{"out/a", "record"}},
	"a file with weights and its record for old ones":   {outputs: []string{"out", "record"}, isThere: true},
	"a checkpoint with its record in another directory": {outputs: []string{"out/a", "@other/record"}, isThere: true},
	"a new one with its record in another directory":    {outputs: []string{"out/a", "@other/record"}},
}

// commitAndDie is that process. It dies before the given change of names, and returns 0 if there
// are fewer.
func commitAndDie(dir, name, at string) int {
	c := commitCases[name]
	if c.noExchange {
		fileio.NoExchange()
	}
	var all []*fileio.Stage
	for _, output := range c.outputs {
		s, file, err := stageOf(dir, output)
		if err == nil {
			var f *os.File
			if f, err = s.Create(file, 3); err == nil {
				f.WriteString("new")
				err = fileio.Close(f)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		all = append(all, s)
	}
	left, _ := strconv.Atoi(at)
	fileio.AtStep(func() {
		if left--; left == 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	if err := fileio.Commit(c.isThere, all...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func stageOf(dir, output string) (s *fileio.Stage, file string, err error) {
	name, file, isDir := strings.Cut(output, "/")
	if path, ok := strings.CutPrefix(output, "@"); ok {
		name, file, isDir = path, "", false
	}
	s, err = fileio.NewStage(filepath.Join(dir, name), isDir)
	return s, file, err
}

// TestAKilledCommitIsOldOrNewAfterTheNextRun kills commits before each change of names. The files
// left must not look like a result of mixed ages, and the next run for any of the places must make
// all of them old or all new.
func TestAKilledCommitIsOldOrNewAfterTheNextRun(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range commitCases {
		killed := 0
		for at := 1; ; at++ {
			dir := t.TempDir()
			before, after := map[string]string{}, map[string]string{}
			for _, output := range c.outputs {
				output = strings.TrimPrefix(output, "@")
				after[output] = "new"
				if err := os.MkdirAll(filepath.Join(dir, "other"), 0o777); err != nil {
					t.Fatal(err)
				}
				if c.isThere {
					before[output] = "old"
					testkit.Write(t, filepath.Join(dir, filepath.FromSlash(output)), []byte("old"))
				}
			}
			cmd := exec.Command(exe, name, strconv.Itoa(at))
			cmd.Env = append(os.Environ(), commitEnv+"="+dir)
			cmd.Stderr = os.Stderr
			err := cmd.Run()
			if err == nil {
				checkContents(t, name+", not killed", dir, after)
				break
			}
			if cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("%s: the commit failed: %v", name, err)
			}
			killed++
			when := fmt.Sprintf("%s, killed at %d", name, at)
			checkNoMixture(t, when, dir, c.outputs)
			s, _, err := stageOf(dir, c.outputs[at%len(c.outputs)])
			if err != nil {
				t.Fatalf("%s: the next run: %v", when, err)
			}
			s.Abort()
			for _, output := range c.outputs { // each remnant belongs to one of the places
				if s, _, err := stageOf(dir, output); err == nil {
					s.Abort()
				}
			}
			if got := contents(t, dir); !maps.Equal(got, before) && !maps.Equal(got, after) {
				t.Errorf("%s: after the next run there is %q, want %q or %q", when, got, before, after)
			}
		}
		if killed < 3 {
			t.Errorf("%s: killed %d times, want more", name, killed)
		}
	}
}

// checkNoMixture checks that the last output stands only beside others of its age, and that no new
// one except the first stands without it.
func checkNoMixture(t *testing.T, when, dir string, outputs []string) {
	t.Helper()
	got := contents(t, dir)
	at := func(output string) string { return got[strings.TrimPrefix(output, "@")] }
	last := at(outputs[len(outputs)-1])
	for _, output := range outputs {
		if last != "" && at(output) != last {
			t.Errorf("%s: %s is %q while the last output is %q", when, output, at(output), last)
		}
		if at(output) == "new" && at(outputs[0]) != "new" {
			t.Errorf("%s: %s is new, and the first output %q", when, output, at(outputs[0]))
		}
	}
}

// TestACommitThatFailsIsUndone: an unexpected directory occupies the place of the second output.
func TestACommitThatFailsIsUndone(t *testing.T) {
	for _, isThere := range []bool{false, true} {
		dir := t.TempDir()
		if isThere {
			testkit.Write(t, filepath.Join(dir, "out", "a"), []byte("old"))
		}
		out, record := begin(t, filepath.Join(dir, "out"), true), begin(t, filepath.Join(dir, "record"), false)
		put(t, out, "a", "new")
		put(t, record, "", "new")
		step := 0
		fileio.AtStep(func() {
			if step++; exists(filepath.Join(dir, "record")) {
				return
			}
			if got, err := os.ReadFile(filepath.Join(dir, "out", "a")); err == nil && string(got) == "new" {
				testkit.Write(t, filepath.Join(dir, "record", "precious"), []byte("mine"))
			}
		})
		err := fileio.Commit(isThere, out, record)
		fileio.AtStep(func() {})
		if err == nil {
			t.Errorf("old outputs %v: Commit succeeded, want an error", isThere)
		}
		out.Abort()
		record.Abort()
		want := map[string]string{"record/precious": "mine"}
		if isThere {
			want["out/a"] = "old"
		}
		checkContents(t, fmt.Sprintf("old outputs %v: after Commit", isThere), dir, want)
	}
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// TestAJournalIsBelievedOnlyWhereACommitCouldHaveMadeIt: anybody can put a file into a directory of
// downloads.
func TestAJournalIsBelievedOnlyWhereACommitCouldHaveMadeIt(t *testing.T) {
	for what, moves := range map[string]string{
		"a file that is no stage":       `{"final":"victim","temp":"evil"},{"final":"b","temp":".b.loratool-1"}`,
		"a stage of another place":      `{"final":"victim","temp":".b.loratool-1"},{"final":"b","temp":".b.loratool-1"}`,
		"a stage elsewhere":             `{"final":"victim","temp":"../.victim.loratool-1"},{"final":"b","temp":".b.loratool-1"}`,
		"stages that are not there":     `{"final":"victim","temp":".victim.loratool-1"},{"final":"b","temp":".b.loratool-1"}`,
		"stages that are other files":   `{"final":"victim","temp":".victim.loratool-2","id":"0"},{"final":"b","temp":".b.loratool-1","id":"0"}`,
		"nothing that could be a move":  `7`,
		"one move, which takes no more": `{"final":"victim","temp":".victim.loratool-2"}`,
	} {
		dir := t.TempDir()
		for name, content := range map[string]string{"victim": "precious", "evil": "evil", ".victim.loratool-2": "evil"} {
			testkit.Write(t, filepath.Join(dir, name), []byte(content))
		}
		testkit.Write(t, filepath.Join(dir, ".loratool-commit-"+fileio.HostTag()+"-1"), []byte(`{"replace":true,"moves":[`+moves+`]}`))
		s, err := fileio.NewStage(filepath.Join(dir, "victim"), false)
		if err != nil {
			t.Errorf("%s: NewStage = %v", what, err)
			continue
		}
		s.Abort()
		if got := contents(t, dir); got["victim"] != "precious" || got["evil"] != "evil" {
			t.Errorf("%s: the files are %q, want what was there", what, got)
		}
	}
}

// TestAJournalOfAnotherMachineIsLeftAlone: its run may still be active, whatever the local locks
// say.
func TestAJournalOfAnotherMachineIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	want := map[string]string{
		".loratool-commit-00000000-1": `{"moves":[{"final":"a","temp":".a.loratool-1"},{"final":"b","temp":".b.loratool-1"}]}`,
		".a.loratool-1":               "new", ".b.loratool-1": "new",
	}
	for name, content := range want {
		testkit.Write(t, filepath.Join(dir, name), []byte(content))
	}
	begin(t, filepath.Join(dir, "a"), false).Abort()
	checkContents(t, "after a run", dir, want)
}

func TestOutputsHaveThePermissionsOfTheirInputs(t *testing.T) {
	old := syscall.Umask(0o027)
	defer syscall.Umask(old)
	for input, want := range map[os.FileMode]os.FileMode{0: 0o640, 0o600: 0o600, 0o644: 0o640, 0o755: 0o750, 0o400: 0o600, 0o777: 0o750, 0o2755: 0o750} {
		dir := t.TempDir()
		d, f := begin(t, filepath.Join(dir, "dir"), true), begin(t, filepath.Join(dir, "file"), false)
		for s, name := range map[*fileio.Stage]string{d: "sub/a", f: ""} {
			out, err := s.CreateLike(name, 1, fileio.Like{Mode: input})
			if err != nil {
				t.Fatal(err)
			}
			if err := fileio.Close(out); err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(false); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"dir/sub/a", "file"} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s made like %o has the mode %v (%v), want %o", name, input, info.Mode(), err, want)
			}
		}
	}
	for input, want := range map[os.FileMode]os.FileMode{0o700: 0o700, 0o755: 0o750, 0o555: 0o750, 0o777: 0o750} {
		dir := t.TempDir()
		s := begin(t, filepath.Join(dir, "dir"), true)
		if err := s.Narrow(input); err != nil {
			t.Fatal(err)
		}
		put(t, s, "sub/a", "x")
		if err := s.Commit(false); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"dir", "dir/sub"} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s made like a directory of %o has the mode %v (%v), want %o", name, input, info.Mode(), err, want)
			}
		}
	}
}
