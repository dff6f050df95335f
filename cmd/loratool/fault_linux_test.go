package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/loratool/loratool/internal/testkit"
)

// TestADiskThatFillsUpWhileMergingLeavesNothing: the space was there at the start. The limit on the size of files is lowered for
// the program at work, when its output has got its size, so that its next writes fail.
func TestADiskThatFillsUpWhileMergingLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	base, adapter := largeCase(t, dir)
	before := testkit.Tree(t, dir)
	for _, base := range []string{base, filepath.Join(base, "model.safetensors")} {
		outs := t.TempDir()
		cmd := program("merge", base, adapter, "-o", filepath.Join(outs, "out"), "--workers", "1")
		r := runUntil(t, cmd, func() bool { return hasLargeFile(outs) }, func(p *os.Process) error { return limitFiles(p.Pid, 1<<20) })
		if r.code != exitFailed || !strings.Contains(r.stderr, "file too large") || strings.Contains(r.stderr, "goroutine") {
			t.Errorf("the exit code is %d, want %d and an error that says why: %s", r.code, exitFailed, r.stderr)
		}
		checkTree(t, "after a write that failed", outs, map[string]string{})
	}
	checkTree(t, "after all", dir, before)
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

// limitFiles is prlimit(2) for RLIMIT_FSIZE.
func limitFiles(pid int, nBytes uint64) error {
	limit := syscall.Rlimit{Cur: nBytes, Max: nBytes}
	const sysFsize = 1
	if _, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(pid), sysFsize, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
