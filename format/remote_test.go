package format

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// requests is a file that is far away: it writes down every request, as offset and length.
type requests struct {
	io.ReaderAt
	mu   sync.Mutex
	seen [][2]int64
}

func (r *requests) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	r.seen = append(r.seen, [2]int64{off, int64(len(p))})
	r.mu.Unlock()
	return r.ReaderAt.ReadAt(p, off)
}

// take returns the requests since the last call, and their bytes.
func (r *requests) take() (seen [][2]int64, n int64) {
	seen, r.seen = r.seen, nil
	for _, s := range seen {
		n += s[1]
	}
	return seen, n
}

// far opens a file in memory as one that is far away.
func far(t *testing.T, file []byte) (*Reader, *requests) {
	t.Helper()
	r := &requests{ReaderAt: bytes.NewReader(file)}
	x, err := NewReader(r, int64(len(file)), ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x, r
}

func TestOpenRequestsTheHeadAndTheTail(t *testing.T) {
	long := plain(dtype.BF16, 2, 64, 8, 1)
	noise := floats(rand.New(rand.NewPCG(4, 2)), dtype.F32, 5000, 1)
	long.manifest.Metadata = map[string]string{"notes": fmt.Sprintf("%x", noise)} // a head of over 16 KiB
	for _, c := range []struct {
		name string
		src  *memory
		want func(size, head, tail int64) [][2]int64
	}{
		{"a long file", plain(dtype.BF16, 40, 1024, 8, 1), func(size, head, tail int64) [][2]int64 {
			return [][2]int64{{0, 16384}, {size - tail, tail}}
		}},
		{"a file of one request", plain(dtype.BF16, 2, 64, 8, 1), func(size, head, tail int64) [][2]int64 {
			return [][2]int64{{0, size}}
		}},
		{"a file whose tail begins in the first request", upTo(t, 16384+100), func(size, head, tail int64) [][2]int64 {
			return [][2]int64{{0, 16384}, {16384, size - 16384}}
		}},
		{"a long head", long, func(size, head, tail int64) [][2]int64 {
			return [][2]int64{{0, 16384}, {16384, head - 16384}, {size - tail, tail}}
		}},
	} {
		file, _ := written(t, c.src, smallChunks)
		x, r := far(t, file)
		tail := 113 + 40*x.plan.chunks
		got, _ := r.take()
		if want := c.want(int64(len(file)), x.prologue.bytes, tail); !slices.Equal(got, want) {
			t.Errorf("NewReader of %s requests %d (offset, length), want %d", c.name, got, want)
		}
	}
}

// upTo returns an adapter whose file has about n bytes: within 100, and so within its tail.
func upTo(t *testing.T, n int) *memory {
	t.Helper()
	src := plain(dtype.BF16, 2, 64, 8, 1)
	src.attach("noise", "", nil)
	file, _ := written(t, src, smallChunks)
	rng, noise := rand.New(rand.NewPCG(4, 2)), make([]byte, n)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	src.manifest.Attachments[0].NBytes = int64(n - len(file) - 50)
	src.blobs[len(src.blobs)-1] = noise[:n-len(file)]
	return src
}

// TestAModuleCostsItsOwnBytes reads one module of 64, each with 125 kB of factors. With the usual
// chunks and order that costs two chunks of 1 MiB.
func TestAModuleCostsItsOwnBytes(t *testing.T) {
	src := plain(dtype.F32, 64, 1000, 16, 1)
	usual, _ := written(t, src, WriterOptions{})
	file, _ := written(t, src, WriterOptions{ChunkLog2: 16, ByLayer: true})

	costs := func(file []byte) (nRequests int, n int64) {
		x, r := far(t, file)
		r.take()
		layer := &x.Manifest().Adapters[0].Layers[31]
		for _, role := range []Role{RoleA, RoleB} {
			i := layer.Roles[role]
			p := make([]byte, x.Manifest().Tensors[i].NBytes())
			if err := x.ReadBlobAt(p, i, 0); err != nil {
				t.Fatal(err)
			}
			name := layer.Module + ".lora_" + string(role) + ".weight"
			from := slices.IndexFunc(src.manifest.Tensors, func(t Tensor) bool { return t.Name == name })
			if !bytes.Equal(p, src.blobs[from]) {
				t.Errorf("%s differs from the source", name)
			}
		}
		seen, n := r.take()
		return len(seen), n
	}
	const raw = 2 * 16 * 1000 * 4
	if nRequests, n := costs(file); nRequests != 2 || n > raw+2*(64<<10) {
		t.Errorf("by layer, a module of %d bytes costs %d bytes in %d requests, "+
			"want at most two chunks of 64 KiB more, in 2", raw, n, nRequests)
	}
	if nRequests, n := costs(usual); nRequests != 2 || n < 10*raw {
		t.Errorf("by role, a module of %d bytes costs %d bytes in %d requests", raw, n, nRequests)
	}
	if len(file)*100 > len(usual)*102 {
		t.Errorf("the file by layer has %d bytes, the usual one %d", len(file), len(usual))
	}
}

// TestNeighbouringChunksAreOneRequest reads a tensor of 4 MB in chunks of 64 KiB.
func TestNeighbouringChunksAreOneRequest(t *testing.T) {
	src := plain(dtype.F32, 1, 1<<16, 16, 1)
	file, _ := written(t, src, smallChunks)
	x, r := far(t, file)
	r.take()
	p := make([]byte, 4<<20)
	if err := x.ReadBlobAt(p, 0, 0); err != nil || !bytes.Equal(p, src.blobs[0]) {
		t.Fatalf("ReadBlobAt = %v, or the bytes differ", err)
	}
	seen, n := r.take()
	first, _ := x.tail.span(0)
	_, last := x.tail.span(63)
	if n != last-first || len(seen) != 4 {
		t.Errorf("64 chunks of %d bytes cost %d bytes in the requests %d, want 4 of up to 1 MiB", last-first, n, seen)
	}
	at := first
	for _, s := range seen {
		if s[0] != at || s[1] > 1<<20 {
			t.Errorf("request %d, want one from %d of at most 1 MiB", s, at)
		}
		at += s[1]
	}
}

// TestByLayerKeepsLayersTogether: within a dtype, in order of adapters and modules, A before B
// before the rest, then the tensors beside. The content is the same.
func TestByLayerKeepsLayersTogether(t *testing.T) {
	usual, first := written(t, rich(), smallChunks)
	file, second := written(t, opened(t, usual), WriterOptions{ChunkLog2: 16, ByLayer: true})
	if first.ContentID != second.ContentID {
		t.Errorf("by layer the content id is %s, by role %s", second.ContentID, first.ContentID)
	}
	var names []string
	for _, tensor := range opened(t, file).Manifest().Tensors {
		names = append(names, tensor.Name)
	}
	const want = "four x x rows empty h.2.A h.2.B h.2.bias h.2.m h.1.A h.1.B h.1.bias h.1.m " +
		"complex h.10.A h.10.B h.10.bias h.10.m scalar odd"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("tensors by layer: %s\nwant %s", got, want)
	}
	back, _ := written(t, opened(t, file), smallChunks)
	if !bytes.Equal(back, usual) {
		t.Error("written by role again, the file differs")
	}
}
