package merge_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// writeZeros writes a base of zero BF16 matrices, sparse on the disk, and an adapter for all of
// them.
func writeZeros(t *testing.T, dir string, n, rows, cols, rank int) (base, adapter string) {
	t.Helper()
	base, adapter = filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "adapter")
	rng := rand.New(rand.NewPCG(91, 92))
	var header strings.Builder
	var factors []testkit.Tensor
	size := 2 * rows * cols
	for i := range n {
		fmt.Fprintf(&header, `,"m.%d.weight":{"dtype":"BF16","shape":[%d,%d],"data_offsets":[%d,%d]}`, i, rows, cols, i*size, (i+1)*size)
		key := fmt.Sprintf("base_model.model.m.%d.lora_", i)
		factors = append(factors,
			testkit.Random(rng, key+"A.weight", dtype.F32, 1, uint64(rank), uint64(cols)),
			testkit.Random(rng, key+"B.weight", dtype.F32, 1, uint64(rows), uint64(rank)))
	}
	text := testkit.Raw("{"+header.String()[1:]+"}", nil)
	testkit.Write(t, base, text)
	if err := os.Truncate(base, int64(len(text)+n*size)); err != nil {
		t.Fatal(err)
	}
	testkit.WriteAdapter(t, adapter, rank, float64(rank), factors...)
	return base, adapter
}

// TestMergeTakesMemoryForItsWorkersNotForTheBase: after every block the live heap stays within the
// plan's estimate for two workers, plus the unwritten blocks of an undo record. The base is many
// times larger.
func TestMergeTakesMemoryForItsWorkersNotForTheBase(t *testing.T) {
	const n, rows, cols, rank = 16, 1024, 2048, 16
	for _, withUndo := range []bool{false, true} {
		dir := t.TempDir()
		base, adapter := writeZeros(t, dir, n, rows, cols, rank)
		src, err := convert.Open(t.Context(), adapter, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		alive := func() int64 {
			var s runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&s)
			return int64(s.HeapAlloc)
		}
		before := alive()
		var most, calls atomic.Int64
		options := merge.Options{Workers: 2, Progress: func(int64) {
			if calls.Add(1)%8 == 0 { // a collection takes longer than a block
				x := alive()
				for old := most.Load(); x > old && !most.CompareAndSwap(old, x); old = most.Load() {
				}
			}
		}}
		var extra int64 = 1 << 20
		if withUndo {
			options.Undo, extra = io.Discard, 16<<20
		}
		plan, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, options)
		if err != nil {
			t.Fatal(err)
		}
		defer plan.Close()
		if _, err := plan.Run(context.Background(), filepath.Join(dir, "out.safetensors")); err != nil {
			t.Fatal(err)
		}
		limit := plan.PeakBytes(2) + extra
		if got := most.Load() - before; got > limit || most.Load() == 0 {
			t.Errorf("merging into %d bytes with two workers (undo record: %v) had %d bytes alive, want at most %d", plan.OutputBytes(), withUndo, got, limit)
		}
		if limit*2 > plan.OutputBytes() {
			t.Errorf("the limit is %d bytes for a base of %d: it says nothing", limit, plan.OutputBytes())
		}
	}
}
