//go:build unix

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// largeAdapterCases writes inputs from which convert and extract make adapters of 64 MiB, so that a
// run can be caught while it writes, and returns the command lines without -o.
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

// adapterOuts are the outputs that an adapter is written to: a container, a directory, and a file
// with another one beside it.
var adapterOuts = []string{"out.lora", "out", "out.safetensors"}

// adapterMoments are moments at which a run can end: while the factors of an extraction wait beside
// the adapter, or while the adapter grows.
var adapterMoments = []struct {
	command string
	waits   bool
	names   []string
}{{"convert", false, adapterOuts}, {"extract", true, adapterOuts[:1]}, {"extract", false, adapterOuts}}

// isAtWork reports whether a run has come to a moment: a hidden file lies among its outputs, which
// holds waiting factors or not.
func isAtWork(t *testing.T, outs string, waits bool) bool {
	t.Helper()
	entries, err := os.ReadDir(outs)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		name := e.Name()
		return strings.HasPrefix(name, ".") && strings.Contains(name, ".scratch.") == waits
	})
}

func TestAKilledConvertOrExtractLeavesTheInputsAndBlocksNothing(t *testing.T) {
	dir := t.TempDir()
	cases := largeAdapterCases(t, dir)
	before := testkit.Tree(t, dir)
	for _, m := range adapterMoments {
		command := m.command
		for _, name := range m.names {
			outs := t.TempDir()
			args := append(slices.Clone(cases[command]), "-o", filepath.Join(outs, name))
			ready := func() bool { return isAtWork(t, outs, m.waits) }
			r := runUntil(t, outs, args, ready, (*os.Process).Kill)
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
	for _, m := range adapterMoments {
		command := m.command
		for _, name := range m.names {
			for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
				outs := t.TempDir()
				args := append(slices.Clone(cases[command]), "-o", filepath.Join(outs, name))
				ready := func() bool { return isAtWork(t, outs, m.waits) }
				r := runUntil(t, outs, args, ready, func(p *os.Process) error { return p.Signal(sig) })
				if want := "loratool: error: interrupted; nothing was written\n"; r.code != exitInterrupted || r.stderr != want {
					t.Errorf("%s to %s, %v: the exit code is %d and stderr %q, want %d and %q", command, name, sig, r.code, r.stderr, exitInterrupted, want)
				}
				checkTree(t, command+" to "+name+" after a signal", outs, map[string]string{})
			}
		}
	}
	checkTree(t, "after all", dir, before)
}

// TestExtractNeedsNoDirectoryForTemporaryFiles: factors wait beside the adapter, where the user has
// room; the system's directory for temporary files is small, or memory, on many machines.
func TestExtractNeedsNoDirectoryForTemporaryFiles(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.safetensors"), filepath.Join(dir, "b.safetensors")
	testkit.Write(t, a, testkit.Encode(nil, testkit.Values("w.weight", dtype.F32, []uint64{1, 1}, 1)))
	testkit.Write(t, b, testkit.Encode(nil, testkit.Values("w.weight", dtype.F32, []uint64{1, 1}, 2)))
	for _, name := range adapterOuts {
		out := filepath.Join(dir, name)
		cmd := program("extract", a, b, "--rank", "1", "-o", out)
		cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(dir, "absent"))
		if r := finish(t, cmd, cmd.Run()); r.code != 0 {
			t.Errorf("extract to %s without a directory for temporary files gave %d, want 0: %s", name, r.code, r.stderr)
		}
		if left := hidden(t, dir); left != "" {
			t.Errorf("extract to %s left %q", name, left)
		}
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

// TestAnInputThatChangesWhileConvertWritesIsAnError: an input is touched while the output grows.
// What convert has read by then may be of either content, so that nothing may come of it.
func TestAnInputThatChangesWhileConvertWritesIsAnError(t *testing.T) {
	dir := t.TempDir()
	args := largeAdapterCases(t, dir)["convert"]
	for _, c := range []struct{ input, out string }{
		{"adapter/adapter_model.safetensors", "out.lora"},
		{"adapter/adapter_config.json", "out"},
	} {
		outs := t.TempDir()
		input, year := filepath.Join(dir, filepath.FromSlash(c.input)), 2000
		touch := func(*os.Process) error {
			year++ // another time at every try
			changed := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
			return os.Chtimes(input, changed, changed)
		}
		atWork := func() bool { return hidden(t, outs) != "" }
		r := runUntil(t, outs, append(args, "-o", filepath.Join(outs, c.out)), atWork, touch)
		if r.code != exitInput || !strings.Contains(r.stderr, filepath.Base(c.input)+": the file changed while this run read it") {
			t.Errorf("to %s, %s changed: exit code %d, want %d and an error that names it: %s", c.out, c.input, r.code, exitInput, r.stderr)
		}
		checkTree(t, "to "+c.out, outs, map[string]string{})
	}
}

// TestACheckpointThatChangesWhileItIsExtractedIsAnError: extract has read all of both when it
// begins to write, and compares them then.
func TestACheckpointThatChangesWhileItIsExtractedIsAnError(t *testing.T) {
	for _, changed := range []string{"base", "tuned"} {
		dir := t.TempDir()
		base, tuned := filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "tuned.safetensors")
		testkit.Write(t, base, testkit.Encode(nil, testkit.Values("norm.weight", dtype.F32, []uint64{2}, 1, 2)))
		testkit.Write(t, tuned, testkit.Encode(nil, testkit.Values("norm.weight", dtype.F32, []uint64{2}, 3, 2)))
		e, err := rank.OpenExtraction(t.Context(), base, tuned, rank.ExtractOptions{Rule: rank.FixedRank{K: 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		old := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
		if err := os.Chtimes(filepath.Join(dir, changed+".safetensors"), old, old); err != nil {
			t.Fatal(err)
		}
		_, _, err = e.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), changed+".safetensors: the file changed while this run read it") || exitCode(err) != exitInput {
			t.Errorf("Run when %s was changed = %v, want an error of the input that says so", changed, err)
		}
	}
}
