package merge_test

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestMergeTouchesEveryByteOnce counts the costs of a merge beside arithmetic. No number here
// depends on the machine or its load: a change that reads or writes anything twice, in smaller
// pieces, or with more allocations for each block or layer, fails here before it shows in a
// benchmark.
func TestMergeTouchesEveryByteOnce(t *testing.T) {
	for _, c := range []countedShape{
		{name: "blocks of large layers", n: 2, rows: 3072, cols: 2048, rank: 4, untouched: 3 << 20, perUnit: 1 << 20, maxAllocs: 3, maxBytes: 64 << 10},
		{name: "tiny layers", n: 600, rows: 32, cols: 128, rank: 4, perUnit: 2 * 32 * 128, maxAllocs: 37, maxBytes: 9 << 10},
	} {
		small, large := countMerge(t, c), countMerge(t, c.times(3))
		for _, m := range []counted{small, large} {
			if m.written+m.copied != m.output {
				t.Errorf("%s: %d bytes written and %d copied for %d of output, want each once", c.name, m.written, m.copied, m.output)
			}
			if most := m.output + m.header; m.base.bytes+m.copied > most {
				t.Errorf("%s: %d bytes of the base read and %d copied, want at most %d", c.name, m.base.bytes, m.copied, most)
			}
			// The factors are read for the content id and for the merge.
			if most := 2*m.factors + m.factors/4; m.adapter.bytes > most {
				t.Errorf("%s: %d bytes of %d of factors read, want at most %d", c.name, m.adapter.bytes, m.factors, most)
			}
			// A read and a write for each MiB, some for the rest around large tensors, and a read
			// of 32 KiB of factors twice: 2.2 calls for a MB of the output, 2,200 for a GB.
			if calls, most := m.base.calls+m.calls, 2*(m.output>>20)+12; calls > most {
				t.Errorf("%s: %d calls for %d bytes of output, want at most %d", c.name, calls, m.output, most)
			}
			// Several goroutines read for the content id, and what one has in its piece another
			// may read again.
			if most := 3*(m.factors>>15) + 20; m.adapter.calls > most {
				t.Errorf("%s: %d reads for %d bytes of factors, want at most %d", c.name, m.adapter.calls, m.factors, most)
			}
		}
		units := (large.output - small.output) / c.perUnit
		allocs, bytes := (large.allocs-small.allocs)/units, (large.allocated-small.allocated)/units
		t.Logf("%s: %d allocations and %d bytes for one more; %d calls for %d bytes", c.name, allocs, bytes, large.base.calls+large.calls, large.output)
		if allocs > c.maxAllocs || bytes > c.maxBytes {
			t.Errorf("%s: one more takes %d allocations of %d bytes, want at most %d of %d", c.name, allocs, bytes, c.maxAllocs, c.maxBytes)
		}
	}
}

// countedShape is a base of n layers of rows×cols in BF16, with an adapter for all of them, and
// behind it a tensor that stays as it is. A unit is a block of a layer, or a layer.
type countedShape struct {
	name                string
	n, rows, cols, rank int
	untouched           int
	perUnit             int64 // bytes of the output
	maxAllocs, maxBytes int64 // for each unit
}

// times returns the shape with k times as many units: large layers have more rows.
func (c countedShape) times(k int) countedShape {
	if c.n < 10 {
		c.rows *= k
	} else {
		c.n *= k
	}
	return c
}

// counted holds the counts of one merge.
type counted struct {
	base, adapter           reads
	output, header, factors int64 // sizes
	written, copied, calls  int64
	allocs, allocated       int64
}

// reads counts reads of a file.
type reads struct {
	calls, bytes int64
}

func countMerge(t *testing.T, c countedShape) (m counted) {
	t.Helper()
	rng := rand.New(rand.NewPCG(23, 24))
	var weights, factors []testkit.Tensor
	for i := range c.n {
		module := fmt.Sprintf("m.%05d", i)
		weights = append(weights, testkit.Tensor{Name: module + ".weight", DType: dtype.BF16, Shape: []uint64{uint64(c.rows), uint64(c.cols)}, Data: make([]byte, 2*c.rows*c.cols)})
		factors = append(factors,
			testkit.Random(rng, "base_model.model."+module+".lora_A.weight", dtype.F32, 1, uint64(c.rank), uint64(c.cols)),
			testkit.Random(rng, "base_model.model."+module+".lora_B.weight", dtype.F32, 1, uint64(c.rows), uint64(c.rank)))
		m.factors += int64(4 * c.rank * (c.rows + c.cols))
	}
	if c.untouched > 0 {
		weights = append(weights, testkit.Tensor{Name: "z", DType: dtype.U8, Shape: []uint64{uint64(c.untouched)}, Data: make([]byte, c.untouched)})
	}
	dir := t.TempDir()
	testkit.WriteAdapter(t, dir, c.rank, float64(c.rank), factors...)
	files := &countingFS{files: memory{"base.safetensors": testkit.Encode(nil, weights...)}, counts: make(map[string]*reads)}
	for _, name := range []string{"adapter_model.safetensors", "adapter_config.json"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files.files["adapter/"+name] = content
	}
	base, err := checkpoint.OpenFS(t.Context(), files, "base.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	src, err := convert.OpenFS(t.Context(), files, "adapter", convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	plan, err := merge.New(t.Context(), base, []merge.Adapter{{Source: src, Name: "adapter", Weight: 1}}, merge.Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	inBase, inAdapter := files.counts["base.safetensors"], files.counts["adapter/adapter_model.safetensors"]
	m.header = inBase.bytes
	*inBase, *inAdapter = reads{}, reads{}
	out := &countingOutput{counts: &m}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties the pools of buffers
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := plan.RunTo(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	m.base, m.adapter, m.output = *inBase, *inAdapter, plan.OutputBytes()
	m.allocs, m.allocated = int64(after.Mallocs-before.Mallocs), int64(after.TotalAlloc-before.TotalAlloc)
	return m
}

// countingFS counts the reads of each file.
type countingFS struct {
	files  memory
	counts map[string]*reads
}

func (c *countingFS) ReadDir(name string) ([]fs.DirEntry, error) { return c.files.ReadDir(name) }

func (c *countingFS) Open(name string) (fs.File, error) {
	f, err := c.files.Open(name)
	r, ok := f.(io.ReaderAt)
	if err != nil || !ok {
		return f, err
	}
	if c.counts[name] == nil {
		c.counts[name] = new(reads)
	}
	return countingFile{f, r, c.counts[name]}, nil
}

type countingFile struct {
	fs.File
	r io.ReaderAt
	n *reads
}

func (c countingFile) ReadAt(p []byte, off int64) (int, error) {
	atomic.AddInt64(&c.n.calls, 1)
	atomic.AddInt64(&c.n.bytes, int64(len(p)))
	return c.r.ReadAt(p, off)
}

// countingOutput counts the bytes of an output and throws them away.
type countingOutput struct{ counts *counted }

func (c *countingOutput) Create(output.Info) (output.File, error) { return c, nil }
func (c *countingOutput) Commit() error                           { return nil }
func (c *countingOutput) Abort()                                  {}
func (c *countingOutput) Close() error                            { return nil }

func (c *countingOutput) WriteAt(p []byte, _ int64) (int, error) {
	c.counts.calls++
	c.counts.written += int64(len(p))
	return len(p), nil
}

// CopyRange counts one call: on a disk the system copies.
func (c *countingOutput) CopyRange(_ int64, _ io.ReaderAt, _, n int64) error {
	c.counts.calls++
	c.counts.copied += n
	return nil
}
