//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// The large base is one BF16 matrix of 64 MiB, a file without blocks until something is written to
// it: zeros are as much work as other numbers. A merge takes long enough to be caught at work.
const (
	largeRows, largeCols = 4096, 8192
	largeRank            = 32
)

// largeCase writes a base directory and an adapter into dir.
func largeCase(t *testing.T, dir string) (base, adapter string) { return zeroCase(t, dir, largeRows) }

func zeroCase(t *testing.T, dir string, rows int) (base, adapter string) {
	t.Helper()
	base, adapter = filepath.Join(dir, "base"), filepath.Join(dir, "adapter")
	size := 2 * rows * largeCols
	header := fmt.Sprintf(`{"m.weight":{"dtype":"BF16","shape":[%d,%d],"data_offsets":[0,%d]}}`, rows, largeCols, size)
	file := filepath.Join(base, "model.safetensors")
	testkit.Write(t, file, testkit.Raw(header, nil))
	if err := os.Truncate(file, int64(8+len(header)+size)); err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(base, "config.json"), []byte(`{"model_type":"test"}`))
	rng := rand.New(rand.NewPCG(1, 2))
	testkit.WriteAdapter(t, adapter, largeRank, largeRank,
		testkit.Random(rng, "base_model.model.m.lora_A.weight", dtype.F32, 1, largeRank, largeCols),
		testkit.Random(rng, "base_model.model.m.lora_B.weight", dtype.F32, 1, uint64(rows), largeRank))
	return base, adapter
}

// result is the outcome of a run of the program.
type result struct {
	code           int
	stdout, stderr string
}

func finish(t *testing.T, cmd *exec.Cmd, err error) result {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), cmd.Stdout.(*bytes.Buffer).String(), cmd.Stderr.(*bytes.Buffer).String()}
}

func program(args ...string) *exec.Cmd {
	cmd := exec.Command("loratool", args...)
	cmd.Stdout, cmd.Stderr = new(bytes.Buffer), new(bytes.Buffer)
	return cmd
}

// mostTries is how often a program is started that ends before it could be caught at work: a busy
// machine may not look in time.
const mostTries = 20

// runUntil starts the program, calls act when ready reports true, and returns the outcome.
// A run that ends before that is tried again, with dir empty as before.
func runUntil(t *testing.T, dir string, args []string, ready func() bool, act func(*os.Process) error) result {
	t.Helper()
	for range mostTries {
		cmd := program(args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		if err, ended := waitUntil(ready, done); ended {
			if err != nil {
				t.Fatalf("the program failed before it was at work: %v %s", err, cmd.Stderr)
			}
			empty(t, dir)
			continue
		}
		if err := act(cmd.Process); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		err := <-done
		if err == nil { // it was done when the signal came
			empty(t, dir)
			continue
		}
		return finish(t, cmd, err)
	}
	t.Fatalf("the program ended before it was at work, %d times", mostTries)
	return result{}
}

// waitUntil waits until ready reports true, or the program has ended.
func waitUntil(ready func() bool, done <-chan error) (err error, ended bool) {
	for !ready() {
		select {
		case err := <-done:
			return err, true
		default:
		}
	}
	return nil, false
}

// empty removes all that is in dir.
func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// signalWhileMerging starts the program and sends it a signal when its hidden output has appeared
// in dir.
func signalWhileMerging(t *testing.T, dir string, sig os.Signal, args ...string) result {
	t.Helper()
	return runUntil(t, dir, args, func() bool { return hidden(t, dir) != "" }, func(p *os.Process) error { return p.Signal(sig) })
}

// hidden is the first hidden name in dir.
func hidden(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			return e.Name()
		}
	}
	return ""
}

func checkAbsent(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lstat(%s) = %v, want %v", filepath.Base(path), err, fs.ErrNotExist)
	}
}

// checkTree compares dir with its earlier state.
func checkTree(t *testing.T, when, dir string, want map[string]string) {
	t.Helper()
	if got := testkit.Tree(t, dir); !maps.Equal(got, want) {
		t.Errorf("%s: %s holds %v, want %v", when, filepath.Base(dir), got, want)
	}
}

