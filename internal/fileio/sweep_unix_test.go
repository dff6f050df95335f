//go:build unix

package fileio_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/testkit"
)

// holdEnv turns this test binary into a process that makes a stage for the named path and holds it
// until its standard input ends.
const holdEnv = "LORATOOL_TEST_HOLD_STAGE"

func TestMain(m *testing.M) {
	if final := os.Getenv(holdEnv); final != "" {
		if err := hold(final, os.Args[len(os.Args)-1] == "dir"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(commitEnv); dir != "" {
		os.Exit(commitAndDie(dir, os.Args[1], os.Args[2]))
	}
	os.Exit(m.Run())
}

func hold(final string, isDir bool) error {
	s, err := fileio.NewStage(final, isDir)
	if err != nil {
		return err
	}
	name := ""
	if isDir {
		name = "sub/a"
	}
	f, err := s.Create(name, 100)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	s.Abort()
	return nil
}

// holder is that process.
type holder struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// startHolder returns once the process has made its stage.
func startHolder(t *testing.T, final, kind string) *holder {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{cmd: exec.Command(exe, kind)}
	h.cmd.Env = append(os.Environ(), holdEnv+"="+final)
	h.cmd.Stderr = os.Stderr
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.cmd.Process.Kill(); h.cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the other process said %q: %v", line, err)
	}
	return h
}

func TestTheRemainsOfAKilledRunAreSweptAndALiveStageIsNot(t *testing.T) {
	for _, kind := range []string{"file", "dir"} {
		parent := t.TempDir()
		final := filepath.Join(parent, "out")
		killed, alive := startHolder(t, final, kind), startHolder(t, final, kind)
		if names := entries(t, parent); len(names) != 2 {
			t.Fatalf("two runs hold %q, want two stages", names)
		}
		if err := killed.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		killed.cmd.Wait()

		s := begin(t, final, kind == "dir")
		if names := entries(t, parent); len(names) != 2 {
			t.Errorf("%s: after a kill and a new run there is %q, want two stages: that of the live run and the new one", kind, names)
		}
		s.Abort()
		if names := entries(t, parent); len(names) != 1 {
			t.Errorf("%s: after the new run there is %q, want the stage of the live run", kind, names)
		}
		alive.stdin.Close()
		if err := alive.cmd.Wait(); err != nil {
			t.Errorf("%s: the live run ended with %v, want success", kind, err)
		}
		if names := entries(t, parent); len(names) != 0 {
			t.Errorf("%s: in the end there is %q, want nothing", kind, names)
		}
	}
}

// TestTheRemainsForAnotherPlaceAreSweptUnlessACommitIsUnderWay: a run has several places, and the
// next run may have others.
func TestTheRemainsForAnotherPlaceAreSweptUnlessACommitIsUnderWay(t *testing.T) {
	parent := t.TempDir()
	killed := startHolder(t, filepath.Join(parent, "out.undo"), "file")
	alive := startHolder(t, filepath.Join(parent, "other"), "dir")
	if err := killed.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed.cmd.Wait()
	journal := filepath.Join(parent, ".loratool-commit-00000000-1") // by another machine, just written
	var stage string
	for _, name := range entries(t, parent) {
		if strings.HasPrefix(name, ".out.undo.") {
			stage = name
		}
	}
	text := fmt.Sprintf(`{"moves": [{"final": "out", "temp": ".out.loratool-1"}, {"final": "out.undo", "temp": %q}]}`, stage)
	testkit.Write(t, journal, []byte(text))
	if names, err := fileio.Sweep(parent, 0, true); err != nil || len(names) != 0 {
		t.Errorf("beside a journal Sweep(0) = %q, %v, want none: one stage is alive, one is about to be moved", names, err)
	}
	begin(t, filepath.Join(parent, "out"), true).Abort()
	if names := entries(t, parent); len(names) != 3 {
		t.Errorf("beside a journal a run left %q, want the journal and both stages", names)
	}
	if err := os.Remove(journal); err != nil {
		t.Fatal(err)
	}
	begin(t, filepath.Join(parent, "out"), true).Abort()
	if names := entries(t, parent); len(names) != 1 || !strings.HasPrefix(names[0], ".other.") {
		t.Errorf("after a run for another place there is %q, want the stage of the live run alone", names)
	}
	alive.stdin.Close()
	if err := alive.cmd.Wait(); err != nil {
		t.Errorf("the live run ended with %v, want success", err)
	}
}

// TestTwoRunsForOnePlace: the first to commit wins; the other reports that the output exists.
func TestTwoRunsForOnePlace(t *testing.T) {
	for _, kind := range []string{"file", "dir"} {
		parent := t.TempDir()
		final := filepath.Join(parent, "out")
		a, b := begin(t, final, kind == "dir"), begin(t, final, kind == "dir")
		name := ""
		if kind == "dir" {
			name = "a"
		}
		put(t, a, name, "first")
		put(t, b, name, "second")
		if err := a.Commit(false); err != nil {
			t.Errorf("%s: the first Commit = %v", kind, err)
		}
		before := testkit.Tree(t, final)
		if err := b.Commit(false); err == nil {
			t.Errorf("%s: the second Commit succeeded, want an error", kind)
		}
		b.Abort()
		if names := entries(t, parent); len(names) != 1 || fmt.Sprint(testkit.Tree(t, final)) != fmt.Sprint(before) {
			t.Errorf("%s: there is %q, want the output of the first alone", kind, names)
		}
	}
}

// TestStagesWorkWhereFilesCannotBeLocked: some network file systems have no locks, or none for
// directories or for files open for reading. Active stages and remains look alike there, so both
// stay.
func TestStagesWorkWhereFilesCannotBeLocked(t *testing.T) {
	for _, cause := range []syscall.Errno{syscall.ENOTSUP, syscall.ENOSYS, syscall.EBADF, syscall.ENOLCK} {
		for _, isDir := range []bool{false, true} {
			parent := t.TempDir()
			testkit.Write(t, filepath.Join(parent, ".out.loratool-0123"), nil)
			fileio.WithFlock(func(int) error { return cause }, func() {
				s, err := fileio.NewStage(filepath.Join(parent, "out"), isDir)
				if err != nil {
					t.Errorf("NewStage where flock says %q = %v", cause, err)
					return
				}
				name := ""
				if isDir {
					name = "a"
				}
				put(t, s, name, "new")
				if err := s.Commit(false); err != nil {
					t.Errorf("Commit where flock says %q = %v", cause, err)
				}
			})
			if names := entries(t, parent); len(names) != 2 {
				t.Errorf("where flock says %q: there is %q, want the output and the stage of whoever else", cause, names)
			}
		}
	}
}
