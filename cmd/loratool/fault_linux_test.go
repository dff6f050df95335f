package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/loratool/loratool/internal/testkit"
)

// TestADiskThatFillsUpWhileMergingLeavesNothing: the space was there at the start. The limit on the
// size of files is lowered for the program at work, when its output has got its size, so that its
// next writes fail.
func TestADiskThatFillsUpWhileMergingLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	base, adapter := largeCase(t, dir)
	before := testkit.Tree(t, dir)
	for _, base := range []string{base, filepath.Join(base, "model.safetensors")} {
		outs := t.TempDir()
		args := []string{"merge", base, adapter, "-o", filepath.Join(outs, "out"), "--workers", "1"}
		r := runUntil(t, outs, args, func() bool { return hasLargeFile(outs) }, func(p *os.Process) error { return limitFiles(p.Pid, 1<<20) })
		if r.code != exitFailed || !strings.Contains(r.stderr, "file too large") || strings.Contains(r.stderr, "goroutine") {
			t.Errorf("the exit code is %d, want %d and an error that says why: %s", r.code, exitFailed, r.stderr)
		}
		checkTree(t, "after a write that failed", outs, map[string]string{})
	}
	checkTree(t, "after all", dir, before)
}

// TestAResultThatCannotBePrintedIsAnError: on /dev/full every write fails.
func TestAResultThatCannotBePrintedIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	demo := "../../testdata/demo"
	file := filepath.Join(t.TempDir(), "a.lora")
	made := program("convert", demo+"/adapter-r8", "-o", file)
	if r := finish(t, made, made.Run()); r.code != 0 {
		t.Fatal(r.stderr)
	}
	for _, line := range []string{
		"inspect " + demo + "/base", "inspect " + demo + "/base --json", "inspect " + demo + "/adapter-r8 --spectrum", "inspect " + demo + "/adapter-r8 -v",
		"merge " + demo + "/base " + demo + "/adapter-r8 --dry-run", "verify " + file, "dump " + file, "version", "--help", "merge --help",
	} {
		cmd := exec.Command("loratool", strings.Fields(line)...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = full, &stderr
		cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(stderr.String(), "no space left on device") {
			t.Errorf("%s to a full disk: the exit code is %d, want %d and an error that says why: %s", line, code, exitFailed, &stderr)
		}
	}
}

// limitFiles is prlimit(2) for RLIMIT_FSIZE.
func limitFiles(pid int, nBytes uint64) error {
	limit := syscall.Rlimit{Cur: nBytes, Max: nBytes}
	const sysFsize = 1
	if _, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(pid), sysFsize, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
