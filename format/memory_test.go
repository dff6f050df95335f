package format

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/parallel"
)

// zeros is a source of one adapter with n bytes of zeros in tensors of 16 MiB. It needs no memory
// for them.
type zeros struct{ manifest Manifest }

func newZeros(n int) *zeros {
	z := &zeros{}
	a := Adapter{Method: "lora"}
	for i := range n >> 24 {
		z.manifest.Tensors = append(z.manifest.Tensors, Tensor{Name: string(rune('a' + i)), DType: dtype.F32, Shape: []uint64{1 << 22}})
		a.Beside = append(a.Beside, Beside{Action: Opaque, Tensor: i})
	}
	z.manifest.Adapters = []Adapter{a}
	return z
}

func (z *zeros) Manifest() *Manifest                       { return &z.manifest }
func (z *zeros) Close() error                              { return nil }
func (z *zeros) ReadBlobAt(p []byte, _ int, _ int64) error { clear(p); return nil }

// TestMemoryDoesNotGrowWithTheData reads 64 MiB of zeros from a legitimate file of a few bytes. All
// allocations together are a fraction of that size.
func TestMemoryDoesNotGrowWithTheData(t *testing.T) {
	const n, limit = 64 << 20, 20 << 20
	var file bytes.Buffer
	check := func(what string, f func()) {
		t.Helper()
		if got := allocated(f); got > limit {
			t.Errorf("%s takes %d bytes of memory for %d, want at most %d", what, got, n, limit)
		}
	}
	src := newZeros(n)
	check("Write", func() {
		if _, err := Write(context.Background(), &file, src, WriterOptions{Workers: 2}); err != nil {
			t.Fatal(err)
		}
	})
	p := file.Bytes()
	if len(p) > n/1000 {
		t.Errorf("the file has %d bytes", len(p))
	}
	opts := ReaderOptions{Workers: 2}
	check("Verify", func() {
		if _, err := Verify(context.Background(), bytes.NewReader(p), int64(len(p)), opts); err != nil {
			t.Fatal(err)
		}
	})
	check("a stream", func() {
		s, err := NewStreamReader(bytes.NewReader(p), opts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.each(context.Background(), func(int, int64, []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
	check("reading by position", func() {
		r, err := NewReader(bytes.NewReader(p), int64(len(p)), opts)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		buffer := make([]byte, 1<<20)
		for off := int64(0); off < 1<<24; off += int64(len(buffer)) {
			if err := r.ReadBlobAt(buffer, 3, off); err != nil {
				t.Fatal(err)
			}
		}
	})
	if _, err := NewReader(bytes.NewReader(p), int64(len(p)), ReaderOptions{MaxRawBytes: n - 1}); ruleOf(err) != "R56" {
		t.Errorf("NewReader with a lower limit = %v, want R56", err)
	}
}

// TestALyingHeadCostsNothing: a length in a file is a claim, and buys no memory.
func TestALyingHeadCostsNothing(t *testing.T) {
	p := appendHead(nil, head{chunkLog2: 24, manifestBytes: 16 << 20}, nil)
	le.PutUint32(p[4:], uint32(headBytes-skipBytes+16<<20))
	p = append(p, make([]byte, 100)...)
	if n := allocated(func() {
		if err := verifyBytes(p); ruleOf(err) != "R1" {
			t.Errorf("Verify = %v, want R1", err)
		}
		if err := streamBytes(p); ruleOf(err) != "R1" {
			t.Errorf("stream = %v, want R1", err)
		}
	}); n > 1<<20 {
		t.Errorf("a file of %d bytes takes %d bytes of memory", len(p), n)
	}
}

// manyLayers is a source of small layers. It counts the live memory at its first read.
type manyLayers struct {
	zeros
	first sync.Once
	live  func()
}

func (m *manyLayers) ReadBlobAt(p []byte, i int, off int64) error {
	m.first.Do(m.live)
	return m.zeros.ReadBlobAt(p, i, off)
}

// TestContentIDHoldsNoCopyOfTheManifest: while it reads the tensors, the text of the manifest and
// what a reader makes of it are gone. A LoRA per expert of a large model has 350,000 layers, and a
// merge holds the plan beside them.
func TestContentIDHoldsNoCopyOfTheManifest(t *testing.T) {
	const n, limit = 4000, 400 // bytes per layer: its sums, and its place in the order
	src, a := &manyLayers{}, Adapter{Method: MethodLoRA}
	for i := range n {
		module := fmt.Sprintf("model.layers.%d.mlp.experts.%d.up_proj", i/256, i%256)
		a.Layers = append(a.Layers, Layer{Module: module, Kind: Linear, Rank: 1, Alpha: 1,
			Scaling: AlphaOverR, Roles: map[Role]int{RoleA: 2 * i, RoleB: 2*i + 1}})
		for _, t := range []Tensor{{Name: module + ".A", Shape: []uint64{1, 2}},
			{Name: module + ".B", Shape: []uint64{2, 1}}} {
			t.DType = dtype.F32
			src.manifest.Tensors = append(src.manifest.Tensors, t)
		}
	}
	src.manifest.Adapters = []Adapter{a}
	alive := func() (bytes int64) {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	before, during := alive(), int64(0)
	src.live = func() { during = alive() }
	if _, err := ContentID(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	if got := (during - before - readBytes*int64(parallel.Workers(0))) / n; got > limit {
		t.Errorf("%d bytes per layer are alive while tensors are read, want at most %d", got, limit)
	}
}

// TestCheckedRefusesAsTheWholeText compares the check by records with that of the whole text.
func TestCheckedRefusesAsTheWholeText(t *testing.T) {
	for name, breaks := range map[string]func(m *Manifest, a *Adapter){
		"nothing":            func(*Manifest, *Adapter) {},
		"a layer twice":      func(_ *Manifest, a *Adapter) { a.Layers[1].Module = a.Layers[0].Module },
		"no module":          func(_ *Manifest, a *Adapter) { a.Layers[0].Module = "" },
		"no UTF-8":           func(_ *Manifest, a *Adapter) { a.Layers[0].Module = "\xff" },
		"rank 0":             func(_ *Manifest, a *Adapter) { a.Layers[0].Rank = 0 },
		"an unknown kind":    func(_ *Manifest, a *Adapter) { a.Layers[0].Kind = "?" },
		"alpha is NaN":       func(_ *Manifest, a *Adapter) { a.Layers[0].Alpha = math.NaN() },
		"a tensor's name":    func(m *Manifest, _ *Adapter) { m.Tensors[0].Name = "a\x00" },
		"a tensor's shape":   func(m *Manifest, _ *Adapter) { m.Tensors[0].Shape = []uint64{1 << 62} },
		"an index":           func(_ *Manifest, a *Adapter) { a.Layers[0].Roles[RoleA] = 99 },
		"a tensor too many":  func(m *Manifest, _ *Adapter) { m.Tensors = append(m.Tensors, m.Tensors[0]) },
		"metadata":           func(m *Manifest, _ *Adapter) { m.Metadata = map[string]string{"a": "\xff"} },
		"two adapters alike": func(m *Manifest, a *Adapter) { m.Adapters = append(m.Adapters, *a) },
		"no adapter":         func(m *Manifest, _ *Adapter) { m.Adapters = nil },
	} {
		m := &Manifest{}
		adapter := Adapter{Method: MethodLoRA}
		for i, module := range []string{"b", "a"} {
			adapter.Layers = append(adapter.Layers, Layer{Module: module, Kind: Linear, Rank: 1,
				Alpha: 1, Scaling: AlphaOverR, Roles: map[Role]int{RoleA: 2 * i, RoleB: 2*i + 1}})
			m.Tensors = append(m.Tensors,
				Tensor{Name: module + ".A", DType: dtype.F32, Shape: []uint64{1, 2}},
				Tensor{Name: module + ".B", DType: dtype.F32, Shape: []uint64{2, 1}})
		}
		m.Adapters = []Adapter{adapter}
		breaks(m, &m.Adapters[0])
		_, _, want := arrange(m)
		if (want == nil) != (name == "nothing") {
			t.Fatalf("%s: arrange = %v", name, want)
		}
		if _, got := checked(m); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: checked = %v, want %v", name, got, want)
		}
	}
}
