package merge_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestMagnitudesOfColumnsAreSwapped: Conv1D weights and embeddings have DoRA's norms in their
// columns. A swap must compute them after the removal.
func TestMagnitudesOfColumnsAreSwapped(t *testing.T) {
	const rows, cols = 70, 60 // of the layer; the base stores it transposed
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(21, 22))
	for _, d := range []dtype.Type{dtype.BF16, dtype.F64} {
		base := filepath.Join(dir, d.String()+".safetensors")
		testkit.Write(t, base, testkit.Encode(nil, testkit.Random(rng, "c_fc.weight", d, 0.02, cols, rows)))
		checkSwaps(t, base, writeLoRA(t, filepath.Join(dir, d.String()+"-x"), rng, "c_fc", 4, rows, cols, 0.006),
			writeDoRA(t, filepath.Join(dir, d.String()+"-y"), rng, "c_fc", rows, cols))

		embedding := filepath.Join(dir, d.String()+"-embedding.safetensors")
		testkit.Write(t, embedding, testkit.Encode(nil, testkit.Random(rng, "embed_tokens.weight", d, 0.02, cols, rows),
			testkit.Random(rng, "lm_head.weight", d, 0.02, cols, rows)))
		checkSwaps(t, embedding, embeddingAdapter(t, rng, "x", rows, cols, false), embeddingAdapter(t, rng, "y", rows, cols, true))
	}
}

// checkSwaps swaps two adapters both ways and compares with merges into the base.
func checkSwaps(t *testing.T, base string, x, y merge.Adapter) {
	t.Helper()
	withX, recordX := mergeRecorded(t, base, x)
	withY, recordY := mergeRecorded(t, base, y)
	for _, s := range []struct {
		from, want        string
		record, recordOut []byte
		out, in           merge.Adapter
	}{{withX, withY, recordX, recordY, x, y}, {withY, withX, recordY, recordX, y, x}} {
		var rec bytes.Buffer
		p, err := merge.OpenSwap(context.Background(), s.from,
			merge.Removal{Adapters: anyWeight([]merge.Adapter{s.out}), Records: []*merge.Record{record(t, "r", s.record)}},
			[]merge.Adapter{s.in}, merge.Options{Undo: &rec})
		if got := tree(t, run(t, p, err)); !maps.Equal(got, tree(t, s.want)) || !bytes.Equal(rec.Bytes(), s.recordOut) {
			t.Errorf("%s: %s swapped for %s is not the merge into the base", base, s.out.Name, s.in.Name)
		}
	}
}

// embeddingAdapter returns an adapter of a token embedding, with magnitudes if dora.
func embeddingAdapter(t *testing.T, rng *rand.Rand, name string, dim, tokens uint64, dora bool) merge.Adapter {
	t.Helper()
	const rank = 3
	random := func(scale float64, shape ...uint64) format.Data {
		x := testkit.Random(rng, "", dtype.F32, scale, shape...)
		return format.Bytes(dtype.F32, x.Data, shape...)
	}
	b := format.NewBuilder("made up")
	l := b.Embedding("embed_tokens", rank, 1, random(1, rank, tokens), random(0.003, dim, rank))
	if dora {
		l.Magnitude(random(1, dim))
	}
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	return merge.Adapter{Source: src, Name: name, Weight: 1}
}

// writeDoRA writes an adapter for one module with magnitudes.
func writeDoRA(t *testing.T, path string, rng *rand.Rand, module string, rows, cols uint64) merge.Adapter {
	t.Helper()
	const rank = 3
	key := "base_model.model." + module
	testkit.WriteAdapter(t, path, rank, rank,
		testkit.Random(rng, key+".lora_A.weight", dtype.F32, 1, rank, cols),
		testkit.Random(rng, key+".lora_B.weight", dtype.F32, 0.003, rows, rank),
		testkit.Random(rng, key+".lora_magnitude_vector", dtype.F32, 1, rows))
	src, err := convert.Open(t.Context(), path, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return merge.Adapter{Source: src, Name: path, Weight: 1}
}

// TestMemoryGetsWhatADiskGets: outputs in memory and on disk have the same bytes, records too.
// Nothing is readable before the commit.
func TestMemoryGetsWhatADiskGets(t *testing.T) {
	eachFixture(t, "merge", 50, func(t *testing.T, dir string, c fixture) {
		p, err := c.open(t, dir, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		want := tree(t, run(t, p, err))
		maps.DeleteFunc(want, func(_, what string) bool { return what == "dir" })
		p, err = c.open(t, dir, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var m output.Memory
		if m.Files() != nil {
			t.Error("an uncommitted output has files")
		}
		if _, err := p.RunTo(context.Background(), &m); err != nil {
			t.Fatal(err)
		}
		got := make(map[string]string)
		for name, content := range m.Files() {
			got[name] = fmt.Sprintf("%x", sha256.Sum256(content))
		}
		if !maps.Equal(got, want) {
			t.Errorf("in memory: %v, on the disk: %v", got, want)
		}
	})
}

// TestRecordOfAMergeIntoMemory compares with the record of a merge into a file.
func TestRecordOfAMergeIntoMemory(t *testing.T) {
	m := writePair(t, dtype.BF16, 100, 80, 0.1)
	_, want := mergeRecorded(t, m.base, m.adapters...)
	var rec bytes.Buffer
	p, err := merge.Open(t.Context(), m.base, m.adapters, merge.Options{Undo: &rec})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.RunTo(t.Context(), new(output.Memory)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(rec.Bytes(), want) {
		t.Error("another record")
	}
}

// fullOutput is an output whose files hold only a few bytes.
type fullOutput struct {
	output.Memory
	committed bool
	nClosed   atomic.Int64
}

type fullFile struct {
	output.File
	output *fullOutput
}

func (o *fullOutput) Create(info output.Info) (output.File, error) {
	f, err := o.Memory.Create(info)
	return fullFile{f, o}, err
}

func (o *fullOutput) Commit() error {
	o.committed = true
	return nil
}

func (f fullFile) Close() error {
	f.output.nClosed.Add(1)
	return nil
}

func (f fullFile) WriteAt(p []byte, off int64) (int, error) {
	if off > 3000 {
		return 0, errFull
	}
	return f.File.WriteAt(p, off)
}

func (f fullFile) CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error {
	if off+n > 3000 {
		return errFull
	}
	return f.File.CopyRange(off, src, srcOff, n)
}

// TestAnOutputThatFailsIsNotCommitted: nor are its files closed, since closing waits for the disk.
func TestAnOutputThatFailsIsNotCommitted(t *testing.T) {
	m := writePair(t, dtype.BF16, 100, 80, 0.1)
	p, err := merge.Open(t.Context(), m.base, m.adapters, merge.Options{BlockBytes: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var out fullOutput
	if _, err := p.RunTo(t.Context(), &out); !errors.Is(err, errFull) || out.committed {
		t.Errorf("RunTo(an output without room) = %v, committed %v; want %v, false", err, out.committed, errFull)
	}
	if n := out.nClosed.Load(); n > 0 {
		t.Errorf("%d files that are not complete were closed", n)
	}
}
