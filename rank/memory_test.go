package rank_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// memoryEnv turns this test binary into a process that extracts from the checkpoints in the named
// directory and prints the peak of its heap. It must be a separate process: other tests take memory
// too, and a heap never forgets.
const memoryEnv = "LORATOOL_TEST_EXTRACT_MEMORY"

func TestMain(m *testing.M) {
	if dir := os.Getenv(memoryEnv); dir != "" {
		if err := extractAndPrintHeap(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func extractAndPrintHeap(dir string) error {
	e, err := rank.OpenExtraction(context.Background(), filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "tuned.safetensors"), rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, Workers: 2})
	if err != nil {
		return err
	}
	defer e.Close()
	src, _, err := e.Run(context.Background())
	if err != nil {
		return err
	}
	defer src.Close()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	fmt.Println(s.HeapSys)
	return nil
}

// TestExtractTakesMemoryForOneTensorAtATime: the updates are noise, the worst case, since no basis
// captures it. All updates together exceed the limit.
func TestExtractTakesMemoryForOneTensorAtATime(t *testing.T) {
	const n, nTensors = 2048, 12
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(81, 82))
	var base, tuned []testkit.Tensor
	for i := range nTensors {
		x := testkit.Tensor{Name: fmt.Sprintf("%d.weight", i), DType: dtype.BF16, Shape: []uint64{n, n}, Data: make([]byte, 2*n*n)}
		base = append(base, x)
		x.Data = make([]byte, 2*n*n)
		for i := 0; i < len(x.Data); i += 2 { // numbers of either sign around 0.5
			bits := rng.Uint32()
			x.Data[i], x.Data[i+1] = byte(bits&0x7f), 0x3f|byte(bits>>8&0x80)
		}
		tuned = append(tuned, x)
	}
	testkit.Write(t, filepath.Join(dir, "base.safetensors"), testkit.Encode(nil, base...))
	testkit.Write(t, filepath.Join(dir, "tuned.safetensors"), testkit.Encode(nil, tuned...))

	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), memoryEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	heap, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(4*n*n + 100e6); heap > limit {
		t.Errorf("extracting from %d tensors of %d bytes in float32 took a heap of %d bytes, want at most %d", nTensors, int64(4*n*n), heap, limit)
	}
}