func TestAKilledMergeLeavesTheBaseAndBlocksNothing(t *testing.T) {
	dir := t.TempDir()
	base, adapter := largeCase(t, dir)
	before := testkit.Tree(t, base)
	outs := filepath.Join(dir, "outs")
	if err := os.Mkdir(outs, 0o777); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(outs, "out")
	r := signalWhileMerging(t, outs, os.Kill, "merge", base, adapter, "-o", out, "--workers", "1")
	if r.code != -1 {
		t.Fatalf("the exit code after a kill is %d, want -1, by a signal: %s", r.code, r.stderr)
	}
	checkAbsent(t, out)
	checkTree(t, "after a kill", base, before)
	if hidden(t, outs) == "" {
		t.Error("a killed run left nothing behind: it was not killed at work")
	}

	next := program("merge", base, adapter, "-o", out)
	if r := finish(t, next, next.Run()); r.code != 0 {
		t.Fatalf("the next run gave %d, want 0: %s", r.code, r.stderr)
	}
	checkTree(t, "after the next run", base, before)
	if name := hidden(t, outs); name != "" {
		t.Errorf("after the next run %q is left, want nothing", name)
	}
	if got, want := testkit.Tree(t, out)["config.json"], before["config.json"]; got != want {
		t.Errorf("the output's config.json has the hash %q, want %q", got, want)
	}
}

func TestAnInterruptedMergeLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	base, adapter := largeCase(t, dir)
	before := testkit.Tree(t, dir)
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP) // the program starts with its default, even if these tests run under nohup
	defer signal.Stop(hangUp)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		for what, args := range map[string][]string{
			"a directory": {base, adapter},
			"a file":      {filepath.Join(base, "model.safetensors"), adapter},
		} {
			outs := t.TempDir()
			r := signalWhileMerging(t, outs, sig, append([]string{"merge", "-o", filepath.Join(outs, "out"), "--json", "--workers", "1"}, args...)...)
			if r.code != exitInterrupted {
				t.Errorf("%s, %v: the exit code is %d, want %d: %s", what, sig, r.code, exitInterrupted, r.stderr)
			}
			if want := "loratool: error: interrupted; nothing was written\n"; r.stderr != want {
				t.Errorf("%s, %v: stderr is %q, want %q", what, sig, r.stderr, want)
			}
			if !strings.Contains(r.stdout, `"kind": "interrupted"`) {
				t.Errorf("%s, %v: the document is %s, want the kind interrupted", what, sig, r.stdout)
			}
			checkTree(t, fmt.Sprint("after ", sig), outs, map[string]string{})
		}
	}
	checkTree(t, "after all", dir, before)
}

func TestAMergeUnderNohupGoesOn(t *testing.T) {
	dir := t.TempDir()
	base, adapter := zeroCase(t, dir, largeRows/16)
	outs := t.TempDir()
	out := filepath.Join(outs, "out")
	signal.Ignore(syscall.SIGHUP) // what nohup does; the program inherits it
	defer signal.Reset(syscall.SIGHUP)
	cmd := program("merge", base, adapter, "-o", out, "--workers", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	err, ended := waitUntil(func() bool { return hidden(t, outs) != "" }, done)
	if !ended {
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		err = <-done
	}
	if r := finish(t, cmd, err); r.code != exitDone {
		t.Errorf("the exit code is %d, want %d: %s", r.code, exitDone, r.stderr)
	}
	if _, err := os.Stat(out); err != nil {
		t.Errorf("after SIGHUP under nohup: %v, want the output", err)
	}
}

// TestAFullDiskLeavesNothing lets the operating system refuse bytes beyond a size of file, as a
// full disk refuses blocks: with EFBIG for ENOSPC, and with a signal that must not end the program.
func TestAFullDiskLeavesNothing(t *testing.T) {
	demo := "../../testdata/demo"
	for _, c := range []struct {
		what   string
		base   string
		blocks int // of 512 bytes
	}{
		{"the weights do not fit", demo + "/base", 1000},
		{"the weights of a single file do not fit", demo + "/base/model.safetensors", 1000},
		{"nothing fits", demo + "/base", 0},
	} {
		outs := t.TempDir()
		cmd := exec.Command("sh", "-c", `ulimit -f "$0" && exec loratool "$@"`, strconv.Itoa(c.blocks), "merge", c.base, demo+"/adapter-r8", "-o", filepath.Join(outs, "out"))
		cmd.Stdout, cmd.Stderr = new(bytes.Buffer), new(bytes.Buffer)
		r := finish(t, cmd, cmd.Run())
		if r.code != exitFailed || !strings.Contains(r.stderr, "file too large") || strings.Contains(r.stderr, "goroutine") {
			t.Errorf("%s: the exit code is %d, want %d and an error that says why: %s", c.what, r.code, exitFailed, r.stderr)
		}
		checkTree(t, c.what, outs, map[string]string{})
	}
}

// asUser makes a command run as a user whom permissions bind.
func asUser(t *testing.T, cmd *exec.Cmd, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	cmd.Env = append(os.Environ(), userEnv+"=1")
	for at := dir; at != filepath.Dir(at) && at != filepath.Clean(os.TempDir()); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil { // the test's own directories
			t.Fatal(err)
		}
	}
}

