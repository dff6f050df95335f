//go:build unix

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestAPipeIsRefusedAtOnceWhereverAnInputIsOpened: to open a pipe that nobody writes to waits for
// ever, and a signal does not end the wait. The deadline is for a program that does wait.
func TestAPipeIsRefusedAtOnceWhereverAnInputIsOpened(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/demo")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pipe", "pipe.lora", "pipe.safetensors", "base.undo", "odd/adapter_config.json", "piped/adapter_model.safetensors", "shard/model.safetensors"} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Write(t, filepath.Join(dir, "odd", "adapter_model.safetensors"), testkit.Encode(nil, testkit.Values("base_model.model.m.lora_A.weight", dtype.F32, []uint64{1, 1}, 1)))
	testkit.Write(t, filepath.Join(dir, "piped", "adapter_config.json"), []byte("{}"))
	for _, line := range []string{
		"merge pipe adapter-r8 -o out",
		"merge base pipe -o out",
		"merge base pipe.lora -o out",
		"merge base piped -o out",
		"merge base odd -o out",
		"merge /dev/zero adapter-r8 -o out",
		"unmerge base adapter-r8 -o out",
		"unmerge base adapter-r8 -o out --undo pipe",
		"extract base/model.safetensors pipe.safetensors -o out --rank 4",
		"extract pipe.safetensors base/model.safetensors -o out --rank 4",
		"convert pipe -o out",
		"convert adapter-r8 -o out --base pipe",
		"inspect pipe",
		"inspect pipe.lora",
		"inspect piped",
		"inspect odd",
		"inspect /dev/zero",
		"verify pipe",
		"dump pipe",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, "loratool", strings.Fields(line)...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, new(bytes.Buffer), new(bytes.Buffer)
		r := finish(t, cmd, cmd.Run())
		cancel()
		if r.code != exitInput || !strings.Contains(r.stderr, "not a regular file") {
			t.Errorf("%s: the exit code is %d, want %d and an error that says why: %s", line, r.code, exitInput, r.stderr)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "out")); err == nil {
		t.Error("out is there, want nothing")
	}
}
