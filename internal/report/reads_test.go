package report_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/internal/testkit"
)

// counter counts the requests and their bytes.
type counter struct {
	r        io.ReaderAt
	n        atomic.Int64
	requests atomic.Int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n.Add(int64(n))
	c.requests.Add(1)
	return n, err
}

// TestDescribeReadsLittleOfALargeContainer: an adapter of 64 layers and 32 MB, converted from PEFT.
func TestDescribeReadsLittleOfALargeContainer(t *testing.T) {
	const r, n, nLayers = 16, 4096, 64
	rng := rand.New(rand.NewPCG(3, 5))
	var factors []testkit.Tensor
	for i := range nLayers {
		key := fmt.Sprintf("base_model.model.model.layers.%d.self_attn.q_proj.lora_", i)
		a := testkit.Tensor{Name: key + "A.weight", DType: dtype.F32, Shape: []uint64{r, n}, Data: make([]byte, 4*r*n)}
		for j := range a.Data {
			a.Data[j] = byte(rng.Uint32()) &^ 0x40 // no NaN
		}
		factors = append(factors, a, testkit.Tensor{Name: key + "B.weight", DType: dtype.F32, Shape: []uint64{n, r}, Data: a.Data})
	}
	dir := filepath.Join(t.TempDir(), "adapter")
	testkit.WriteAdapter(t, dir, r, r, factors...)
	src, err := convert.Open(t.Context(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var file bytes.Buffer
	if _, err := format.Write(context.Background(), &file, src, format.WriterOptions{}); err != nil {
		t.Fatal(err)
	}

	c := &counter{r: bytes.NewReader(file.Bytes())}
	read, err := format.NewReader(c, int64(file.Len()), format.ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	report, err := report.Describe(context.Background(), read, report.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Layers) != nLayers {
		t.Errorf("the report has %d layers, want %d", len(report.Layers), nLayers)
	}
	// The head is within the first request; the second has the digests and the seek table of 32
	// chunks of factors and one of attachments; the third is this chunk, for PEFT's configuration.
	const head, attachments, wantRequests = 16<<10 + 113 + 40*33, 4 << 10, 3
	if n, requests := c.n.Load(), c.requests.Load(); n <= head || n > head+attachments || requests != wantRequests || file.Len() < 16<<20 {
		t.Errorf("%d bytes of a container of %d were read in %d requests, want %d and at most %d in %d",
			n, file.Len(), requests, head, attachments, wantRequests)
	}
}