func TestAReadOnlyDirectoryIsAnErrorThatSaysSo(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "demo"), os.DirFS("../../testdata/demo")); err != nil {
		t.Fatal(err)
	}
	locked, free := filepath.Join(dir, "locked"), filepath.Join(dir, "free")
	if err := errors.Join(os.Mkdir(locked, 0o555), os.Mkdir(free, 0o777), os.Chmod(free, 0o777)); err != nil {
		t.Fatal(err)
	}
	one, two := testkit.Values("w.weight", dtype.F32, []uint64{1, 1}, 1), testkit.Values("w.weight", dtype.F32, []uint64{1, 1}, 2)
	testkit.Write(t, filepath.Join(dir, "one.safetensors"), testkit.Encode(nil, one))
	testkit.Write(t, filepath.Join(dir, "two.safetensors"), testkit.Encode(nil, two))
	for _, line := range []string{
		"merge demo/base demo/adapter-r8 -o locked/out",
		"merge demo/base/model.safetensors demo/adapter-r8 -o locked/out",
		"merge demo/base demo/adapter-r8 -o free/out --undo-file locked/record",
		"extract one.safetensors two.safetensors --rank 1 -o locked/out",
		"extract one.safetensors two.safetensors --rank 1 -o locked/out.lora",
		"convert demo/adapter-r8 -o locked/out",
		"convert demo/adapter-r8 -o locked/out.lora",
		"convert demo/adapter-r8 -o locked/out.safetensors",
	} {
		for _, flag := range []string{"", " --dry-run"} {
			cmd := program(strings.Fields(line + flag)...)
			cmd.Dir = dir
			asUser(t, cmd, dir)
			r := finish(t, cmd, cmd.Run())
			if r.code != exitFailed || !strings.Contains(r.stderr, "permission denied") || !strings.Contains(r.stderr, "hint: check the permissions") {
				t.Errorf("%s gave %d, want %d and a hint: %s", line+flag, r.code, exitFailed, r.stderr)
			}
			checkTree(t, "after "+line+flag, locked, map[string]string{})
		}
	}
}

func TestAnUnreadableInputIsAnErrorThatSaysSo(t *testing.T) {
	for _, name := range []string{"base/model.safetensors", "base/config.json", "base/generation_config.json", "adapter-r8/adapter_model.safetensors", "adapter-r8/adapter_config.json"} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS("../../testdata/demo")); err != nil {
			t.Fatal(err)
		}
		outs := filepath.Join(dir, "outs")
		if err := os.Mkdir(outs, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chmod(outs, 0o777), os.Chmod(filepath.Join(dir, name), 0)); err != nil {
			t.Fatal(err)
		}
		cmd := program("merge", "base", "adapter-r8", "-o", "outs/out")
		cmd.Dir = dir
		asUser(t, cmd, dir)
		r := finish(t, cmd, cmd.Run())
		if r.code != exitFailed || !strings.Contains(r.stderr, filepath.Base(name)) || !strings.Contains(r.stderr, "permission denied") {
			t.Errorf("merge with an unreadable %s gave %d, want %d and its name: %s", name, r.code, exitFailed, r.stderr)
		}
		checkTree(t, "unreadable "+name, outs, map[string]string{})
	}
}

