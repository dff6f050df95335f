package rank_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// anyModel are the dialects that are written for models of any kind.
var anyModel = []convert.Dialect{convert.LoRA(), convert.PEFT()}

// TestExtractionIntoMemoryNeedsNoDisk compares an extraction without a temporary directory with one
// that has it.
func TestExtractionIntoMemoryNeedsNoDisk(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	w := testkit.Random(rng, "model.q_proj.weight", dtype.F32, 0.02, 12, 10)
	base, tuned := pairOf(t, "", []testkit.Tensor{w}, []testkit.Tensor{changed(rng, w, 2, 1)})
	store := func(d convert.Dialect, o rank.ExtractOptions, out *output.Memory) map[string][]byte {
		src, _, err := extract(t, base, tuned, o)
		if err != nil {
			t.Fatal(err)
		}
		sink, err := convert.CreateTo(out, d, convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := format.Copy(t.Context(), sink, src); err != nil {
			t.Fatal(err)
		}
		return out.Files()
	}
	rule := rank.FixedRank{K: 2}
	want := make(map[string]map[string][]byte)
	for _, d := range anyModel {
		want[d.Name()] = store(d, rank.ExtractOptions{Rule: rule}, new(output.Memory))
	}
	for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
		t.Setenv(name, filepath.Join(base, "gone"))
	}
	_, _, err := extract(t, base, tuned, rank.ExtractOptions{Rule: rule})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without an output and temporary files: %v, want %v", err, os.ErrNotExist)
	}
	for _, d := range anyModel {
		out := new(output.Memory)
		got := store(d, rank.ExtractOptions{Rule: rule, Output: out}, out)
		if !maps.EqualFunc(got, want[d.Name()], bytes.Equal) || len(got) == 0 {
			t.Errorf("%s: the files %q differ from those made with a temporary file",
				d.Name(), slices.Sorted(maps.Keys(got)))
		}
	}
}

// TestExtractionIntoADiskLeavesNoScratch: the factors wait beside the output until the source is
// closed.
func TestExtractionIntoADiskLeavesNoScratch(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	w := testkit.Random(rng, "model.q_proj.weight", dtype.F32, 0.02, 12, 10)
	base, tuned := pairOf(t, "", []testkit.Tensor{w}, []testkit.Tensor{changed(rng, w, 2, 1)})
	dir := t.TempDir()
	disk, err := output.NewDisk(filepath.Join(dir, "out.lora"), output.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Abort()
	o := rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, Output: disk}
	e, err := rank.OpenExtraction(t.Context(), base, tuned, o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	src, _, err := e.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sink, err := convert.CreateTo(disk, convert.LoRA(), convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(format.Copy(t.Context(), sink, src), src.Close()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "out.lora" {
		t.Errorf("there are %v, %v; want out.lora", entries, err)
	}
}

// TestFactorsWaitBesideThePathOfTheAdapter: in a file that nobody else reads, until the source is
// closed or the run fails, and without a directory for temporary files.
func TestFactorsWaitBesideThePathOfTheAdapter(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	w := testkit.Random(rng, "model.q_proj.weight", dtype.F32, 0.02, 12, 10)
	base, tuned := pairOf(t, "", []testkit.Tensor{w}, []testkit.Tensor{changed(rng, w, 2, 1)})
	for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
		t.Setenv(name, filepath.Join(base, "gone"))
	}
	dir := t.TempDir()
	o := rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, Path: filepath.Join(dir, "out.lora")}
	e, err := rank.OpenExtraction(t.Context(), base, tuned, o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	src, _, err := e.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("while the source is open there are %v, %v; want one file", entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Size() != 4*2*(12+10) {
		t.Errorf("the file has %d bytes, %v; want those of the factors, %d", info.Size(), err, 4*2*(12+10))
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		t.Errorf("the file has mode %v, so that others can read it", mode)
	}
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := e.Run(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("a run after its context ended: %v, want %v", err, context.Canceled)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("after both runs there are %v, %v; want nothing", entries, err)
	}
}

// TestUnknownChangesAreTold: the change of a vector that is NaN in the base is in no error.
func TestUnknownChangesAreTold(t *testing.T) {
	nan := math.NaN()
	base := []testkit.Tensor{
		testkit.Values("a.weight", dtype.F32, []uint64{2, 2}, 1, 2, 3, 4), testkit.Values("norm.weight", dtype.F32, []uint64{2}, 1, nan),
	}
	tuned := []testkit.Tensor{
		testkit.Values("a.weight", dtype.F32, []uint64{2, 2}, 1, 2, 3, 5), testkit.Values("norm.weight", dtype.F32, []uint64{2}, 1, 2),
	}
	basePath, tunedPath := pairOf(t, "", base, tuned)
	_, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(report.Warnings, func(w string) bool { return strings.Contains(w, `"norm.weight" is NaN or infinite in the base`) }) {
		t.Errorf("the warnings are %q", report.Warnings)
	}
}
