package merge_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// endingSource is an adapter whose first read ends the run.
type endingSource struct {
	format.Source
	end   func()
	reads atomic.Int64
}

func (s *endingSource) ReadBlobAt(p []byte, i int, off int64) error {
	s.reads.Add(1)
	s.end()
	return s.Source.ReadBlobAt(p, i, off)
}

// TestLoadingFactorsEndsWithTheRun: a factor of a high rank takes seconds to load, and is read in
// pieces, between which a run that was interrupted ends.
func TestLoadingFactorsEndsWithTheRun(t *testing.T) {
	const rows, rank = 1 << 14, 64 // A and B have 16 pieces each
	rng := rand.New(rand.NewPCG(31, 32))
	base := filepath.Join(t.TempDir(), "base.safetensors")
	testkit.Write(t, base, testkit.Encode(nil, testkit.Random(rng, "q.weight", dtype.F32, 1, rows, 8)))
	b := format.NewBuilder("made up")
	b.Linear("q", rank, 1, format.Bytes(dtype.F32, make([]byte, 4*rank*8), rank, 8), format.Bytes(dtype.F32, make([]byte, 4*rows*rank), rows, rank))
	built, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	src := &endingSource{Source: built, end: func() {}}
	p, err := merge.Open(ctx, base, []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, merge.Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	src.reads.Store(0)
	src.end = cancel
	if _, err := p.RunTo(ctx, new(output.Memory)); !errors.Is(err, context.Canceled) || src.reads.Load() != 1 {
		t.Errorf("%v after %d reads, want the end after one", err, src.reads.Load())
	}
}