// TestAKilledMergeLeavesNoRecordWithoutItsCheckpoint kills merges with a record, and unmerges, at
// different moments: each output is absent or whole, a record is never there without its
// checkpoint, and the next run does its work.
func TestAKilledMergeLeavesNoRecordWithoutItsCheckpoint(t *testing.T) {
	dir := t.TempDir()
	base, adapter := zeroCase(t, dir, largeRows/16) // residuals of zeros are large: the record is as long as the weights
	whole := filepath.Join(dir, "whole")
	if r := finishNow(t, program("merge", base, adapter, "-o", whole, "--undo")); r.code != 0 {
		t.Fatal(r.stderr)
	}
	want, wantRecord := testkit.Tree(t, whole), testkit.Hash(t, whole+undoSuffix)
	exists := func(path string) bool { _, err := os.Lstat(path); return err == nil }
	size := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	for what, ready := range map[string]func(outs, out string) bool{
		"when something hidden is there": func(outs, out string) bool { return hidden(t, outs) != "" },
		"when residuals are there": func(outs, out string) bool {
			found, _ := filepath.Glob(filepath.Join(outs, ".out.*"))
			return slices.ContainsFunc(found, isSpool)
		},
		"when the record is being written": func(outs, out string) bool {
			found, _ := filepath.Glob(filepath.Join(outs, ".out"+undoSuffix+"*"))
			return len(found) > 0 && size(found[0]) > 0
		},
		"when the checkpoint is there": func(outs, out string) bool { return exists(out) },
	} {
		outs := t.TempDir()
		out := filepath.Join(outs, "out")
		args := []string{"merge", base, adapter, "-o", out, "--undo"}
		runUntil(t, outs, args, func() bool { return ready(outs, out) }, func(p *os.Process) error { return p.Kill() })
		if exists(out) {
			checkTree(t, what, out, want)
		}
		if record := out + undoSuffix; exists(record) && (!exists(out) || testkit.Hash(t, record) != wantRecord) {
			t.Errorf("%s: a record without its checkpoint, or half of one", what)
		}
		if r := finishNow(t, program("merge", base, adapter, "-o", out, "--undo", "--force")); r.code != 0 {
			t.Errorf("%s: the next run gave %d: %s", what, r.code, r.stderr)
		}
		checkTree(t, what+", the next run", out, want)
		if got := testkit.Hash(t, out+undoSuffix); got != wantRecord || hidden(t, outs) != "" {
			t.Errorf("%s: the next run left another record, or %q", what, hidden(t, outs))
		}
	}

	outs := t.TempDir()
	out := filepath.Join(outs, "out")
	ready := func() bool {
		found, _ := filepath.Glob(filepath.Join(outs, ".out.*"))
		return slices.ContainsFunc(found, isSpool)
	}
	args := []string{"merge", base, adapter, "-o", out, "--undo"}
	runUntil(t, outs, args, ready, func(p *os.Process) error { return p.Kill() })
	if r := finishNow(t, program("merge", base, adapter, "-o", out, "--force")); r.code != 0 {
		t.Fatal(r.stderr)
	}
	if left := hidden(t, outs); left != "" {
		t.Errorf("a merge without a record left %q of the killed merge with one", left)
	}

	outs = t.TempDir()
	back := filepath.Join(outs, "back")
	signalWhileMerging(t, outs, os.Kill, "unmerge", whole, adapter, "-o", back, "--workers", "1")
	if exists(back) {
		checkTree(t, "a killed unmerge", back, testkit.Tree(t, base))
	}
	if r := finishNow(t, program("unmerge", whole, adapter, "-o", back, "--force")); r.code != 0 {
		t.Errorf("the unmerge after a killed one gave %d: %s", r.code, r.stderr)
	}
	checkTree(t, "the unmerge after a killed one", back, testkit.Tree(t, base))
	checkTree(t, "what was unmerged", whole, want)
}

// isSpool reports whether a hidden path beside a directory is the file in which residuals wait.
func isSpool(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && !strings.HasPrefix(filepath.Base(path), ".out"+undoSuffix) && info.Mode().IsRegular() && info.Size() > 0
}

func finishNow(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	return finish(t, cmd, cmd.Run())
}

// hasLargeFile reports whether a file below dir has the size of the large base.
func hasLargeFile(dir string) bool {
	found := false
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			info, err := os.Stat(path)
			found = found || err == nil && info.Size() >= 2*largeRows*largeCols
		}
		return nil // what has gone again is of no interest
	})
	return found
}
