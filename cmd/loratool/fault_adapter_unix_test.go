//go:build unix

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// largeAdapterCases writes inputs from which convert and extract make adapters of 64 MiB, so that a run can be caught while it writes,
// and returns the command lines without -o.
func largeAdapterCases(t *testing.T, dir string) map[string][]string {
	t.Helper()
	const r, n = 512, 16384
	rng := rand.New(rand.NewPCG(5, 6))
	a := testkit.Random(rng, "base_model.model.m.lora_A.weight", dtype.F32, 1, r, n)
	b := testkit.Random(rng, "base_model.model.m.lora_B.weight", dtype.F32, 1, n, r)
	adapter := filepath.Join(dir, "adapter")
	testkit.WriteAdapter(t, adapter, r, r, a, b)

	// A vector is carried whole, and so takes no time before the writing begins.
	base, tuned := filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "tuned.safetensors")
	whole := func(content []byte) testkit.Tensor {
		return testkit.Tensor{Name: "norm.weight", DType: dtype.F32, Shape: []uint64{uint64(len(content) / 4)}, Data: content}
	}
	content := append(bytes.Clone(a.Data), b.Data...)
	testkit.Write(t, base, testkit.Encode(nil, whole(make([]byte, len(content)))))
	testkit.Write(t, tuned, testkit.Encode(nil, whole(content)))
	return map[string][]string{
		"convert": {"convert", adapter, "--workers", "1"},
		"extract": {"extract", base, tuned, "--rank", "4", "--workers", "1"},
	}
}

// adapterOuts are the outputs that an adapter is written to: a container, a directory, and a file with another one beside it.
var adapterOuts = []string{"out.lora", "out", "out.safetensors"}

func TestAKilledConvertOrExtractLeavesTheInputsAndBlocksNothing(t *testing.T) {
	dir := t.TempDir()
	cases := largeAdapterCases(t, dir)
	before := testkit.Tree(t, dir)
	for command, args := range cases {
		for _, name := range adapterOuts {
			outs := t.TempDir()
			args := append(args, "-o", filepath.Join(outs, name))
			r := signalWhileMerging(t, outs, os.Kill, args...)
			if r.code != -1 {
				t.Fatalf("%s to %s: the exit code after a kill is %d, want -1, by a signal: %s", command, name, r.code, r.stderr)
			}
			checkAbsent(t, filepath.Join(outs, name))
			if hidden(t, outs) == "" {
				t.Errorf("%s to %s: a killed run left nothing behind: it was not killed at work", command, name)
			}
			next := program(args...)
			if r := finish(t, next, next.Run()); r.code != 0 {
				t.Fatalf("%s to %s: the next run gave %d, want 0: %s", command, name, r.code, r.stderr)
			}
			if left := hidden(t, outs); left != "" {
				t.Errorf("%s to %s: after the next run %q is left, want nothing", command, name, left)
			}
		}
	}
	checkTree(t, "after all", dir, before)
}

func TestAnInterruptedConvertOrExtractLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	cases := largeAdapterCases(t, dir)
	before := testkit.Tree(t, dir)
	for command, args := range cases {
		for _, name := range adapterOuts {
			for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
				outs := t.TempDir()
				r := signalWhileMerging(t, outs, sig, append(args, "-o", filepath.Join(outs, name))...)
				if want := "loratool: error: interrupted; nothing was written\n"; r.code != exitInterrupted || r.stderr != want {
					t.Errorf("%s to %s, %v: the exit code is %d and stderr %q, want %d and %q", command, name, sig, r.code, r.stderr, exitInterrupted, want)
				}
				checkTree(t, command+" to "+name+" after a signal", outs, map[string]string{})
			}
		}
	}
	checkTree(t, "after all", dir, before)
}

func TestExtractSaysWhereItsTemporaryFileIs(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.safetensors"), filepath.Join(dir, "b.safetensors")
	testkit.Write(t, a, testkit.Encode(nil, testkit.Values("w.weight", dtype.F32, []uint64{1, 1}, 1)))
	testkit.Write(t, b, testkit.Encode(nil, testkit.Values("w.weight", dtype.F32, []uint64{1, 1}, 2)))
	cmd := program("extract", a, b, "--rank", "1", "-o", filepath.Join(dir, "out.lora"))
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(dir, "absent"))
	if r := finish(t, cmd, cmd.Run()); r.code != exitFailed || !strings.Contains(r.stderr, "temporary file in "+filepath.Join(dir, "absent")) {
		t.Errorf("extract without a directory for temporary files gave %d, want %d and an error that names it: %s", r.code, exitFailed, r.stderr)
	}
}

// TestAFullDiskLeavesNothingOfAnAdapter is TestAFullDiskLeavesNothing for convert and extract.
func TestAFullDiskLeavesNothingOfAnAdapter(t *testing.T) {
	demo := "../../testdata/demo"
	tuned := filepath.Join(t.TempDir(), "tuned")
	made := program("merge", demo+"/base", demo+"/adapter-r8", "-o", tuned)
	if r := finish(t, made, made.Run()); r.code != 0 {
		t.Fatal(r.stderr)
	}
	for _, args := range [][]string{{"convert", demo + "/adapter-r8"}, {"extract", demo + "/base", tuned, "--rank", "8"}} {
		for _, name := range adapterOuts {
			for _, blocks := range []int{0, 100} { // of 512 bytes
				outs := t.TempDir()
				line := append([]string{"-c", `ulimit -f "$0" && exec loratool "$@"`, strconv.Itoa(blocks)}, args...)
				cmd := exec.Command("sh", append(line, "-o", filepath.Join(outs, name))...)
				cmd.Stdout, cmd.Stderr = new(bytes.Buffer), new(bytes.Buffer)
				r := finish(t, cmd, cmd.Run())
				if r.code != exitFailed || !strings.Contains(r.stderr, "file too large") || strings.Contains(r.stderr, "goroutine") {
					t.Errorf("%s to %s with %d blocks: the exit code is %d, want %d and an error that says why: %s", args[0], name, blocks, r.code, exitFailed, r.stderr)
				}
				checkTree(t, args[0]+" to "+name, outs, map[string]string{})
			}
		}
	}
}
